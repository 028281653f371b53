"""A pipeline is brought up to date: what changed is built, what fails leaves the rest alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import cattrs
import onnx
import onnxruntime
import pytest

from bnfold import environment
from bnfold.errors import EnvironmentLacksError, UsageError
from bnfold.formats.opening import Opening
from bnfold.processes import supervision
from bnfold.protocol import Protocol
from bnfold.report.results import Reports
from bnfold.verbs import building, ingredients
from bnfold.verbs import pipeline as pipelines
from bnfold.verbs.building import Built, build
from bnfold.verbs.pipeline import Entry, read_pipeline
from tests.conftest import ROOT, Ended
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
    result = build(read_pipeline(path), reports=Reports(), **how)
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
    before = ingredients.key(entry)
    monkeypatch.setattr(ingredients, "versions", lambda: {"bnfold": "9"})
    assert ingredients.key(entry) != before


def test_files_that_a_model_is_made_of(tmp_path: Path) -> None:
    path = model(tmp_path / "m.onnx")
    proto = onnx.load(path)
    how = {"save_as_external_data": True, "size_threshold": 0}
    onnx.save(proto, path, location="m.bin", **how)
    for name in ("net.py", "x.npy"):
        (tmp_path / name).touch()
    gate = Protocol(recorded=(tmp_path / "x.npy",))
    entry = Entry(path, depends=(str(tmp_path / "*.py"),), gate=gate)
    names = {found.name for found in ingredients.ingredients(entry)}
    assert names == {"m.onnx", "m.bin", "net.py", "x.npy"}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package in the current folder, which is on no path yet, as for the `bnfold` command."""
    folder = tmp_path / "nets_of_mine"
    (folder / "deep").mkdir(parents=True)
    for name in ("__init__.py", "net.py", "deep/layer.py", "notes.txt"):
        (folder / name).touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place not in ("", ".")])
    return folder


@pytest.mark.parametrize("named", ["factory", "allow"])
@pytest.mark.parametrize("file", ["__init__.py", "net.py", "deep/layer.py"])
def test_source_of_the_users_own_is_what_a_model_is_made_of(
    named: str, file: str, package: Path, tmp_path: Path
) -> None:
    how: Any = {"factory": "nets_of_mine.net:Net"}
    if named == "allow":
        how = {"allow": ("nets_of_mine.deep.layer.Layer",)}
    entry = Entry(model(tmp_path / "m.onnx"), opening=Opening(**how))
    before = ingredients.key(entry)
    assert ingredients.key(entry) == before
    (package / "notes.txt").write_text("no source")
    assert ingredients.key(entry) == before
    (package / file).write_text("x = 1")
    assert ingredients.key(entry) != before


@pytest.mark.parametrize("factory", ["", ":", ".x:y", "sys:exit", "no_such_package:Net"])
def test_a_factory_without_source_is_no_failure_here(factory: str, tmp_path: Path) -> None:
    entry = Entry(model(tmp_path / "m.onnx"), opening=Opening(factory=factory))
    assert ingredients.ingredients(entry) == {tmp_path / "m.onnx"}


def test_a_folder_stands_for_all_that_is_in_it(tmp_path: Path) -> None:
    recorded = tmp_path / "recorded" / "deeper"
    recorded.mkdir(parents=True)
    (recorded / "x.npy").touch()
    for how in ({"depends": (str(tmp_path / "rec*"),)}, {"gate": Protocol(recorded=(recorded,))}):
        entry = Entry(model(tmp_path / "m.onnx"), **how)
        assert ingredients.ingredients(entry) == {tmp_path / "m.onnx", recorded / "x.npy"}


DAMAGED = {
    "empty": b"",
    "text": b"hello",
    "a field without end": b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
    "a length past the end": b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\x7f",
    "no field": b"\x08\x07\x00\x00",
    "no archive": b"PK\x03\x04" + bytes(64),
    "no pickle": b"\x80\x02}q\x00X\xff",
    "no safetensors": b"\x08\0\0\0\0\0\0\0{\xff\xfe    }",
}


def test_damaged_files_are_refused_one_by_one(tmp_path: Path, bnfold: Callable[..., Ended]) -> None:
    lines = ["defaults.output = 'deploy'"]
    for number, content in enumerate(DAMAGED.values()):
        (tmp_path / f"{number}").write_bytes(content)
        lines += [f"[models.m{number}]", f"source = '{number}'"]
    (tmp_path / "bnfold.toml").write_text("\n".join(lines))
    ended = bnfold("build", "-f", tmp_path / "bnfold.toml", "--format", "json")
    found = dict(zip(DAMAGED, ended.json["models"], strict=True))
    assert {name: each["code"] for name, each in found.items()} == dict.fromkeys(DAMAGED, 3)
    assert ended.code == 3
    assert all(each["why"] and "itself failed" not in each["why"] for each in found.values())
    assert os.listdir(tmp_path / "deploy") == []


@pytest.mark.parametrize(
    "taken", ["deploy/first.onnx", "deploy/first.bnfold.json", "deploy/first.md"]
)
def test_a_place_that_is_a_folder(taken: str, pipeline: Pipeline, tmp_path: Path) -> None:
    (tmp_path / taken).mkdir(parents=True)
    result = building.make(read_pipeline(pipeline(TWO))["first"], Reports())
    assert (result.code, result.data) == (2, {})
    assert f"{taken} is a folder" in str(result.why)


def test_an_output_that_cannot_be_made(pipeline: Pipeline, tmp_path: Path) -> None:
    entry = read_pipeline(pipeline(TWO))["first"]
    result = building.make(replace(entry, output=tmp_path / "a.onnx" / "deploy"))
    assert result.code == 2
    assert "cannot be made: Not a directory" in str(result.why)


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


def die_if_first(entry: Entry, reports: object = None) -> Built:
    if entry.name == "first":
        os._exit(9)
    return Built(entry.name, 0, {})


def test_one_that_takes_its_process_with_it(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(building, "make", die_if_first)
    result = build(read_pipeline(pipeline(TWO)), jobs=2)
    assert [built.code for built in result.models] == [3, 0]
    assert str(result.models[0].why).endswith("a.onnx: its process ended with exit code 9")
    result = build(read_pipeline(pipeline(TWO)), jobs=2, apart=False)
    assert [built.code for built in result.models] == [5, 0]
    assert "its process died" in str(result.models[0].why)


def hang_if_first(entry: Entry, reports: object = None) -> Built:
    if entry.name == "first":
        supervision.step("hang")
        time.sleep(600)
    return Built(entry.name, 0, {})


def test_one_that_hangs_has_its_own_time(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(building, "make", hang_if_first)
    result = build(read_pipeline(pipeline(TWO)), timeout=3)
    assert [built.code for built in result.models] == [3, 0]
    why = str(result.models[0].why)
    assert why.endswith("a.onnx did not get past 'hang' within 3 s")
    assert result.models[0].hint == "give it more time with --timeout"


def stopped(folder: Path, models: str, *, begun: Sequence[str], grace: float = 5) -> Stopped:
    """`bnfold build` of models that do as they are called, once those in `begun` have begun."""
    model(folder / "a.onnx")
    path = folder / "bnfold.toml"
    lines = [f"[models.{name}]\nsource = 'a.onnx'\n" for name in models.split()]
    path.write_text("defaults.output = '.'\n" + "".join(lines))
    code = (
        "import tests.verbs.behaving as behaving, bnfold.verbs.building as building\n"
        "building.make = behaving.make\n"
        "from bnfold.cli import main; main()"
    )
    command = [sys.executable, "-c", code, "build", "-f", str(path), "--jobs", "3"]
    parent = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "GRACE": str(grace)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    pids = {name: int(awaited(folder / f"{name}.begun")) for name in begun}
    return Stopped(parent, pids, folder)


@dataclass
class Stopped:
    parent: subprocess.Popen[str]
    pids: dict[str, int]
    folder: Path

    def error(self) -> str:
        """What the parent says in the end, once there are no workers any more."""
        out, err = self.parent.communicate(timeout=60)
        assert not [name for name, pid in self.pids.items() if alive(pid)]
        assert out == ""
        assert self.parent.returncode == 130
        (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
        assert "Traceback" not in err
        return line.replace(f"{self.folder}/", "").removeprefix("error: ")


def awaited(path: Path) -> str:
    """What stands in the file at `path`, once that is there."""
    deadline = time.monotonic() + 60
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < deadline, path
        time.sleep(0.05)
    return path.read_text()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


NEEDS_PROC = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks into /proc")


@NEEDS_PROC
@pytest.mark.parametrize(
    ("number", "group"), [(signal.SIGTERM, False), (signal.SIGINT, True), (signal.SIGTERM, True)]
)
def test_what_an_interrupt_says_is_true(number: int, group: bool, tmp_path: Path) -> None:
    """A model that is being written is written; one that is not, and one to come, are not."""
    models = "quick slow writing slower late"
    run = stopped(tmp_path, models, begun=["quick", "slow", "writing", "slower"])
    (os.killpg if group else os.kill)(run.parent.pid, number)
    said = "written: quick.onnx, writing.onnx; not written: slow.onnx, slower.onnx, late.onnx"
    assert run.error() == f"interrupted; {said}"
    assert not list(tmp_path.glob("*sl*.onnx"))
    assert not (tmp_path / "late.begun").exists()


@NEEDS_PROC
@pytest.mark.parametrize("grace", [0.2, 60])
def test_a_worker_that_does_not_stop_ends_all_the_same(grace: float, tmp_path: Path) -> None:
    """After a while, or at once if it is asked for again."""
    run = stopped(tmp_path, "deaf", begun=["deaf"], grace=grace)
    run.parent.terminate()
    if grace > 1:
        awaited(tmp_path / "deaf.asked")
        run.parent.terminate()
    assert run.error() == "interrupted; nothing was written"


@NEEDS_PROC
def test_workers_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    run = stopped(tmp_path, "slow writing deaf late", begun=["slow", "writing", "deaf"], grace=0.2)
    run.parent.kill()
    run.parent.communicate(timeout=60)
    deadline = time.monotonic() + 30
    while any(map(alive, run.pids.values())):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert (tmp_path / "writing.onnx").read_text() == "whole"
    assert not (tmp_path / "slow.onnx").exists()


def test_a_worker_that_somebody_else_stops(tmp_path: Path) -> None:
    run = stopped(tmp_path, "slow quick", begun=["slow"])
    os.kill(run.pids["slow"], signal.SIGTERM)
    out, _ = run.parent.communicate(timeout=60)
    assert run.parent.returncode == 130
    assert "slow: its process was told to stop" in out
    assert (tmp_path / "quick.onnx").exists()


def test_an_interrupt_on_a_cluster_of_others(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which goes on."""
    distributed = pytest.importorskip("distributed")

    class Client:
        def __init__(self, address: str, timeout: float) -> None: ...

        def get_executor(self) -> Any:
            raise KeyboardInterrupt

        def close(self) -> None: ...

    monkeypatch.setattr(distributed, "Client", Client)
    with pytest.raises(KeyboardInterrupt, match="it may still write"):
        build(read_pipeline(pipeline(TWO)), dask="tcp://127.0.0.1:1")


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
        (f"[models.{'n' * 10_000}]\nsource = 'a.pt'", "is no name"),
        ('[models.a]\nsource = "a\\u0000b"', "is no path"),
        (f"[models.a]\nsource = '{'s' * 100_000}'", "is no path"),
        (f"[models.a]\nsource = 'a'\n{'k' * 100_000} = 1", "no such setting"),
        (f"{'k' * 100_000} = 1", "is no table"),
        ("x = " + "[" * 50_000 + "]" * 50_000, "nests too deep"),
        (f"x = {'9' * 100_000}", "is no TOML"),
        ("[models.a]\nsource = 'a'\ngate = { seeds = [-1] }", "-1 is no seed"),
        (f"[models.a]\nsource = 'a'\ngate = {{ seeds = {[*range(1001)]} }}", "1001 seeds"),
        ("[models.a]\nsource='a'\nto='onnx'\nconversion={opset=-1}", "-1 is no opset"),
        (f"[models.a]\nsource='a'\nto='onnx'\nconversion={{opset={10**18}}}", "is no opset"),
        ("[models.a]\nsource='a'\nto='onnx'\nconversion={ir_version=3}", "3 is no IR version"),
        ("[models.a]\nsource='a.pt'\nto='onnx'\n[models.'a.onnx']\nsource='b.onnx'", "is no name"),
    ],
)
def test_what_is_wrong_with_a_pipeline(text: str, why: str, pipeline: Pipeline) -> None:
    with pytest.raises(UsageError) as caught:
        read_pipeline(pipeline(text))
    assert why in str(caught.value)
    assert "bnfold.toml" in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_what_models_have_in_common_is_found_out_once(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thousands of models in a pipeline took a minute before the first was built."""
    made = []

    class Counted(cattrs.Converter):
        def __init__(self, **options: Any) -> None:
            made.append("converter")
            super().__init__(**options)

    def version(name: str) -> str:
        made.append(name)
        return "1"

    monkeypatch.setattr(cattrs, "Converter", Counted)
    monkeypatch.setattr(metadata, "version", version)
    for found_once in (pipelines._converter, environment._version):
        found_once.cache_clear()
    for entry in read_pipeline(pipeline(TWO)).values():
        ingredients.key(entry)
    for found_once in (pipelines._converter, environment._version):
        found_once.cache_clear()
    assert "onnx" in made
    assert len(made) == len(set(made))


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
