"""Golden bundles: the same verdict where the original is not, and no trust in what was changed."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import bnfold as package
from benchmarks.fooling import made
from bnfold.errors import BnfoldError, ModelError, UsageError
from bnfold.formats.onnx.model import OnnxModel
from bnfold.protocol import Protocol
from bnfold.runtimes import NotComputableError, Sample
from bnfold.runtimes.ort import TINY
from bnfold.verification.cases import Case
from bnfold.verification.golden import MANIFEST, Golden, is_golden, read_golden, write_golden
from bnfold.verification.recorder import Recorder
from tests.conftest import CHECKPOINTS, ROOT, Ended

Run = Callable[..., Ended]
ONNX = CHECKPOINTS / "placement.onnx"
OTHER = CHECKPOINTS / "batch_norm_network.onnx"
FRAMEWORKS = ("torch", "onnx", "onnx_ir", "onnxscript", "onnxsim", "safetensors", "ml_dtypes")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("golden") / "g.npz"
    package.golden(ONNX).save(path)
    return path


@pytest.fixture(scope="module")
def folded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("folded") / "f.onnx"
    package.fold(ONNX, verify=False).save(path)
    return path


def damaged(folded: Path, target: Path) -> Path:
    """The folded model with one bias moved by 1 %."""
    model = onnx.load(folded)
    bias = next(tensor for tensor in model.graph.initializer if len(tensor.dims) == 1)
    values = onnx.numpy_helper.to_array(bias).copy()
    values[0] += 0.01 * np.abs(values).max()
    bias.CopyFrom(onnx.numpy_helper.from_array(values, bias.name))
    onnx.save(model, target)
    return target


def test_the_verdict_is_that_beside_the_original(
    recorded: Path, folded: Path, tmp_path: Path
) -> None:
    for candidate in (folded, damaged(folded, tmp_path / "d.onnx")):
        beside, golden = package.verify(ONNX, candidate), package.verify(recorded, candidate)
        assert golden.passed == beside.passed == (candidate == folded)
        assert [row.cells() for row in golden.rows] == [row.cells() for row in beside.rows]


def test_a_host_without_the_frameworks_verifies(
    recorded: Path, folded: Path, tmp_path: Path
) -> None:
    blocked = f"""
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {FRAMEWORKS!r}:
            raise ImportError(name + " is blocked")

sys.meta_path.insert(0, Blocked())
from bnfold.cli import main
main()
"""
    for candidate, code in ((folded, 0), (damaged(folded, tmp_path / "d.onnx"), 1)):
        arguments = ["verify", "--golden", recorded, candidate, "--format", "json"]
        ended = subprocess.run(
            [sys.executable, "-c", blocked, *map(str, arguments)],
            capture_output=True,
            text=True,
            cwd=ROOT,
        )
        assert ended.returncode == code, ended.stderr
        verdict = json.loads(ended.stdout)["verdict"]
        assert verdict == ("fail" if code else "pass")


def test_a_size_that_froze_is_seen(recorded: Path, folded: Path, tmp_path: Path) -> None:
    model = onnx.load(folded)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 3
    onnx.save(model, tmp_path / "frozen.onnx")
    verdict = package.verify(recorded, tmp_path / "frozen.onnx")
    assert not verdict.passed
    assert verdict.rows[0].place.case == "declared sizes"
    assert "axis 0 froze to 3" in str(verdict.rows[0].why)


def test_inputs_of_ones_own_are_recorded(folded: Path, tmp_path: Path) -> None:
    images = np.random.default_rng(0).random((2, 3, 32, 32), np.float32)
    golden = package.golden(ONNX, images)
    golden.save(tmp_path / "g.npz")
    (first, *_) = read_golden(tmp_path / "g.npz").cases
    assert (first.name, first.given) == ("given", True)
    assert np.array_equal(first.sample["input"], images)
    images[0, 0, 0, 0] = np.nan
    with pytest.raises(ModelError, match="given"):
        package.golden(ONNX, images * np.nan)


def test_two_recordings_are_the_same_file(recorded: Path, tmp_path: Path) -> None:
    package.golden(ONNX).save(tmp_path / "again.npz")
    assert (tmp_path / "again.npz").read_bytes() == recorded.read_bytes()


def test_it_holds_what_it_says(recorded: Path) -> None:
    golden = read_golden(recorded)
    assert golden.source == {
        "path": ONNX.name,
        "format": "onnx",
        "sha256": hashlib.sha256(ONNX.read_bytes()).hexdigest(),
    }
    assert list(golden.runs) == ["cpu unoptimised", "cpu"]
    assert golden.versions["numpy"] == np.__version__
    assert golden.seeds == (0,)
    for case in golden.cases:
        exact = OnnxModel.load(ONNX).truth()(case.sample)
        assert np.array_equal(golden.float64(case.sample)["output"], exact["output"])
    with np.load(recorded) as plain:
        assert plain["0/input/0"].shape == (3, 3, 32, 32)


def test_a_module_is_recorded_with_its_own_floor(folded: Path, tmp_path: Path) -> None:
    from models.forms import load_trained

    golden = package.golden(load_trained("placement"), "Nx3x32x32", protocol=Protocol(seeds=(1, 2)))
    assert list(golden.runs) == ["torch cpu", "cpu unoptimised", "cpu"]
    assert {case.name.split(", ")[1] for case in golden.cases} == {"seed 1", "seed 2"}
    assert package.verify(golden, folded).passed
    golden.save(tmp_path / "g.npz")
    assert package.verify(tmp_path / "g.npz", load_trained("placement")).passed


def test_numbers_of_every_type_come_back(tmp_path: Path) -> None:
    dtypes = ["bool", "int8", "int64", "uint16", "float16", "float64", "complex64"]
    arrays = {name: np.ones((2, 3), name) for name in dtypes}
    arrays["bfloat16"] = np.array([[1.5, -2.0]], ml_dtypes.bfloat16)
    arrays["big"] = np.arange(3, dtype=">f4")
    arrays |= {"scalar": np.array(3.5), "none": np.zeros((0, 4)), "turned": np.eye(3)[:, :2].T}
    write_golden(Golden({}, (Case("c", arrays),), {"cpu": (arrays,)}, {}), tmp_path / "g.npz")
    golden = read_golden(tmp_path / "g.npz")
    for found in (golden.cases[0].sample, golden.runs["cpu"][0]):
        for name, array in arrays.items():
            assert found[name].shape == array.shape
            assert found[name].dtype.name == array.dtype.name
            assert np.array_equal(found[name], array)


def test_text_cannot_be_recorded(tmp_path: Path) -> None:
    arrays = {"words": np.array(["a"], object)}
    with pytest.raises(UsageError, match="words is of type object"):
        write_golden(Golden({}, (Case("c", arrays),), {"cpu": (arrays,)}, {}), tmp_path / "g.npz")


def test_without_float64_it_is_judged_by_half_the_digits(
    monkeypatch: pytest.MonkeyPatch, folded: Path, tmp_path: Path
) -> None:
    class NoTruth:
        name, input_names = "float64", ("input",)

        def __call__(self, sample: Sample) -> Any:
            raise NotComputableError("Odd has no float64")

    monkeypatch.setattr(OnnxModel, "truth", lambda self: NoTruth())
    golden = package.golden(ONNX)
    assert (golden.truth, golden.inexact) == (None, "Odd has no float64")
    golden.save(tmp_path / "g.npz")
    verdict = package.verify(tmp_path / "g.npz", folded)
    assert (verdict.passed, verdict.truth) == (True, "the original as it runs on cpu unoptimised")
    assert any("Odd has no float64" in note for note in verdict.notes)


def test_cases_that_the_original_cannot_run_are_left_out(tmp_path: Path) -> None:
    """A fixed Reshape: the batch is declared free, but only three will do."""
    values = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, [12]),
    ]
    shape = helper.make_tensor("s", TensorProto.INT64, [1], [12])
    node = helper.make_node("Reshape", ["x", "s"], ["y"])
    graph = helper.make_graph([node], "g", values[:1], values[1:], [shape])
    opset = helper.make_opsetid("", 17)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=8)
    golden = package.golden(model)
    assert "batch 1" not in [case.name for case in golden.cases]
    assert any("batch 1 is left out" in note for note in golden.notes)


Members = dict[str, bytes]
Change = Callable[[Members, dict[str, Any]], None]


def rewritten(path: Path, target: Path, change: Change, *, digest: bool = True) -> Path:
    """The bundle after `change` to its members and manifest, with a digest that fits again."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    manifest = json.loads(members.pop(MANIFEST))
    change(members, manifest)
    if digest and "digest" in manifest:
        manifest.pop("digest")
        for record in records(manifest):
            content = members.get(record["member"], b"")
            record["sha256"] = hashlib.sha256(content).hexdigest()
        plain = json.dumps(manifest, sort_keys=True).encode()
        manifest["digest"] = hashlib.sha256(plain).hexdigest()
    with zipfile.ZipFile(target, "w") as archive:
        archive.writestr(MANIFEST, json.dumps(manifest))
        for name, content in members.items():
            archive.writestr(name, content)
    return target


def records(manifest: Mapping[str, Any]) -> list[dict[str, str]]:
    """Every record of an array in a manifest."""
    groups = [
        group
        for case in manifest.get("cases", [])
        for group in (case.get("input"), case.get("float64"), *case.get("runs", {}).values())
    ]
    return [record for group in groups if isinstance(group, dict) for record in group.values()]


def npy(array: Any, *, pickled: bool = False) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=pickled)
    return stream.getvalue()


def put(member: str, content: bytes) -> Change:
    return lambda members, manifest: members.update({member: content})


def drop(key: str) -> Change:
    return lambda members, manifest: manifest.pop(key)


FIRST = "0/input/0.npy"
CHANGES: dict[str, tuple[Change, str]] = {
    "another output": (put("0/float64/0.npy", npy(np.zeros((3, 9)))), "differ in number or shape"),
    "pickled": (put(FIRST, npy(np.array([{}], object), pickled=True)), "does not hold"),
    "too short": (put(FIRST, npy(np.zeros(9))[:-8]), "does not hold"),
    "not an array": (put(FIRST, b"nothing"), "magic"),
    "long header": (put(FIRST, b"\x93NUMPY\x01\x00\xff\xff" + b" " * 65535), "Header"),
    "newer": (lambda _, manifest: manifest.update(schema_version=2), "schema_version is 2"),
    "no cases": (lambda _, manifest: manifest.update(cases=[]), "damaged"),
    "no runs": (lambda _, m: [c.update(runs={}) for c in m["cases"]], "no cases or no runs"),
    "no input": (lambda _, m: m["cases"][1].update(input={}), "other inputs than the first"),
    "no output": (lambda _, m: m["cases"][1]["runs"].update(cpu={}), "number or shape"),
    "no member": (lambda members, _: members.pop(FIRST), "no item named '0/input/0.npy'"),
    "no type": (lambda _, m: records(m)[0].update(dtype="float7"), "float7"),
    "wider type": (lambda _, m: records(m)[0].update(dtype="bfloat16"), "damaged"),
    "free sizes of no axis": (
        lambda _, m: m.update(free={next(iter(m["cases"][0]["input"])): {"-9": "N"}}),
        "free sizes that",
    ),
    "free sizes of no input": (lambda _, m: m.update(free={"no": {"0": "N"}}), "that 'no' does"),
    "a list": (lambda _, m: m["cases"][0].update(input=[1]), "damaged"),
    **{f"no {key}": (drop(key), f"it has no '{key}'") for key in ("source", "seeds", "digest")},
}


@pytest.mark.parametrize(("change", "said"), CHANGES.values(), ids=CHANGES)
def test_a_bundle_that_does_not_fit_is_refused(
    recorded: Path, tmp_path: Path, change: Change, said: str
) -> None:
    path = rewritten(recorded, tmp_path / "g.npz", change)
    with pytest.raises(ModelError, match="damaged") as caught:
        read_golden(path)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "bnfold golden" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (put(FIRST, npy(np.zeros((3, 3, 32, 32), np.float32))), f"{FIRST} was edited"),
        (lambda _, m: m.update(seeds=[1]), "golden.json was edited"),
        (lambda _, m: records(m)[0].update(sha256="0"), "golden.json was edited"),
    ],
    ids=["array", "seeds", "hash"],
)
def test_an_edit_is_seen(recorded: Path, tmp_path: Path, change: Change, said: str) -> None:
    path = rewritten(recorded, tmp_path / "g.npz", change, digest=False)
    with pytest.raises(ModelError, match=said):
        read_golden(path)


def test_the_rewriting_itself_is_accepted(recorded: Path, tmp_path: Path) -> None:
    path = rewritten(recorded, tmp_path / "g.npz", lambda members, manifest: None)
    assert len(read_golden(path).cases) == len(read_golden(recorded).cases)


def test_a_huge_array_takes_no_memory(recorded: Path, tmp_path: Path) -> None:
    """2^60 numbers in the header of an array of three."""
    plain = npy(np.zeros(3))
    huge = plain.replace(b"(3,), }" + b" " * 18, b"(1152921504606846976,), }")
    assert len(huge) == len(plain)
    path = rewritten(recorded, tmp_path / "g.npz", put(FIRST, huge))
    with pytest.raises(ModelError, match="does not hold"):
        read_golden(path)


def test_a_bomb_is_not_unpacked(recorded: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(recorded) as archive:
        manifest = archive.read(MANIFEST)
    with zipfile.ZipFile(tmp_path / "g.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(MANIFEST, manifest)
        archive.writestr("0/input/0.npy", bytes(1 << 22))
    with pytest.raises(ModelError, match="compressed"):
        read_golden(tmp_path / "g.npz")


def test_sizes_beyond_the_file_are_refused(recorded: Path, tmp_path: Path) -> None:
    """The directory says 4 GB for a member that is stored as it is."""
    content = recorded.read_bytes()
    start = content.rindex(b"PK\x01\x02")
    forged = content[: start + 20] + b"\xf0\xff\xff\xff" * 2 + content[start + 28 :]
    (tmp_path / "g.npz").write_bytes(forged)
    with pytest.raises(ModelError, match="larger than the file"):
        read_golden(tmp_path / "g.npz")


@pytest.mark.parametrize("depth", [100_000])
def test_deep_json_is_refused(tmp_path: Path, depth: int) -> None:
    with zipfile.ZipFile(tmp_path / "g.npz", "w") as archive:
        archive.writestr(MANIFEST, "[" * depth)
    with pytest.raises(ModelError, match="damaged"):
        read_golden(tmp_path / "g.npz")


@pytest.mark.parametrize("keep", [0.2, 0.7, 0.99])
def test_a_truncated_bundle_is_refused(recorded: Path, tmp_path: Path, keep: float) -> None:
    content = recorded.read_bytes()
    (tmp_path / "g.npz").write_bytes(content[: int(len(content) * keep)])
    assert not is_golden(tmp_path / "g.npz")
    with pytest.raises(ModelError, match="no golden bundle"):
        read_golden(tmp_path / "g.npz")


def test_on_the_command_line(bnfold: Run, folded: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "g.npz"
    made = bnfold("golden", ONNX, "-o", bundle, "--seed", 3, "--format", "json")
    assert made.code == 0, made
    assert made.json["seeds"] == [3]
    assert made.json["result"]["sha256"] == hashlib.sha256(bundle.read_bytes()).hexdigest()
    assert bnfold("verify", "--golden", bundle, folded).code == 0
    ended = bnfold("verify", bundle, OTHER)
    assert (ended.code, "does not run" in ended.out) == (1, True)
    told = bnfold("golden", ONNX, "-o", tmp_path / "h.npz").out
    assert "10 cases: noise" in told
    assert "recorded: float64, cpu unoptimised, cpu" in told


def test_a_bundle_that_cannot_be_finished_leaves_the_old_one(
    recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "g.npz"
    target.write_bytes(b"before")

    def broken(golden: Golden, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError("no space left")

    golden = read_golden(recorded)
    monkeypatch.setattr("bnfold.verification.golden.write_golden", broken)
    with pytest.raises((OSError, BnfoldError)):
        golden.save(target)
    assert target.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [target]


def test_of_several_runs_of_a_sample_the_first_is_kept() -> None:
    """The next ones only show that the model repeats itself, or are of the same sample nudged."""
    runs = iter(range(9))

    class Counting:
        name, input_names = "counting", ("x",)

        def __call__(self, sample: Any) -> Any:
            return {"y": np.array([next(runs)])}

    recorder, sample = Recorder(Counting()), {"x": np.zeros(1)}
    assert [int(recorder(sample)["y"][0]) for _ in range(3)] == [0, 0, 0]
    assert int(recorder.taken[id(sample)]["y"][0]) == 0


def test_what_bounds_an_output_is_recorded(tmp_path: Path) -> None:
    """Without it a sigmoid far below 0 would be judged by its own size."""
    model = made("    z = Sub (n, #16)\n    y = Sigmoid (z)")
    x = {"x": np.zeros((2, 3, 9, 11), np.float32)}
    bundle = tmp_path / "g.npz"
    package.golden(model, x).save(bundle)
    assert read_golden(bundle).bounds == (1.0,)
    found = package.verify(bundle, package.fold(model, x).model)
    assert found.passed
    assert found.truth == "float64"


def test_wrong_calls(bnfold: Run, recorded: Path, folded: Path, tmp_path: Path) -> None:
    for arguments, code, said in (
        (["verify", folded], 2, "two models"),
        (["verify", "--golden", recorded], 2, "two models"),
        (["verify", "--golden", recorded, folded, folded], 2, "two models"),
        (["verify", "--golden", folded, folded], 3, "no golden bundle"),
        (["verify", "--golden", tmp_path / "no.npz", folded], 3, "does not exist"),
        (["verify", "--golden", recorded, tmp_path / "no.onnx"], 3, "does not exist"),
        (["verify", "--golden", recorded, recorded], 3, "zip"),
        (["verify", "--golden", recorded, folded, "--seed", 1], 2, "its own inputs"),
        (["verify", "--golden", recorded, folded, "--input", "1x3x32x32"], 2, "its own inputs"),
        (["golden", ONNX, "-o", ONNX / "g.npz"], 2, "is no folder"),
        (["golden", tmp_path / "no.onnx", "-o", tmp_path / "g.npz"], 3, "does not exist"),
    ):
        ended = bnfold(*arguments)
        assert ended.code == code, ended
        assert said in ended.err
    assert list(tmp_path.iterdir()) == []


def test_the_smallest_model_is_one_relu() -> None:
    model = onnx.load_from_string(TINY)
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node] == ["Relu"]
