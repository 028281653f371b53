"""The commands of docs/verification.md run, and pass."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import ROOT, Ended

GUIDE = (ROOT / "docs" / "verification.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", GUIDE, re.DOTALL)


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "models").symlink_to(ROOT / "models")
    (tmp_path / "build").mkdir()
    (tmp_path / "samples").mkdir()
    sample = np.random.default_rng(0).random((2, 3, 32, 32), np.float32)
    np.save(tmp_path / "samples" / "digit.npy", sample)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_its_commands_run_and_pass(checkout: Path, bnfold: Any) -> None:
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    assert len(lines) >= 7
    for line in lines:
        program, *arguments = line.split()
        assert program == "bnfold"
        ended: Ended = bnfold(*arguments)
        assert ended.code == 0, (line, ended)


def test_its_code_runs(checkout: Path) -> None:
    (code,) = blocks("python")
    exec(compile(code, "docs/verification.md", "exec"), {})
