"""docs/ci.md: its commands run in their order, in the workflow and in the shell, as they stand."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml

from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "ci.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def shell(tmp_path: Path) -> Any:
    """Runs a script in a folder like a checkout, in which `bnfold` is this one."""
    (tmp_path / "models").symlink_to(ROOT / "models")
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "bnfold"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m bnfold "$@"\n')
    command.chmod(0o755)
    paths = {
        "PATH": f"{command.parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md"),
    }

    def run(script: str) -> str:
        ended = subprocess.run(
            ["bash", "-e", "-c", script],
            cwd=tmp_path,
            env={**os.environ, **paths},
            capture_output=True,
            text=True,
        )
        assert ended.returncode == 0, (script, ended.stdout, ended.stderr)
        return ended.stdout

    return run


def test_the_workflow_runs(shell: Any, tmp_path: Path) -> None:
    workflow = yaml.safe_load(blocks("yaml")[0])
    assert set(workflow) == {"name", True, "jobs"}, "YAML 1.1 reads `on` as true"
    jobs = workflow["jobs"]
    assert jobs["deploy"]["needs"] == "fold"
    ran = 0
    for job in jobs.values():
        for step in job["steps"]:
            assert ("run" in step) != ("uses" in step)
            if "run" in step and not step["run"].startswith("pip install"):
                out = shell(step["run"])
                assert all(line.startswith("::notice ") for line in out.splitlines())
                ran += 1
    assert ran == 4
    summary = (tmp_path / "summary.md").read_text()
    assert summary.count("## bnfold ") == 4
    for name in ("export", "verify"):
        root = ElementTree.parse(tmp_path / "build" / f"{name}.xml").getroot()
        assert int(root.attrib["tests"]) > 0
        assert root.attrib["failures"] == root.attrib["errors"] == "0"


def test_the_shell_recipe_and_the_test_run(shell: Any, tmp_path: Path) -> None:
    (script,) = blocks("bash")
    shell(script)
    root = ElementTree.parse(tmp_path / "build" / "verify.xml").getroot()
    assert int(root.attrib["tests"]) >= 48
    (tmp_path / "test_deployed.py").write_text("".join(blocks("python")))
    out = shell(f"{sys.executable} -m pytest -q -p no:cacheprovider")
    assert "1 passed" in out


def test_the_exit_codes_are_those_of_the_errors() -> None:
    from bnfold.errors import EnvironmentLacksError, ExportError, ModelError, UsageError

    rows = dict(re.findall(r"^\| (\d+) \| (.+?) \|", PAGE, re.MULTILINE))
    assert list(rows) == ["0", "1", "2", "3", "4", "5", "130"]
    for error, word in (
        (UsageError, "call"),
        (ModelError, "model"),
        (EnvironmentLacksError, "package"),
        (ExportError, "export"),
    ):
        assert word in rows[str(error.exit_code)]


ACTION = yaml.safe_load((ROOT / "action.yml").read_text())


def act(shell: Any, given: dict[str, str]) -> str:
    """Run the steps of the action with these inputs, but for the installation."""
    assert given.keys() <= ACTION["inputs"].keys()
    inputs = {name: each["default"] for name, each in ACTION["inputs"].items()} | given
    said = ""
    for step in ACTION["runs"]["steps"]:
        assert step["shell"] == "bash"
        assert "${{" not in step["run"], "an input would be run as a part of the script"
        if step["run"].startswith("pip install"):
            continue
        names = {
            key: re.fullmatch(r"\$\{\{ inputs\.(\w+) }}", each) for key, each in step["env"].items()
        }
        settings = [f"export {k}={shlex.quote(inputs[n[1]])}" for k, n in names.items() if n]
        assert len(settings) == len(ACTION["inputs"]) - 1, "all but install"
        said += shell("\n".join([*settings, step["run"]]))
    return said


def test_the_action_of_the_page_runs(shell: Any, tmp_path: Path) -> None:
    (tmp_path / "build").mkdir()
    steps = yaml.safe_load(blocks("yaml")[1])
    for step in steps:
        assert act(shell, step["with"]).startswith("::notice ")
    report = json.loads((tmp_path / "build" / "action.json").read_text())
    assert [each["target"] for each in report["results"]] == ["onnx"]
    rows = re.findall(r"^\| `(\w+)` \|.*\|$", PAGE, re.MULTILINE)
    assert rows == list(ACTION["inputs"])


def test_the_action_takes_words_as_they_are(shell: Any, tmp_path: Path) -> None:
    """A space in quotes does not split, and nothing is expanded or run."""
    echo = tmp_path / "bin" / "bnfold"
    echo.write_text('#!/bin/sh\nprintf "<%s>" "$@"\n')
    said = act(
        shell,
        {
            "model": "'my model.pt' $HOME/*.onnx",
            "inputs": "a=1x3 \n b=2",
            "arguments": '--k 4 -n "$(touch gone)" `touch gone`; touch gone',
        },
    )
    assert said == (
        "<fold><--format><github><my model.pt><$HOME/*.onnx><--input><a=1x3><--input><b=2>"
        "<--k><4><-n><$(touch gone)><`touch><gone`;><touch><gone>"
    )
    assert not (tmp_path / "gone").exists()
    assert act(shell, {"command": "doctor"}) == "<doctor><--format><github>"
    with pytest.raises(AssertionError, match="quote"):
        act(shell, {"arguments": "--k '4"})
