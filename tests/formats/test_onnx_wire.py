"""Large weights stay in the file until they are asked for, and are written one at a time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from bnfold.errors import ModelError
from bnfold.formats.onnx.model import OnnxModel
from bnfold.formats.onnx.wire import LARGE

RNG = np.random.default_rng(3)


def weights() -> list[TensorProto]:
    """Tensors of every kind of storage, on both sides of what is large."""
    arrays = {
        "small": RNG.normal(size=7).astype(np.float32),
        "below": RNG.integers(0, 9, LARGE - 1, np.uint8),
        "at": RNG.integers(0, 9, LARGE, np.uint8),
        "float32": RNG.normal(size=(17, 31)).astype(np.float32),
        "float16": RNG.normal(size=(31, 33)).astype(np.float16),
        "bfloat16": RNG.normal(size=(31, 33)).astype(ml_dtypes.bfloat16),
        "double": RNG.normal(size=(9, 5, 7)),
        "int64": RNG.integers(-9, 9, 400),
        "flags": RNG.integers(0, 2, 3000).astype(bool),
        "int4": RNG.integers(-8, 7, (61, 61)).astype(ml_dtypes.int4),
        "strings": np.array(["xyz", "y"] * 400, object),
    }
    made = [numpy_helper.from_array(a, name) for name, a in arrays.items()]
    listed = helper.make_tensor("listed", TensorProto.FLOAT, [600], RNG.normal(size=600))
    made[3].doc_string = "kept"
    return [*made, listed]


def model(tensors: list[TensorProto]) -> onnx.ModelProto:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [3])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, [3])
    node = helper.make_node("Identity", ["x"], ["y"], "node")
    graph = helper.make_graph([node], "g", [value], [result], tensors)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    proto.metadata_props.add(key="author", value="me")
    return proto


@pytest.fixture
def path(tmp_path: Path) -> Path:
    onnx.save(model(weights()), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def loaded(opened: OnnxModel, name: str) -> ir.TensorProtocol:
    tensor = opened.ir.graph.initializers[name].const_value
    assert tensor is not None
    return tensor


def test_every_weight_reads_as_it_was_stored(path: Path) -> None:
    opened = OnnxModel.load(path)
    for proto in weights_of(path):
        if proto.name == "strings":
            continue
        found = loaded(opened, proto.name).numpy()
        np.testing.assert_array_equal(found, numpy_helper.to_array(proto), proto.name)
    lazy = {n for n in opened.ir.graph.initializers if isinstance(loaded(opened, n), ir.LazyTensor)}
    assert lazy == {"at", "float32", "float16", "bfloat16", "double", "int64", "flags", "int4"}


def weights_of(path: Path) -> list[TensorProto]:
    return list(onnx.load(path).graph.initializer)


@pytest.mark.parametrize("external", [False, True])
def test_a_round_trip_keeps_everything(path: Path, tmp_path: Path, external: bool) -> None:
    if external:
        onnx.save(onnx.load(path), path, save_as_external_data=True, location="w.bin")
    OnnxModel.load(path).save(tmp_path / "again.onnx")
    before, after = onnx.load(path), onnx.load(tmp_path / "again.onnx")
    assert bool(list(tmp_path.glob("again.onnx.*.data"))) == external
    onnx.checker.check_model(after)
    old, new = ({t.name: t for t in proto.graph.initializer} for proto in (before, after))
    assert list(old) == list(new)
    for name in old:
        arrays = (numpy_helper.to_array(tensor[name]) for tensor in (old, new))
        np.testing.assert_array_equal(*arrays, name)
        assert old[name].data_type == new[name].data_type
        assert old[name].doc_string == new[name].doc_string
    for proto in (before, after):
        del proto.graph.initializer[:]
        del proto.graph.value_info[:]  # onnx_ir adds those of initializers
    assert before == after


def test_a_weight_can_be_read_when_the_file_has_gone(path: Path) -> None:
    opened, expected = OnnxModel.load(path), numpy_helper.to_array(weights_of(path)[3])
    path.unlink()
    np.testing.assert_array_equal(loaded(opened, "float32").numpy(), expected)


def test_a_file_that_changes_underneath_is_noticed(path: Path) -> None:
    opened = OnnxModel.load(path)
    with path.open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\0\0")
    with pytest.raises(ModelError, match=r"m\.onnx was changed while it was being used"):
        loaded(opened, "float32").numpy()


def test_a_weight_of_another_size_than_it_says_is_refused(tmp_path: Path) -> None:
    tensor = numpy_helper.from_array(np.zeros((40, 40), np.float32), "w")
    tensor.dims[0] = 2**50
    (tmp_path / "m.onnx").write_bytes(model([tensor]).SerializeToString())
    with pytest.raises(ModelError, match="'w' lie in the file itself, which has 6400 bytes for it"):
        OnnxModel.load(tmp_path / "m.onnx")


def test_a_file_cut_anywhere_is_refused_or_says_the_same(path: Path, tmp_path: Path) -> None:
    """A cut between two fields leaves a valid message: what it still has must be right."""
    content, cut = path.read_bytes(), tmp_path / "cut.onnx"
    refused = 0
    for end in range(1, len(content), 97):
        cut.write_bytes(content[:end])
        try:
            OnnxModel.load(cut)
        except ModelError:
            refused += 1
    assert refused > len(content) // 97 * 0.9


LAYERS, WIDTH = 30, 2048  # 16 MiB of weights each
BOUND = 0.75
"""Of the size of the file: its 480 MiB are never in memory at once. Python and the libraries take
130 MiB, what is kept of new weights 128 MiB, and a weight a few times its 16 MiB while it is
folded; so larger files do better still."""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's peak memory")
def test_a_large_model_is_never_in_memory_whole(tmp_path: Path) -> None:
    path = tmp_path / "large.onnx"
    kernel = numpy_helper.from_array(np.ones((WIDTH, WIDTH, 1, 1), np.float32)).raw_data
    nodes, tensors = [], []
    for i in range(LAYERS):
        weight = TensorProto(name=f"w{i}", dims=[WIDTH, WIDTH, 1, 1], data_type=TensorProto.FLOAT)
        weight.raw_data = kernel
        tensors.append(weight)
        for role in "gbmv":
            values = RNG.uniform(0.5, 1.5, WIDTH).astype(np.float32)
            tensors.append(numpy_helper.from_array(values, f"{role}{i}"))
        nodes.append(helper.make_node("Conv", [f"x{i}", f"w{i}"], [f"c{i}"], f"conv{i}"))
        read = [f"c{i}", *(f"{role}{i}" for role in "gbmv")]
        nodes.append(helper.make_node("BatchNormalization", read, [f"y{i}"], f"bn{i}"))
        nodes.append(helper.make_node("Relu", [f"y{i}"], [f"x{i + 1}"], f"relu{i}"))
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, WIDTH, 2, 2])
        for name in ("x0", f"x{LAYERS}")
    ]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], tensors)
    onnx.save(helper.make_model(graph, ir_version=10), path)
    code = (
        "from bnfold.cli import main\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code\n"
        "print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])\n"
    )
    run = [sys.executable, "-c", code, "fold", str(path), "--no-verify", "--format", "json"]
    done = subprocess.run(run, capture_output=True, text=True, check=True)
    assert int(done.stdout.splitlines()[-1]) * 1024 < BOUND * path.stat().st_size
    assert len(onnx.load(tmp_path / "large.folded.onnx").graph.node) == 2 * LAYERS
