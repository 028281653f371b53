"""What goes to stdout, to report files and to the step summary, whatever happens."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import click
import pytest

from bnfold.cli.output import reader_may_leave
from bnfold.cli.session import Stop, run_guarded, working
from bnfold.cli.terminal import Terminal
from bnfold.errors import ExportError, Failure
from tests.conftest import CHECKPOINTS, ROOT, Ended

Run = Callable[..., Ended]
ONNX = CHECKPOINTS / "placement.onnx"
KEPT = (
    CHECKPOINTS / "convolutional_batch_statistics.state_dict.pt",
    *("--model", "models.convolutional:convolutional_batch_statistics"),
    *("--input", "2x3x32x32", "--require-folded"),
)
STARTS = {"json": "{", "junit": "<?xml", "markdown": "## bnfold", "github": "::"}


@pytest.mark.parametrize("style", STARTS)
def test_stdout_has_the_chosen_format_alone(bnfold: Run, tmp_path: Path, style: str) -> None:
    ended = bnfold("fold", ONNX, "-o", tmp_path / "o.onnx", "--format", style)
    assert ended.code == 0
    assert ended.out.startswith(STARTS[style])
    assert ended.err == ""
    if style == "github":
        assert all(line.startswith("::") for line in ended.out.splitlines())


@pytest.mark.parametrize("style", STARTS)
def test_an_error_has_the_chosen_format_too(bnfold: Run, tmp_path: Path, style: str) -> None:
    missing = tmp_path / "no.onnx"
    for arguments in (["fold", missing], ["fold", missing, "--unknown"], ["nothing"]):
        ended = bnfold(*arguments, "--format", style)
        assert ended.code in (2, 3)
        assert ended.out.startswith(STARTS[style])
        assert ended.err.startswith("error: ")
    assert "error" in ended.out


def test_an_error_in_json_says_what_to_do(bnfold: Run, tmp_path: Path) -> None:
    ended = bnfold("inspect", tmp_path / "no.onnx", "--format=json")
    assert ended.json["error"]["code"] == ended.code == 3
    assert ended.json["verdict"] == "error"
    assert ended.json["error"]["message"].endswith("no.onnx does not exist")
    assert ended.json["error"]["hint"] == "check the path"


def test_an_old_report_does_not_survive_a_failure(bnfold: Run, tmp_path: Path) -> None:
    report = tmp_path / "r.xml"
    flags = ["-o", tmp_path / "o.onnx", "--report", report]
    assert bnfold("fold", ONNX, *flags).code == 0
    assert "<error" not in report.read_text()
    assert bnfold("fold", tmp_path / "no.onnx", *flags).code == 3
    assert "<error" in report.read_text()


@pytest.mark.parametrize(
    ("stop", "code"), [(ZeroDivisionError("x"), 5), (KeyboardInterrupt(), 130)]
)
def test_a_bug_and_an_interrupt_are_told_in_the_format(
    bnfold: Run, monkeypatch: pytest.MonkeyPatch, stop: BaseException, code: int
) -> None:
    from bnfold.verbs import folding

    def inspect(*_: object, **__: object) -> None:
        raise stop

    monkeypatch.setattr(folding, "inspect", inspect)
    ended = bnfold("inspect", ONNX, "--format", "json")
    assert ended.json["error"]["code"] == ended.code == code
    assert ended.json["verdict"] == "error"


@pytest.mark.parametrize("code", [1, None], ids=["a gate that failed", "an error"])
def test_an_interrupt_that_compiled_code_makes_something_else_of(
    code: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The interpreter of TorchScript gives a RuntimeError where Python code in it is stopped."""
    stop = Stop()

    @click.command()
    def interrupted() -> int:
        with suppress(KeyboardInterrupt):
            stop(signal.SIGTERM, None)
        if code is None:
            raise RuntimeError("the following operation failed")
        return code

    monkeypatch.setattr("sys.argv", ["bnfold"])
    assert run_guarded(interrupted, stop) == 130


def test_what_c_prints_goes_to_stderr(bnfold: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The C library holds back what it prints to a file or a pipe."""
    from bnfold.verbs import folding

    library, inspect = ctypes.CDLL(None), folding.inspect

    def loud(*arguments: object, **options: object) -> object:
        found = inspect(*arguments, **options)  # type: ignore[arg-type]
        library.puts(b"from the C library")
        print("from Python")  # noqa: T201
        os.write(1, b"from nowhere\n")
        return found

    monkeypatch.setattr(folding, "inspect", loud)
    ended = bnfold("inspect", ONNX, "--format", "json")
    library.fflush(None)
    assert json.loads(ended.out)["schema_version"] == 1
    for place in ("the C library", "Python", "nowhere"):
        assert f"from {place}" in ended.err


def test_junit_has_every_batchnorm_that_must_be_folded(bnfold: Run, tmp_path: Path) -> None:
    ended = bnfold("fold", *KEPT, "-o", tmp_path / "o.pt", "--format", "junit")
    assert ended.code == 1
    root = ElementTree.fromstring(ended.out)
    failed = [case for case in root.iter("testcase") if case.find("failure") is not None]
    assert len(failed) == 2
    assert all(case.attrib["classname"].endswith(" BatchNorm") for case in failed)
    assert "batch" in failed[0].find("failure").attrib["message"]  # type: ignore[union-attr]


def test_github_warns_of_kept_batchnorms_or_fails_for_them(bnfold: Run, tmp_path: Path) -> None:
    *rest, _ = KEPT
    kept = bnfold("inspect", *rest, "--format", "github")
    assert (kept.code, kept.out.count("::warning"), kept.out.count("::error")) == (0, 2, 0)
    required = bnfold("inspect", *KEPT, "--format", "github")
    assert (required.code, required.out.count("::warning")) == (1, 0)
    assert required.out.startswith("::error ")


def test_the_step_summary_is_added_to(
    bnfold: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    summary = tmp_path / "summary.md"
    summary.write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    assert bnfold("inspect", ONNX, "--format", "github").code == 0
    assert bnfold("inspect", tmp_path / "no.onnx", "--format", "github").code == 3
    assert bnfold("inspect", ONNX).code == 0
    lines = summary.read_text().splitlines()
    assert lines[0] == "before"
    headings = [line for line in lines if line.startswith("## ")]
    assert len(headings) == 2
    assert headings[1] == "## bnfold inspect: error"


def test_a_summary_that_cannot_be_written_fails(
    bnfold: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path))
    ended = bnfold("inspect", ONNX, "--format", "github")
    assert ended.code == ExportError.exit_code
    assert ended.out.startswith("::error ")
    assert "GITHUB_STEP_SUMMARY" in ended.err


def test_reports_of_every_suffix(bnfold: Run, tmp_path: Path) -> None:
    names = ["r.txt", "r.json", "r.xml", "r.md"]
    flags = [part for name in names for part in ("--report", tmp_path / name)]
    assert bnfold("inspect", ONNX, *flags).code == 0
    starts = [(tmp_path / name).read_text()[:5] for name in names]
    assert starts == [str(ONNX)[:5], '{\n  "', "<?xml", "## bn"]


def test_a_package_that_is_missing_is_named(
    bnfold: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As on a host that has only what golden bundles need, whose report would be a page."""
    monkeypatch.setitem(sys.modules, "markupsafe", None)
    ended = bnfold("doctor", "--report", tmp_path / "r.html", "--report", tmp_path / "r.json")
    assert ended.code == 4
    assert "the package markupsafe is not installed" in ended.err
    assert "pip install bnfold" in ended.err
    assert [path.name for path in tmp_path.iterdir()] == ["r.json"]


def test_a_module_of_bnfold_that_is_missing_is_a_fault() -> None:
    error = ModuleNotFoundError("No module named 'bnfold.lost'", name="bnfold.lost")
    assert Failure.of(error).code == 5


def test_a_reader_that_leaves_does_not_change_the_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[int] = []
    monkeypatch.setattr(os, "dup2", lambda _, to: moved.append(to))
    reader, writer = os.pipe()
    os.close(reader)
    file = os.fdopen(writer, "w")
    with reader_may_leave():
        Terminal(file=file).print("x" * 100_000)
    with suppress(BrokenPipeError):
        file.close()
    assert moved == [1]


def test_a_stdout_that_was_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout", None)
    with working():
        pass


FULL = Path("/dev/full")


@pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full")
class TestFull:
    """Neither a traceback nor a wrong exit code, whatever cannot be written."""

    @pytest.fixture(params=["stdout", "stderr", "both"])
    def run(self, request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., Ended]:
        """A command with nowhere to write to."""

        def run(*arguments: object) -> Ended:
            streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
            with FULL.open("wb") as full:
                chosen = streams if request.param == "both" else (request.param,)
                streams.update(dict.fromkeys(chosen, full))
                done = subprocess.run(
                    [sys.executable, "-m", "bnfold", *map(str, arguments)],
                    cwd=ROOT,
                    text=True,
                    check=False,
                    **streams,
                )
            return Ended(done.returncode, done.stdout or "", done.stderr or "")

        run.full = request.param
        return run

    @pytest.mark.parametrize("style", ["text", "json"])
    def test_a_report(self, run: Any, style: str, tmp_path: Path) -> None:
        """The model was written before, and is."""
        result = tmp_path / "o.onnx"
        ended = run("fold", ONNX, "-o", result, "--format", style)
        assert result.exists()
        assert ended.code == (0 if run.full == "stderr" else 5)
        if run.full == "stdout":
            assert ended.err.startswith("error: the report cannot be written to stdout: No space")
            assert len(ended.err.splitlines()) == 2

    def test_an_error(self, run: Any, tmp_path: Path) -> None:
        ended = run("fold", tmp_path / "no.onnx", "--format", "json")
        assert ended.code == 3
        assert run.full != "stderr" or json.loads(ended.out)["error"]["code"] == 3
        assert "Traceback" not in ended.err

    def test_help(self, run: Any) -> None:
        ended = run("--help")
        assert ended.code == (0 if run.full == "stderr" else 5)
        assert "Traceback" not in ended.err


@pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full")
@pytest.mark.parametrize("option", ["-o", "--report"])
def test_a_full_device_is_no_target(bnfold: Run, option: str) -> None:
    ended = bnfold("fold", ONNX, option, FULL)
    assert ended.code == 2
    assert ended.err.startswith("error: ")


def test_a_summary_that_cannot_be_written(bnfold: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(FULL))
    ended = bnfold("inspect", ONNX, "--format", "github")
    assert ended.code == 5
    assert "GITHUB_STEP_SUMMARY /dev/full cannot be written: No space left" in ended.err


def test_a_disk_that_is_full_is_no_fault_of_bnfold() -> None:
    failure = Failure.of(OSError(28, "No space left on device", "/tmp/x"))
    assert (failure.code, failure.message) == (5, "there is no space left on the disk for /tmp/x")
