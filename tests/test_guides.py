"""What the guides show runs, in its order, in a folder with `models/`, `samples/` and `build/`.

A bash block is run line by line; a line that ends in `# exit N` has to end so. A toml block is
written to the file that its first line names, and the Python of a guide is one program. Text that
follows on bash is what the last command prints; its lines with decimals depend on the machine.
"""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import ROOT, Ended

ELSEWHERE = {"ci", "shell", "adding_a_rule", "adding_a_format"}
"""These have tests of their own."""

NOT_HERE = ("pip install ", "docker ", "make ")
"""What would change the machine."""


def blocks(guide: Path) -> list[tuple[str, str]]:
    """Language and content of every block that is run, written or printed."""
    text = guide.read_text("utf-8").replace("```\n\n```text\n", "```\n\n```printed\n")
    found = re.findall(r"^```(\w+)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return [(language, content) for language, content in found if language != "text"]


GUIDES = [
    path
    for path in sorted((ROOT / "docs").glob("*.md"))
    if path.stem not in ELSEWHERE and blocks(path)
]


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "models").symlink_to(ROOT / "models")
    for name in ("build", "samples"):
        (tmp_path / name).mkdir()
    sample = np.random.default_rng(0).random((2, 3, 32, 32), np.float32)
    np.save(tmp_path / "samples" / "digit.npy", sample)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.stem)
def test_a_guide_runs(guide: Path, checkout: Path, bnfold: Callable[..., Ended]) -> None:
    program: dict[str, object] = {}
    printed = ""
    for language, content in blocks(guide):
        match language:
            case "toml":
                (checkout / content.split("\n")[0].removeprefix("# ")).write_text(content, "utf-8")
            case "bash":
                for line in content.replace("\\\n", " ").splitlines():
                    printed = _run(line, bnfold)
            case "printed":
                said = [line for line in content.splitlines() if not re.search(r"\d\.\d", line)]
                assert [line for line in said if line not in printed.splitlines()] == []
            case "python":
                exec(compile(content, str(guide), "exec"), program)
            case _:
                pytest.fail(f"{guide.name}: nothing runs a block of {language}")


def _run(line: str, bnfold: Callable[..., Ended]) -> str:
    """What the command of a line prints."""
    words = shlex.split(line, comments=True)
    if not words or line.startswith(NOT_HERE):
        return ""
    wanted = re.search(r"# exit (\d+)", line)
    if words[0] == "bnfold":
        ended = bnfold(*words[1:])
        assert ended.code == (int(wanted[1]) if wanted else 0), (line, ended)
        return ended.out + ended.err
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True)
    assert done.returncode == 0, (line, done)
    return done.stdout
