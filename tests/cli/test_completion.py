"""What the shell offers, and that asking for it stays light."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.shell_completion import ShellComplete

from bnfold.cli import commands
from tests.conftest import ROOT

PIPELINE = """
[models.placement]
source = "placement.onnx"
[models.plain]
source = "plain.onnx"
"""


def offered(*words: str) -> list[str]:
    """What completes the last word."""
    found = ShellComplete(commands, {}, "bnfold", "_BNFOLD_COMPLETE")
    return [item.value for item in found.get_completions([*words[:-1]], words[-1])]


@pytest.mark.parametrize(
    ("words", "found"),
    {
        "a command": (["fo"], ["fold"]),
        "a choice": (["fold", "m.onnx", "--policy", "f"], ["floor", "fixed"]),
        "a format of fold": (["fold", "m.pt", "--to", "o"], ["onnx"]),
        "a target": (["export", "m.pt", "--to", "o"], ["onnx"]),
        "a second target": (["export", "m.pt", "--to", "onnx,t"], ["onnx,torchscript"]),
        "no target twice": (["export", "--to", "onnx,"], ["onnx,torchscript", "onnx,pt2"]),
        "a provider": (["verify", "--providers", "cu"], ["cuda"]),
        "a provider of bench": (["bench", "--providers", "cpu,cu"], ["cpu,cuda"]),
    }.values(),
)
def test_names_are_offered(words: list[str], found: list[str]) -> None:
    assert offered(*words) == found


@pytest.mark.parametrize("command", ["fold", "export", "verify", "golden", "bench", "inspect"])
def test_models_are_files(command: str) -> None:
    found = ShellComplete(commands, {}, "bnfold", "_BNFOLD_COMPLETE")
    assert [item.type for item in found.get_completions([command], "mod")] == ["file"]


def test_the_models_of_a_pipeline_are_offered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert offered("build", "") == []
    (tmp_path / "other.toml").write_text(PIPELINE)
    assert offered("build", "-f", "other.toml", "pl") == ["placement", "plain"]
    assert offered("build", "-f", "other.toml", "plain", "") == ["placement"]
    (tmp_path / "bnfold.toml").write_text("[models")
    assert offered("build", "") == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_has_a_script(shell: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "bnfold"],
        cwd=ROOT,
        env={**os.environ, "_BNFOLD_COMPLETE": f"{shell}_source"},
        capture_output=True,
        text=True,
    )
    assert "_bnfold_completion" in ended.stdout, ended.stderr
    assert f"_BNFOLD_COMPLETE={shell}_source bnfold" in (ROOT / "docs" / "shell.md").read_text()
    if shell == "bash":
        known = subprocess.run(
            ["bash", "-c", f"{ended.stdout}\ncomplete -p bnfold"], capture_output=True, text=True
        )
        assert known.stdout.endswith(" -F _bnfold_completion bnfold\n"), known.stderr


def test_completing_imports_no_framework() -> None:
    """Not even the list of providers needs torch; everything else needs no runtime either."""
    code = (
        "import json, sys\n"
        "from tests.cli.test_completion import offered\n"
        "offered('export', 'm.pt', '--to', 'o'), offered('build', '')\n"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'onnxscript'}\n"
        "light = sorted(heavy & set(sys.modules))\n"
        "offered('verify', '--providers', '')\n"
        "print(json.dumps([light, sorted(heavy & set(sys.modules))]))\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert json.loads(ended.stdout) == [[], ["onnxruntime"]], ended.stderr
