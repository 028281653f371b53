"""Plots: what they show, that they come out the same, and what is said where there is none."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bnfold.environment import Machine
from bnfold.errors import UsageError
from bnfold.protocol import Protocol
from bnfold.report import plot
from bnfold.report.document import Document, Section
from bnfold.report.speed import bench_document
from bnfold.verbs.benching import BenchResult, Measurement, Subject, Timing
from bnfold.verification import Row, Verification
from bnfold.verification.gate import Place
from tests.conftest import CHECKPOINTS, Ended

ONNX = CHECKPOINTS / "placement.onnx"


def timed() -> Document:
    measured = tuple(
        Measurement(name, "cpu", batch, (seconds, 2 * seconds, 3 * seconds), 0.1, None)
        for batch in (1, 8)
        for name, seconds in (("$before", 0.002), ("<after>", 0.001))
    )
    subjects = tuple(Subject(name, "onnx", 1, None) for name in ("$before", "<after>"))
    machine = Machine("a processor", 2, "a system", {})
    return bench_document(BenchResult(subjects, measured, Timing(rounds=3), machine, ()))


def judged() -> Document:
    rows = tuple(
        Row(Place(case, "cpu", "y"), "max", floor, error, 1.0, 0.1)
        for case, floor, error in (("noise", 1e-6, 2e-6), ("zeros", 0.0, float("inf")))
    )
    return Document(
        "bnfold verify", sections=(Section(verification=Verification(Protocol(), rows)),)
    )


def test_latencies_have_a_panel_for_each_place() -> None:
    figure = plot._figure(timed())
    assert [panel.get_title(loc="left") for panel in figure.axes] == [
        "cpu, batch 1",
        "cpu, batch 8",
    ]
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names == ["$before", "<after>"]
    assert figure.axes[0].get_xlim()[0] == 0


def test_errors_and_floors_that_have_a_place_are_drawn() -> None:
    (panel,) = plot._figure(judged()).axes
    assert panel.get_xscale() == "log"
    drawn: dict[str, list[Any]] = {line.get_label(): list(line.get_xdata()) for line in panel.lines}
    assert drawn == {"floor": [1e-6], "error": [2e-6]}


@pytest.mark.parametrize("suffix", plot.SUFFIXES)
@pytest.mark.parametrize("document", [timed, judged], ids=["latencies", "errors"])
def test_the_same_bytes_come_out(
    tmp_path: Path, suffix: str, document: Callable[[], Document]
) -> None:
    paths = [tmp_path / f"{i}{suffix}" for i in range(2)]
    for path in paths:
        plot.save(document(), path)
    one, other = (path.read_bytes() for path in paths)
    assert one == other
    assert one.startswith(b"\x89PNG" if suffix == ".png" else b"<?xml")


def test_what_measured_nothing_is_not_plotted(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="bnfold inspect measured nothing"):
        plot.save(Document("bnfold inspect"), tmp_path / "plot.png")


def test_a_command_writes_a_plot(bnfold: Callable[..., Ended], tmp_path: Path) -> None:
    ended = bnfold("verify", ONNX, ONNX, "--report", tmp_path / "errors.svg")
    assert ended.code == 0, ended
    assert (tmp_path / "errors.svg").read_text().count("<svg") == 1


def test_without_matplotlib_it_says_so_first(
    bnfold: Callable[..., Ended], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find(name)
    )
    ended = bnfold("fold", ONNX, "-o", tmp_path / "o.onnx", "--report", tmp_path / "plot.png")
    assert ended.code == 4, ended
    assert "pip install 'bnfold[plot]'" in ended.err
    assert list(tmp_path.iterdir()) == []
