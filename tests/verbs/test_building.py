"""A pipeline is brought up to date: what changed is built, what fails leaves the rest alone."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest

from bnfold.errors import EnvironmentLacksError, UsageError
from bnfold.protocol import Protocol
from bnfold.verbs import building
from bnfold.verbs.building import Built, build
from bnfold.verbs.pipeline import Entry, read_pipeline
from tests.formats.onnx_nets import Net

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

Pipeline = Callable[[str], Path]


def model(path: Path, seed: int = 0, broken: bool = False) -> Path:
    net = Net(seed=seed)
    net.output(net.bn(net.conv(net.input("x", "N", 3, 9, 7), 3, 4), 4))
    proto = net.proto()
    if broken:
        proto.graph.initializer[-1].raw_data = b"\0" * 4 * 4  # variances
        proto.graph.node[-1].attribute.append(onnx.helper.make_attribute("epsilon", 0.0))
    onnx.save(proto, path)
    return path


@pytest.fixture
def pipeline(tmp_path: Path) -> Pipeline:
    """Writes a pipeline file beside two models, a.onnx and b.onnx."""
    model(tmp_path / "a.onnx")
    model(tmp_path / "b.onnx", seed=1)

    def write(text: str) -> Path:
        path = tmp_path / "bnfold.toml"
        path.write_text(text)
        return path

    return write


TWO = """
[defaults]
output = "deploy"
require_folded = true

[models.first]
source = "a.onnx"
reports = ["md"]

[models.second]
source = "b.onnx"
to = "onnx"
conversion = { output_names = ["y"] }
gate = { seeds = [1, 2] }
"""


def states(path: Path, **how: Any) -> dict[str, str]:
    result = build(read_pipeline(path), **how)
    return {built.name: built.state for built in result.models}


def test_everything_is_built_once(pipeline: Pipeline, tmp_path: Path) -> None:
    path = pipeline(TWO)
    assert states(path, jobs=2) == {"first": "built", "second": "built"}
    assert sorted(os.listdir(tmp_path / "deploy")) == [
        "first.bnfold.json",
        "first.md",
        "first.onnx",
        "second.bnfold.json",
        "second.onnx",
    ]
    second = onnx.load(tmp_path / "deploy" / "second.onnx")
    assert [node.op_type for node in second.graph.node] == ["Conv"]
    assert second.graph.output[0].name == "y"
    for name in ("first", "second"):
        onnxruntime.InferenceSession(
            tmp_path / "deploy" / f"{name}.onnx", providers=["CPUExecutionProvider"]
        )
    assert states(path) == {"first": "up to date", "second": "up to date"}
    assert states(path, force=True, names=["first"]) == {"first": "built"}


def changed_source(folder: Path) -> None:
    model(folder / "a.onnx", seed=5)


def changed_setting(folder: Path) -> None:
    path = folder / "bnfold.toml"
    path.write_text(path.read_text().replace('source = "a.onnx"', 'source = "a.onnx"\ngate.k = 7'))


def changed_artefact(folder: Path) -> None:
    with (folder / "deploy" / "first.onnx").open("ab") as file:
        file.write(b"\0")


def lost_artefact(folder: Path) -> None:
    (folder / "deploy" / "first.onnx").unlink()


def damaged_record(folder: Path) -> None:
    (folder / "deploy" / "first.bnfold.json").write_text("{")


@pytest.mark.parametrize(
    "change", [changed_source, changed_setting, changed_artefact, lost_artefact, damaged_record]
)
def test_what_changed_is_built_again(
    change: Callable[[Path], None], pipeline: Pipeline, tmp_path: Path
) -> None:
    path = pipeline(TWO)
    states(path)
    change(tmp_path)
    assert states(path) == {"first": "built", "second": "up to date"}


def test_another_version_of_a_package_builds_again(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = read_pipeline(pipeline(TWO))["first"]
    before = building._key(entry)
    monkeypatch.setattr(building, "versions", lambda: {"bnfold": "9"})
    assert building._key(entry) != before


def test_files_that_a_model_is_made_of(tmp_path: Path) -> None:
    path = model(tmp_path / "m.onnx")
    proto = onnx.load(path)
    how = {"save_as_external_data": True, "size_threshold": 0}
    onnx.save(proto, path, location="m.bin", **how)
    for name in ("net.py", "x.npy"):
        (tmp_path / name).touch()
    gate = Protocol(recorded=(tmp_path / "x.npy",))
    entry = Entry(path, depends=(str(tmp_path / "*.py"),), gate=gate)
    names = {found.name for found in building._read(entry)}
    assert names == {"m.onnx", "m.bin", "net.py", "x.npy"}


def test_one_that_fails_leaves_the_others_alone(
    pipeline: Pipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model(tmp_path / "b.onnx", broken=True)
    path = pipeline(TWO + '\n[models.third]\nsource = "c.onnx"\n')
    result = build(read_pipeline(path), jobs=2)
    assert [built.code for built in result.models] == [0, 3, 3]
    assert result.code == 3
    assert "broken" in str(result.models[1].why)
    assert (tmp_path / "deploy" / "first.onnx").exists()
    assert not (tmp_path / "deploy" / "second.onnx").exists()
    assert "c.onnx" in str(result)


def test_a_batchnorm_that_stays(pipeline: Pipeline, tmp_path: Path) -> None:
    net = Net()
    x = net.input("x", "N", 3, 9, 7)
    net.output(net.bn(net.node("Sigmoid", x), 3))
    onnx.save(net.proto(), tmp_path / "a.onnx")
    result = build(read_pipeline(pipeline(TWO)), ["first"])
    assert result.code == 1
    assert result.models[0].why == "1 BatchNorms are kept"
    assert not (tmp_path / "deploy" / "first.onnx").exists()


def die_if_first(entry: Entry) -> Built:
    if entry.name == "first":
        os._exit(9)
    return Built(entry.name, 0, {})


def test_one_that_takes_its_process_with_it(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(building, "make", die_if_first)
    result = build(read_pipeline(pipeline(TWO)), jobs=2)
    assert [built.code for built in result.models] == [3, 0]
    assert "its process ended with exit code 9" in str(result.models[0].why)
    result = build(read_pipeline(pipeline(TWO)), jobs=2, apart=False)
    assert [built.code for built in result.models] == [5, 0]
    assert "its process died" in str(result.models[0].why)


def hang_if_first(entry: Entry) -> Built:
    if entry.name == "first":
        time.sleep(600)
    return Built(entry.name, 0, {})


def test_one_that_hangs(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "make", hang_if_first)
    result = build(read_pipeline(pipeline(TWO)), jobs=1, timeout=0.5)
    assert [built.code for built in result.models] == [3, 0]
    assert "within 0.5 s" in str(result.models[0].why)


def test_on_a_cluster(pipeline: Pipeline, tmp_path: Path) -> None:
    path = pipeline(TWO)
    assert states(path, dask="local") == {"first": "built", "second": "built"}
    assert (tmp_path / "deploy" / "second.onnx").exists()


def test_a_cluster_that_does_not_answer(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(building, "PATIENCE", 1)
    with pytest.raises(EnvironmentLacksError, match="no Dask scheduler answers"):
        build(read_pipeline(pipeline(TWO)), dask="tcp://127.0.0.1:1")


def test_a_model_that_is_not_there(pipeline: Pipeline) -> None:
    with pytest.raises(UsageError, match="'third' is no model here") as caught:
        build(read_pipeline(pipeline(TWO)), ["third"])
    assert "first, second" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "names no model"),
        ("x = 1", "'x' is no table"),
        ("models = 3", "models is no table"),
        ("[models]\na = 3", "models.a is no table"),
        ("[[", "is no TOML"),
        ("[models.a]", "this is missing @ models.a.source"),
        ("[models.a]\nsource = 3", "3 is no str @ models.a.source"),
        ("[models.a]\nsorce = 'a'", "no such setting: sorce"),
        ("[models.a]\nsource = 'a'\ngate = { kk = 1 }", "no such setting: kk @ models.a.gate"),
        (
            "[models.a]\nsource = 'a'\ngate = { k = 'a' }",
            "'a' is no int or float @ models.a.gate.k",
        ),
        ("[models.a]\nsource = 'a'\nrequire_folded = 1", "1 is no bool"),
        ("[models.a]\nsource = 'a'\nto = ['tflite']", "tflite not in"),
        ("[models.a]\nsource = 'a'\ngate = { k = -1 }", "k = -1.0 is no factor"),
        ("[models.a]\nsource = 'a'\nconversion = { dtype = 'float16' }", "nothing to become"),
        ("[models.a]\nsource = 'a'\nconversion = { opset = 18 }", "nothing to become"),
        ("[models.a]\nsource = 'a'\noutput = 'bnfold.toml'", "output of a is no folder"),
        ("[models.a]\nsource = 'a.onnx'\noutput = '.'", "would replace its source"),
        ("[models.'../a']\nsource = 'a.pt'", "'../a' is no name"),
        ("[models.a]\nsource='a.pt'\nto='onnx'\n[models.'a.onnx']\nsource='b.onnx'", "is no name"),
    ],
)
def test_what_is_wrong_with_a_pipeline(text: str, why: str, pipeline: Pipeline) -> None:
    with pytest.raises(UsageError) as caught:
        read_pipeline(pipeline(text))
    assert why in str(caught.value)
    assert "bnfold.toml" in str(caught.value)


def test_no_pipeline(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        read_pipeline(tmp_path / "bnfold.toml")


def test_the_command(pipeline: Pipeline, bnfold: Callable[..., Any]) -> None:
    path = pipeline(TWO)
    done = bnfold("build", "-f", path, "--format", "json")
    data = json.loads(done.out)
    assert done.code == 0
    assert [(each["name"], each["state"]) for each in data["models"]] == [
        ("first", "built"),
        ("second", "built"),
    ]
    again = bnfold("build", "-f", path)
    assert again.out.count("up to date") == 2
    assert bnfold("build", "-f", path, "third").code == 2
