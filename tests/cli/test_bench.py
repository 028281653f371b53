"""`bnfold bench` as a user types it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import CHECKPOINTS, Ended

Run = Callable[..., Ended]
ONNX = CHECKPOINTS / "placement.onnx"
SHORT = ("--rounds", 2, "--warmup", 1, "--threads", 1)


def test_the_tables(bnfold: Run) -> None:
    ended = bnfold("bench", ONNX, "--folded", "--batch", "1,2", *SHORT)
    assert ended.code == 0, ended
    assert "4 found, 4 folded, 0 kept" in ended.out
    assert "placement.onnx  onnx    126 kB   20  cpu" in ended.out
    assert "folded          onnx    119 kB   16  cpu" in ended.out
    for heading in ("latency", "p10 - p90", "speed-up", "load", "memory"):
        assert heading in ended.out
    assert "1 thread of" in ended.out
    assert "2 rounds after 1 to warm up" in " ".join(ended.out.split())
    assert ended.err == ""


def test_json_has_every_round(bnfold: Run) -> None:
    report = bnfold("bench", ONNX, "--format", "json", *SHORT).json
    assert report["timing"] == {"rounds": 2, "warmup": 1, "threads": 1, "seed": 0}
    (measured,) = report["measurements"]
    assert len(measured["round_seconds"]) == 2
    assert set(measured["latency_seconds"]) == {"median", "p10", "p90"}
    assert report["models"][0]["ops"]["kinds"]["BatchNorm"] == 4
    assert report["fold"] is None


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("no.onnx",), 3, "no.onnx does not exist"),
        ((), 2, "Missing argument"),
        ((ONNX, "--batch", "two"), 2, "'two' is no size"),
        ((ONNX, "--batch", "0"), 2, "0 is less than 1"),
        ((ONNX, "--threads", "0"), 2, "--threads"),
        ((ONNX, "--providers", "abacus"), 2, "'abacus' is no execution provider"),
        ((ONNX, ONNX, "--folded"), 2, "only one model can be folded"),
        ((ONNX, CHECKPOINTS / "batch_norm_network.onnx"), 2, "with the same inputs"),
        ((CHECKPOINTS / "placement.torchscript.pt",), 2, "add --input 1x3x32x32"),
        (
            (CHECKPOINTS / "placement.torchscript.pt", "--input", "1x3x32x32", "--batch", "8"),
            2,
            "N",
        ),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else None,
)
def test_bad_input(bnfold: Run, arguments: tuple[str | Path, ...], code: int, said: str) -> None:
    ended = bnfold("bench", *arguments)
    assert ended.code == code, ended
    assert said in ended.err
    assert ended.out == ""
    assert "Traceback" not in ended.err
