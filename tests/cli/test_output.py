"""What commands print, where, and what they leave."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.conftest import CHECKPOINTS, ROOT, Ended

Run = Callable[..., Ended]
ONNX = CHECKPOINTS / "placement.onnx"


def test_json_of_fold_has_the_documented_keys(bnfold: Run, tmp_path: Path) -> None:
    report = bnfold("fold", ONNX, "-o", tmp_path / "o.onnx", "--format", "json").json
    assert report["schema_version"] == 1
    assert set(report["source"]) == set(report["result"]) == {"path", "format", "sha256"}
    assert set(report["batchnorms"]) == set(report["affines"]) == {"found", "folded", "kept"}
    assert {"before", "after", "kinds"} == set(report["ops"])
    wanted = {"name", "op", "batchnorm", "outcome", "into", "amplification", "graph_form"}
    wanted |= {"reason", "why", "node", "tensor", "remedy", "obstacles"}
    assert report["sites"]
    assert all(wanted == set(site) for site in report["sites"])
    assert all(site["amplification"] > 0 for site in report["sites"])
    assert {"policy", "k", "cases"} <= set(report["verification"])
    wanted = {"case", "provider", "output", "floor", "error", "ratio", "verdict"}
    assert all(wanted <= set(case) for case in report["verification"]["cases"])
    assert [stage["name"] for stage in report["stages"]] == [
        "open",
        "read",
        "plan",
        "write",
        "verify",
    ]


def test_text_of_fold_names_every_batchnorm_and_where_it_went(bnfold: Run, tmp_path: Path) -> None:
    ended = bnfold("fold", ONNX, "-o", tmp_path / "o.onnx")
    assert ended.code == 0, ended
    assert "4 found, 4 folded, 0 kept" in ended.out
    assert "pass" in ended.out
    assert f"written to {tmp_path / 'o.onnx'}".replace("\n", "") in ended.out.replace("\n", "")
    assert ended.err == ""


def test_progress_is_told_on_a_terminal_only(
    bnfold: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    ended = bnfold("fold", ONNX, "-o", tmp_path / "o.onnx", "--format", "json")
    assert ended.json["verdict"] == "pass"
    assert "verify: " in ended.err
    monkeypatch.delenv("FORCE_COLOR")
    assert bnfold("fold", ONNX, "-o", tmp_path / "o.onnx").err == ""


def test_the_default_name_keeps_the_suffix(bnfold: Run, tmp_path: Path) -> None:
    source = tmp_path / "net.v2.onnx"
    source.write_bytes(ONNX.read_bytes())
    assert bnfold("fold", source).code == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.v2.folded.onnx", "net.v2.onnx"]


def test_reports_are_written_by_suffix(bnfold: Run, tmp_path: Path) -> None:
    flags = ["--report", tmp_path / "r.json", "--report", tmp_path / "r.txt"]
    ended = bnfold("fold", ONNX, "-o", tmp_path / "o.onnx", *flags)
    assert ended.code == 0, ended
    assert json.loads((tmp_path / "r.json").read_text())["verdict"] == "pass"
    assert "4 found, 4 folded" in (tmp_path / "r.txt").read_text()
    assert bnfold("inspect", ONNX, "--report", tmp_path / "r.doc").code == 2


def test_inspect_changes_nothing_and_agrees_with_fold(bnfold: Run, tmp_path: Path) -> None:
    source = tmp_path / "net.onnx"
    source.write_bytes(ONNX.read_bytes())
    seen = bnfold("inspect", source, "--format", "json").json
    assert [p.name for p in tmp_path.iterdir()] == ["net.onnx"]
    done = bnfold("fold", source, "--format", "json").json
    assert seen["sites"] == done["sites"]
    assert "Conv(" in bnfold("inspect", source, "--graph").out


def test_require_folded(bnfold: Run, tmp_path: Path) -> None:
    weights = CHECKPOINTS / "convolutional_batch_statistics.state_dict.pt"
    flags = ["--model", "models.convolutional:convolutional_batch_statistics"]
    flags += ["--input", "2x3x32x32", "--require-folded"]
    ended = bnfold("fold", weights, *flags, "-o", tmp_path / "o.pt")
    assert ended.code == 1, ended
    assert "batch-statistics" in ended.out
    assert "track_running_stats=True" in ended.out
    assert "--require-folded: 2 BatchNorms are kept" in ended.out
    assert list(tmp_path.iterdir()) == []
    report = bnfold("fold", weights, *flags, "-o", tmp_path / "o.pt", "--format", "json").json
    assert (report["verdict"], report["result"]["path"]) == ("fail", None)
    seen = bnfold("inspect", weights, *flags)
    assert seen.code == 1
    assert "--require-folded: 2 BatchNorms are kept" in seen.out


@pytest.mark.parametrize("command", ["fold", "inspect", "export"])
def test_all_tells_each_of_many(bnfold: Run, tmp_path: Path, command: str) -> None:
    """A chain of layers that is longer than the table."""
    layers = [
        each for _ in range(21) for each in (nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2), nn.ReLU())
    ]
    torch.save(nn.Sequential(*layers).eval(), tmp_path / "net.pt")
    flags = [tmp_path / "net.pt", "--trust", "--input", "2x2x4x4"]
    flags += [] if command == "inspect" else ["-o", tmp_path / "o.onnx", "--overwrite"]
    short, full = bnfold(command, *flags), bnfold(command, *flags, "--all")
    assert (short.code, full.code) == (0, 0), (short, full)
    assert "and 11 more: --all lists them" in short.out
    assert "--all" not in full.out
    assert full.out.count("folded") - short.out.count("folded") == 11


@pytest.mark.parametrize("columns", [80, 100, 160])
def test_the_width_is_that_of_the_terminal(
    bnfold: Run, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("NO_COLOR", "1")
    out = bnfold("inspect", ONNX).out
    assert "norm1   BatchNormalization  folded   conv1\n" in out
    assert "\x1b" not in out


def test_doctor_knows_versions_and_providers(bnfold: Run) -> None:
    ended = bnfold("doctor", "--format", "json")
    assert ended.code == 0, ended
    found = {entry["what"]: entry for entry in ended.json["findings"]}
    assert found["provider cpu"]["fine"]
    assert found["torch"]["state"].startswith("2.")


def test_a_closed_pipe_is_no_error() -> None:
    command = f"{sys.executable} -m bnfold --help | head -1"
    ended = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=ROOT)
    assert ended.returncode == 0
    assert ended.stderr == ""


@pytest.mark.parametrize("program", [["-m", "bnfold"], ["cli.py"]])
def test_each_way_to_start_it_is_the_same_program(program: list[str]) -> None:
    ended = subprocess.run(
        [sys.executable, *program, "fold", "nothing.onnx"], capture_output=True, text=True, cwd=ROOT
    )
    assert ended.returncode == 3
    assert "nothing.onnx does not exist" in ended.stderr


def test_folding_onnx_never_imports_torch(tmp_path: Path) -> None:
    """The whole command, verification included."""
    ended = subprocess.run(
        [
            sys.executable,
            "-X",
            "importtime",
            "-m",
            "bnfold",
            "fold",
            ONNX,
            "-o",
            tmp_path / "o.onnx",
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert ended.returncode == 0, ended
    imported = {line.rsplit("|", 1)[-1].strip() for line in ended.stderr.splitlines()}
    assert "onnxruntime" in imported
    assert not {name for name in imported if name.split(".")[0] in ("torch", "onnxscript")}


def test_importing_bnfold_imports_no_framework() -> None:
    code = (
        "import sys, bnfold; "
        "print([m for m in ('torch', 'onnx', 'onnxruntime', 'rich', 'click') if m in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert ended.stdout.strip() == "[]"
