"""docs/ci.md: its commands run in their order, in the workflow and in the shell, as they stand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml

from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "ci.md").read_text()


def block(language: str) -> str:
    (found,) = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    return str(found)


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
    workflow = yaml.safe_load(block("yaml"))
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
    shell(block("bash"))
    root = ElementTree.parse(tmp_path / "build" / "verify.xml").getroot()
    assert int(root.attrib["tests"]) >= 48
    (tmp_path / "test_deployed.py").write_text(block("python"))
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
