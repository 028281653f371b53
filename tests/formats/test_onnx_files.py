"""ONNX files: bad ones are named, external data stay outside, links out are refused."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import bnfold
from bnfold.errors import ModelError
from bnfold.files import sha256, write_atomically
from bnfold.formats.onnx.model import OnnxModel
from bnfold.runtimes.external_data import check_external_data, inside
from tests.conftest import Ended
from tests.formats.onnx_nets import Net, assert_same, check_fold, fold, kinds
from tests.killing import NEEDS_FORK, run_and_kill

ROOT = Path(__file__).parents[2]
CHECKPOINTS = ROOT / "models" / "checkpoints"


def small() -> onnx.ModelProto:
    net = Net()
    net.output(net.bn(net.conv(net.input("x", "N", 3, 9, 7), 3, 40), 40))
    return net.proto()


def without_version() -> bytes:
    proto = small()
    proto.ClearField("ir_version")
    return proto.SerializeToString()


def twice_made() -> bytes:
    proto = small()
    proto.graph.node.append(proto.graph.node[-1])
    return proto.SerializeToString()


@pytest.fixture
def external(tmp_path: Path) -> Path:
    """A model whose weights lie in another file of the same folder."""
    path = tmp_path / "m.onnx"
    how: dict[str, Any] = {
        "save_as_external_data": True,
        "location": "m.bin",
        "size_threshold": 1024,
    }
    onnx.save(small(), path, **how)
    return path


@pytest.mark.parametrize("name", ["placement", "batch_norm_network"])
def test_committed_models_fold_completely(name: str, tmp_path: Path) -> None:
    before = OnnxModel.load(CHECKPOINTS / f"{name}.onnx")
    after, plan = fold(before)
    assert plan.batchnorms.kept == 0
    assert "BatchNormalization" not in kinds(after)
    after.save(tmp_path / "folded.onnx")
    again = OnnxModel.load(tmp_path / "folded.onnx")
    assert_same(before, again)
    assert list(tmp_path.iterdir()) == [tmp_path / "folded.onnx"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"this is text, not a model\n", "not an ONNX model"),
        (os.urandom(16) + b"\xff" * 64, "not an ONNX model"),
        (small().SerializeToString()[:-100], "not an ONNX model, or is cut short"),
        (onnx.ModelProto(ir_version=8).SerializeToString(), "no graph with outputs"),
        (without_version(), "names no IR version"),
        (twice_made(), "is redeclared"),
    ],
    ids=["empty", "text", "noise", "truncated", "no-graph", "no-version", "made-twice"],
)
def test_bad_files_are_named(content: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=words) as caught:
        OnnxModel.load(path)
    assert str(path) in str(caught.value)
    assert caught.value.hint
    assert "\n" not in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be read: No such file"):
        OnnxModel.load(tmp_path / "none.onnx")


def test_value_that_nothing_makes() -> None:
    proto = small()
    proto.graph.node[1].input[0] = "nowhere"
    with pytest.raises(ModelError, match="nowhere"):
        OnnxModel.from_proto(proto).read(None)


def test_model_that_contradicts_itself() -> None:
    net = Net()
    net.output(net.conv(net.input("x", "N", 4, 9, 7), 3, 4))
    with pytest.raises(ModelError, match="Conv_0 wants 3 channels on axis 1 of"):
        OnnxModel.from_proto(net.proto()).read(None)


@pytest.mark.parametrize(
    ("attributes", "words"),
    [({"group": 0}, "has 0 groups"), ({"pads": [1, 2]}, "has 2 pads for 2 axes")],
    ids=["groups", "pads"],
)
def test_attributes_that_make_no_sense(attributes: dict[str, Any], words: str) -> None:
    net = Net()
    net.output(net.node("Conv", net.input("x", "N", 3, 9, 7), net.normal(4, 3, 3, 3), **attributes))
    with pytest.raises(ModelError, match=words):
        OnnxModel.from_proto(net.proto()).read(None)


def test_a_constant_without_a_value_is_read_as_any_node() -> None:
    net = Net()
    net.output(net.node("Add", net.input("x", "N", 3), net.node("Constant")), rank=2)
    assert len(OnnxModel.from_proto(net.proto()).read(None).nodes) == 2


def test_what_is_wrong_is_told_although_an_output_has_no_shape() -> None:
    proto = small()
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    assert OnnxModel.from_proto(proto).diagnose() is None
    proto.graph.node[0].op_type = "Unheard"
    assert "Unheard" in (OnnxModel.from_proto(proto).diagnose() or "")


@pytest.mark.parametrize("inner", [False, True], ids=["in the graph", "in a branch"])
def test_an_attribute_of_no_function(inner: bool) -> None:
    """Runtimes leave it out, the checker does not look, and a reader may take its default."""
    net = Net()
    x = net.input("x", 2, 3)
    node = helper.make_node("LeakyRelu", [x], ["leaky"])
    attribute = node.attribute.add(name="alpha", ref_attr_name="a")
    attribute.type = onnx.AttributeProto.FLOAT
    output = helper.make_tensor_value_info("leaky", TensorProto.FLOAT, None)
    proto = net.proto()
    if inner:
        body = helper.make_graph([node], "b", [], [output])
        chosen = helper.make_node("If", ["c"], ["y"], then_branch=body, else_branch=body)
        proto.graph.node.append(chosen)
    else:
        proto.graph.node.append(node)
    proto.graph.output.append(output)
    with pytest.raises(
        ModelError, match=r"the attribute alpha of leaky \(LeakyRelu\) has no value"
    ):
        OnnxModel.from_proto(proto)


def test_a_large_weight_of_no_type(tmp_path: Path) -> None:
    net = Net()
    net.output(net.node("Add", net.input("x", 64, 64), net.weight(np.ones((64, 64)))))
    proto = net.proto()
    proto.graph.initializer[0].data_type = TensorProto.UNDEFINED
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(ModelError, match="does not say of what type it is"):
        bnfold.inspect(tmp_path / "m.onnx")


def test_a_convolution_whose_weight_has_one_dimension() -> None:
    net = Net()
    made = net.node("Conv", net.node("Unknown", net.input("x", 1, 3, 5, 4)), net.weight(np.ones(4)))
    net.output(net.node("Relu", made))
    with pytest.raises(ModelError):
        bnfold.fold(net.proto())


def test_the_long_name_of_the_domain() -> None:
    proto = small()
    proto.opset_import[0].domain = "ai.onnx"
    for node in proto.graph.node:
        node.domain = "ai.onnx"
    after, plan = check_fold(proto)
    assert plan.batchnorms.kept == 0, str(plan)
    assert after.ir.opset_imports == {"": 17}


def test_a_size_of_minus_one_is_free() -> None:
    proto = small()
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1
    (spec,) = OnnxModel.from_proto(proto).inputs
    assert spec.shape == (None, 3, 9, 7)


def test_training_that_is_left_out_is_named() -> None:
    proto = small()
    proto.training_info.add().algorithm.name = "sgd"
    assert "training_info is left out" in bnfold.fold(proto, verify=False).notes[0]


def test_an_output_keeps_what_is_said_of_it() -> None:
    """Here the BatchNorm is gone, and the convolution before it makes the output."""
    proto = small()
    (output,) = proto.graph.output
    output.doc_string = "probabilities"
    output.metadata_props.add(key="unit", value="none")
    note = proto.graph.quantization_annotation.add(tensor_name=output.name)
    note.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value=output.name)
    folded = bnfold.fold(proto, verify=False).model
    assert [node.op_type for node in folded.graph.node] == ["Conv"]
    assert folded.graph.output[0] == output
    assert list(folded.graph.quantization_annotation) == [note]


def test_sparse_initializers_are_refused() -> None:
    proto = small()
    values = onnx.numpy_helper.from_array(np.ones(1, np.float32), "s")
    indices = onnx.numpy_helper.from_array(np.zeros(1, np.int64), "i")
    proto.graph.sparse_initializer.append(onnx.helper.make_sparse_tensor(values, indices, [5]))
    with pytest.raises(ModelError, match="sparse"):
        OnnxModel.from_proto(proto)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [("location", "a\0b", "null byte"), ("offset", "four", "four")],
    ids=["location", "offset"],
)
def test_external_data_that_make_no_sense(key: str, value: str, words: str, external: Path) -> None:
    proto = onnx.load_model(external, load_external_data=False)
    (entry,) = (e for t in proto.graph.initializer for e in t.external_data if e.key == key)
    entry.value = value
    external.write_bytes(proto.SerializeToString())
    with pytest.raises(ModelError, match=words):
        OnnxModel.load(external)


def test_external_data_stay_external(external: Path, tmp_path: Path) -> None:
    before = OnnxModel.load(external)
    after, plan = fold(before)
    assert plan.batchnorms.folded == 1
    out = tmp_path / "out"
    out.mkdir()
    after.save(out / "f.onnx")
    model, data = sorted(out.iterdir(), key=lambda path: path.name.endswith("data"))
    assert model.name == "f.onnx"
    assert data.name == f"f.onnx.{sha256(data)[:12]}.data"
    assert data.stat().st_size == 40 * 3 * 3 * 3 * 4
    assert_same(before, OnnxModel.load(out / "f.onnx"))


@NEEDS_FORK
def test_a_kill_leaves_a_model_with_its_own_weights(external: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    original = OnnxModel.load(external)
    folded, _ = fold(original)
    versions = {}
    for name, model in (("old", original), ("new", folded)):
        (tmp_path / name).mkdir()
        model.save(tmp_path / name / "m.onnx")
        versions[name] = onnx.load(tmp_path / name / "m.onnx").SerializeToString()
    seen = set()
    for steps in range(200):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(tmp_path / "old", folder)
        done = run_and_kill(steps, lambda: write_atomically(folder / "m.onnx", folded.save))
        found = onnx.load(folder / "m.onnx").SerializeToString()
        seen |= {name for name, version in versions.items() if version == found}
        assert found in versions.values()
        if done:
            break
    assert seen == {"old", "new"}
    assert sorted(os.listdir(folder)) == sorted(os.listdir(tmp_path / "new"))


def test_a_command_that_is_told_to_stop_leaves_nothing_behind(
    external: Path, tmp_path: Path
) -> None:
    code = (
        "import os, signal; from pathlib import Path; import bnfold.formats.onnx.files as files\n"
        "def write(model, path, *, external):\n"
        "    path.write_bytes(b'half')\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "files.write = write\n"
        "from bnfold.cli import main; main()"
    )
    before = sorted(os.listdir(tmp_path))
    run = [sys.executable, "-c", code, "fold", str(external), "--no-verify"]
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (130, "")
    assert "interrupted; nothing was written" in done.stderr
    assert sorted(os.listdir(tmp_path)) == before


def test_external_data_of_a_message_in_memory(external: Path) -> None:
    with pytest.raises(ModelError, match="another file") as caught:
        OnnxModel.from_proto(onnx.load(external, load_external_data=False))
    assert caught.value.hint == "open the model by its path"


def relocate(path: Path, location: str) -> None:
    proto = onnx.load(path, load_external_data=False)
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    path.write_bytes(proto.SerializeToString())


@pytest.mark.parametrize("how", ["parent", "absolute", "symlink", "hard link", "missing", "short"])
def test_external_data_may_not_leave_the_folder(how: str, external: Path) -> None:
    outside = external.parent.parent / f"outside-{os.getpid()}-{how.replace(' ', '')}.bin"
    data = external.parent / "m.bin"
    outside.write_bytes(data.read_bytes())
    match how:
        case "parent":
            relocate(external, f"../{outside.name}")
        case "absolute":
            relocate(external, str(outside))
        case "symlink":
            data.unlink()
            data.symlink_to(outside)
        case "hard link":
            data.unlink()
            data.hardlink_to(outside)
        case "missing":
            data.unlink()
        case "short":
            data.write_bytes(b"\0" * 100)
    said = r"the data of 'w0' lie in .*, (outside|a link|which)"
    with pytest.raises(ModelError, match=said):
        OnnxModel.load(external)
    if how != "short":  # whose shapes are read by the runtime alone
        with pytest.raises(ModelError, match=said):
            check_external_data(external)
    outside.unlink()


def in_a_body(tensor: onnx.TensorProto) -> onnx.GraphProto:
    constant = helper.make_node("Constant", [], ["k"], value=tensor)
    made = helper.make_tensor_value_info("k", TensorProto.FLOAT, None)
    return helper.make_graph([constant], "body", [], [made])


def in_a_branch(proto: onnx.ModelProto, tensor: onnx.TensorProto) -> None:
    body = in_a_body(tensor)
    proto.graph.node.append(helper.make_node("If", ["t"], ["z"], then_branch=body))


def in_a_function(proto: onnx.ModelProto, tensor: onnx.TensorProto) -> None:
    nodes = in_a_body(tensor).node
    proto.functions.append(helper.make_function("d", "F", [], ["k"], nodes, []))


def sparse(proto: onnx.ModelProto, tensor: onnx.TensorProto) -> None:
    proto.graph.sparse_initializer.add().values.CopyFrom(tensor)


def of_training(proto: onnx.ModelProto, tensor: onnx.TensorProto) -> None:
    proto.training_info.add().algorithm.CopyFrom(in_a_body(tensor))


@pytest.mark.parametrize("place", [in_a_branch, in_a_function, sparse, of_training])
def test_external_data_are_found_wherever_they_are_named(place: Any, external: Path) -> None:
    """As the protobuf of onnx itself reads them."""
    proto = onnx.load(external, load_external_data=False)
    tensor = TensorProto(name="far", data_type=TensorProto.FLOAT, dims=[1])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../far")
    place(proto, tensor)
    external.write_bytes(proto.SerializeToString())
    with pytest.raises(ModelError, match=r"the data of 'far' lie in '../far', outside"):
        check_external_data(external)
    tensor.data_location = TensorProto.DEFAULT  # a runtime does not look there
    proto = onnx.load(external, load_external_data=False)
    content = external.read_bytes().replace(b"\x70\x01", b"\x70\x00")
    external.write_bytes(content)
    assert not check_external_data(external)


def test_what_is_no_protobuf_keeps_nothing_elsewhere(tmp_path: Path) -> None:
    """The runtime says what is wrong with it; what is read here comes to an end."""
    path = tmp_path / "m.onnx"
    for content in (
        b"",
        b"\xff" * 40,
        b"\x3a\xff\xff\x7f",
        b"\x3a",
        b"\x3b\x00",
        b"\x08",
        b"\x0d1",
    ):
        path.write_bytes(content)
        assert not check_external_data(path)
    with pytest.raises(ModelError, match="cannot be read"):
        check_external_data(tmp_path / "no.onnx")


def test_a_golden_bundle_is_no_way_around_the_rules(
    external: Path, bnfold: Callable[..., Ended]
) -> None:
    bundle = external.with_name("g.npz")
    assert bnfold("golden", external, "-o", bundle).code == 0
    assert bnfold("verify", "--golden", bundle, external).code == 0
    external.with_name("elsewhere").hardlink_to(external.with_name("m.bin"))
    ended = bnfold("verify", "--golden", bundle, external)
    assert ended.code == 3
    assert "which is a hard link" in ended.err


def test_saving_is_deterministic(tmp_path: Path) -> None:
    for name in ("a.onnx", "b.onnx"):
        fold(small())[0].save(tmp_path / name)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_folding_imports_neither_torch_nor_sympy_nor_the_reference_evaluator() -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from bnfold.formats.onnx.model import OnnxModel\n"
        "from bnfold.algebra.rounding import make_rounded_plan\n"
        f"m = OnnxModel.load(Path({str(CHECKPOINTS / 'placement.onnx')!r}))\n"
        "plan, weights = make_rounded_plan(m.read(None), m.locked(), m.veto)\n"
        "m.write(plan, weights).runners()\n"
        "unused = ('torch', 'onnxscript', 'onnx.reference', 'sympy.core')\n"
        "print([n for n in unused if n in sys.modules])\n"
    )
    run = [sys.executable, "-c", code]
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stderr


def test_sizes_that_are_symbols_can_still_be_added() -> None:
    code = (
        "import bnfold.formats.onnx, onnx_ir as ir, sympy\n"
        "print((ir.SymbolicDim('N') + 1).value, sympy.Integer(2) + 1)"
    )
    run = [sys.executable, "-c", code]
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.split("\n")[0] == "N + 1 3", done.stderr


def test_data_are_in_a_plain_file_that_is_named_within_the_folder(tmp_path: Path) -> None:
    """A pipe has no end, and an absolute path means another file on another machine."""
    (tmp_path / "weights").write_bytes(b"1")
    os.mkfifo(tmp_path / "pipe")
    for location in (str(tmp_path / "weights"), "pipe"):
        with pytest.raises(ModelError, match=r"outside the model's folder|not a plain file"):
            inside(tmp_path / "m.onnx", "w", location)
    assert inside(tmp_path / "m.onnx", "w", "weights") == tmp_path / "weights"
