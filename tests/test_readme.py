"""The README and the guides: commands run, code runs, the table is what the benchmark measures."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


COMMANDS = [
    line for block in blocks("bash") for line in block.splitlines() if line.startswith("bnfold ")
]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder like the repository's root, in which results may be written."""
    for name in ("models", "Makefile"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "build").mkdir()
    return tmp_path


def run(checkout: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=checkout, capture_output=True, text=True)


def test_the_commands_run_in_their_order(checkout: Path) -> None:
    assert len(COMMANDS) >= 7
    for line in COMMANDS:
        ended = run(checkout, sys.executable, "-m", *line.split())
        assert ended.returncode == 0, (line, ended.stderr)


def test_the_python_code_runs(checkout: Path) -> None:
    (code,) = blocks("python")
    ended = run(checkout, sys.executable, "-c", code)
    assert ended.returncode == 0, ended.stderr
    assert "2 found, 2 folded, 0 kept" in ended.stdout
    assert (checkout / "build" / "cnn_with_batchnorm.onnx").is_file()


def test_the_recipe_of_the_demo_runs(checkout: Path) -> None:
    """`make demo`, less the setting up."""
    shutil.rmtree(checkout / "build")
    (checkout / ".venv").mkdir()
    (checkout / ".venv" / "installed").touch()
    (checkout / "pyproject.toml").touch()
    (checkout / "constraints.txt").touch()
    (checkout / ".venv" / "installed").touch()
    ended = run(checkout, "make", "demo", f"BIN={Path(sys.executable).parent}")
    assert ended.returncode == 0, ended.stderr
    assert "3 found, 3 folded, 0 kept" in ended.stdout
    assert (checkout / "build" / "mnist_net.onnx").is_file()


def test_the_table_is_what_is_measured() -> None:
    """Counts and accuracies to the digit; error and floor depend on the processor, the ratio may
    not pass the gate."""
    from benchmarks.networks import table

    page = (ROOT / "docs" / "networks.md").read_text()
    printed = [line for line in page.splitlines() if line.startswith("| `")]
    measured = [line for line in table() if line.startswith("| `")]
    assert len(printed) == len(measured)
    for line, now in zip(printed, measured, strict=True):
        said, found = ([cell.strip() for cell in row.split("|")] for row in (line, now))
        assert said[1:6] == found[1:6]
        assert float(said[8]) <= 8
        assert float(found[8]) <= 8


def test_every_link_leads_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert links
    assert not [link for link in links if not (ROOT / link).exists()]
