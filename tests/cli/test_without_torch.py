"""ONNX files need no torch: every command in a process of its own in which importing it raises."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.conftest import CHECKPOINTS, ROOT

ONNX = CHECKPOINTS / "placement.onnx"
ABSENT = ("torch", "torchvision", "onnxscript", "safetensors", "distributed")

HOOK = f"""
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {ABSENT}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
import importlib.metadata as metadata
version = metadata.version

def known(name):
    if name in {ABSENT}:
        raise metadata.PackageNotFoundError(name)
    return version(name)

metadata.version = known
"""
"""Goes into sitecustomize.py, which also the processes run that a command starts."""


@pytest.fixture
def host(tmp_path: Path) -> Path:
    (tmp_path / "sitecustomize.py").write_text(HOOK, "utf-8")
    return tmp_path


def run(host: Path, *command: object, code: int = 0) -> str:
    """What a command says on a host without torch, which has to end with `code`."""
    ended = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=host,
        env={**os.environ, "PYTHONPATH": f"{host}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == code, ended
    assert "Traceback" not in ended.stderr
    return ended.stdout + ended.stderr


def test_torch_is_absent_there(host: Path) -> None:
    probe = "try:\n import torch\nexcept ModuleNotFoundError: print('none')"
    assert run(host, "-c", probe) == "none\n"


def test_every_command_for_onnx(host: Path) -> None:
    folded, golden = host / "folded.onnx", host / "golden.npz"
    bnfold = ("-m", "bnfold")
    report = ("--report", host / "r.html", "--report", host / "r.json")
    assert "4 found, 4 folded" in run(host, *bnfold, "fold", ONNX, "-o", folded, *report)
    assert "4 found, 4 folded" in run(host, *bnfold, "inspect", ONNX)
    assert "pass: " in run(host, *bnfold, "verify", ONNX, folded, "--self-test")
    assert "proved" in run(host, *bnfold, "prove", ONNX, folded)
    assert "speed-up" in run(host, *bnfold, "bench", ONNX, folded, "--rounds", "3")
    assert "recorded" in run(host, *bnfold, "golden", ONNX, "-o", golden)
    assert "pass: " in run(host, *bnfold, "verify", golden, folded)
    assert "pass: " in run(host, *bnfold, "export", ONNX, "-o", host / "exported.onnx")
    half = run(host, *bnfold, "fold", ONNX, "--half", "-o", host / "half.onnx")
    assert "inputs are float16 now" in " ".join(half.split())


def test_python_for_onnx(host: Path) -> None:
    program = f"""
import sys, bnfold
result = bnfold.fold({str(ONNX)!r})
assert bnfold.verify({str(ONNX)!r}, result.model).passed
print(bnfold.render(result))
assert not any(name.partition(".")[0] in {ABSENT} for name in sys.modules)
"""
    assert "4 found, 4 folded" in run(host, "-c", program)


def test_what_needs_torch_says_so(host: Path) -> None:
    model = CHECKPOINTS / "placement.torchscript.pt"
    said = run(host, "-m", "bnfold", "fold", model, "--input", "1x3x32x32", code=4)
    assert "error: the package torch is not installed, which this needs\n" in said
    assert "hint: pip install torch" in said


def test_doctor_says_what_the_host_can_do(host: Path) -> None:
    said = " ".join(run(host, "-m", "bnfold", "doctor", "--format", "markdown").split())
    assert "can onnx | fold, inspect, verify, prove and bench ONNX files" in said
    assert "can torch | no: " in said
    assert "pip install torch safetensors" in said
    run(host, "-m", "bnfold", "doctor", "--for", "onnx,simplify")
    run(host, "-m", "bnfold", "doctor", "--for", "torch", code=4)
    assert "'cobol' is no task" in run(host, "-m", "bnfold", "doctor", "--for", "cobol", code=2)


def test_the_requirements_are_the_packages_own_without_torch() -> None:
    own = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["dependencies"]
    names = {re.split(r"[>=;]", each)[0]: each.partition(";")[0] for each in own}
    lines = (ROOT / "requirements-onnx.txt").read_text("utf-8").splitlines()
    listed = {line for line in lines if line and not line.startswith("#")}
    assert listed == {
        text for name, text in names.items() if name not in (*ABSENT, "onnxruntime-gpu")
    }
