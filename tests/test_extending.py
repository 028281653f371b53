"""What the guides add to the source works, tests of theirs included, in a copy of it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT

Run = Callable[[str], str]


def extend(guide: str, copy: Path) -> None:
    """Write the files of a guide, and change those that it shows the changes of."""
    text = (ROOT / "docs" / f"{guide}.md").read_text(encoding="utf-8")
    found = re.findall(r"^```(python|diff)\n# (\S+)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert len(found) == len(re.findall(r"^```(?:python|diff)$", text, re.MULTILINE))
    for language, name, content in found:
        path = copy / name
        if language == "python":
            assert not path.exists(), path
            path.write_text(content, encoding="utf-8")
            continue
        lines = content.splitlines(keepends=True)
        before = "".join(line[1:] or "\n" for line in lines if not line.startswith("+"))
        after = "".join(line[1:] or "\n" for line in lines if not line.startswith("-"))
        source = path.read_text(encoding="utf-8")
        assert before in source, f"{name} has changed: {before}"
        path.write_text(source.replace(before, after, 1), encoding="utf-8")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for name in ("bnfold", "docs", "tests", "models"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


@pytest.fixture
def run(copy: Path) -> Run:
    def run(*arguments: str) -> str:
        ended = subprocess.run(
            [sys.executable, *arguments],
            cwd=copy,
            env={"PYTHONPATH": str(copy), "PATH": ""},
            capture_output=True,
            text=True,
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout

    return run


FOLDED = """
import numpy as np, onnx
from onnx import TensorProto, helper, numpy_helper
import bnfold

rng = np.random.default_rng(0)
numbers = {"w": rng.normal(size=(4, 3, 2)), "gamma": rng.normal(size=4), "beta": np.zeros(4)}
numbers |= {"mean": np.zeros(4), "var": rng.uniform(0.5, 2, 4)}
constants = [numpy_helper.from_array(v.astype(np.float32), k) for k, v in numbers.items()]
constants.append(numpy_helper.from_array(np.int64(-1), "axis"))
nodes = [
    helper.make_node("Conv", ["x", "w"], ["a"], name="conv"),
    helper.make_node("CumSum", ["a", "axis"], ["b"], name="sum"),
    helper.make_node("BatchNormalization", ["b", "gamma", "beta", "mean", "var"], ["y"], name="bn"),
]
sides = [("x", ["N", 3, 8]), ("y", ["N", 4, 7])]
x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n, shape in sides)
graph = helper.make_graph(nodes, "g", [x], [y], constants)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
result = bnfold.fold(model)
assert result.passed and result.plan.batchnorms.folded == 1, str(result)
"""


def test_the_rule_of_the_guide_folds(copy: Path, run: Run) -> None:
    extend("adding_a_rule", copy)
    said = run("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/algebra/rules/test_cumsum.py")
    assert "4 passed" in said
    run("-m", "docs.catalogue")
    assert "## CumSum\n" in (copy / "docs" / "rules.md").read_text()
    assert "\n## CumSum\n" not in (ROOT / "docs" / "rules.md").read_text()
    run("-c", FOLDED)
    assert "1 passed" in run(*PARITY)
    run("-m", "ruff", "check", "bnfold/algebra", "bnfold/formats", "tests/algebra/rules")
    run("-m", "ruff", "format", "--check", "bnfold/algebra/rules", "tests/algebra/rules")


PARITY = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/formats/test_parity.py")
PARITY += ("-k", "one_fate and scale and cumsum")


@pytest.mark.parametrize("table", ["onnx/ops.py", "pytorch/aten.py"])
def test_a_reader_that_was_forgotten_is_noticed(copy: Path, run: Run, table: str) -> None:
    extend("adding_a_rule", copy)
    path = copy / "bnfold" / "formats" / table
    lines = path.read_text("utf-8").splitlines(keepends=True)
    entry = '    "cumsum": ' if "aten" in table else '    "CumSum": '
    left = [line for line in lines if not line.startswith(entry)]
    assert len(left) == len(lines) - 1
    path.write_text("".join(left), "utf-8")
    with pytest.raises(AssertionError, match="1 failed"):
        run(*PARITY)


def test_the_format_of_the_guide_folds(copy: Path, run: Run) -> None:
    extend("adding_a_format", copy)
    said = run("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/formats/test_perceptron.py")
    assert "7 passed" in said
    new = ["bnfold/formats/perceptron.py", "tests/formats/test_perceptron.py"]
    run("-m", "ruff", "check", "bnfold/formats", *new)
    run("-m", "ruff", "format", "--check", *new)
