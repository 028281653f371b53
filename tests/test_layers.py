"""Imports go only downwards, and folding never pays for a framework that it does not need."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "bnfold"

LAYERS = {
    # L0: the graph
    "errors": 0,
    "refusal": 0,
    "affine": 0,
    "graph": 0,
    "checking": 0,
    "reshaping": 0,
    "flow": 0,
    "reference": 0,
    # L1: the algebra
    "rules": 1,
    "chains": 1,
    "branches": 1,
    "sums": 1,
    "merge": 1,
    "obstacle": 1,
    "plan": 1,
    "cost": 1,
    "planner": 1,
    "search": 1,
    "split": 1,
    "rounding": 1,
    # L2: what is native, and measuring it
    "environment": 2,
    "files": 2,
    "formats": 2,
    "run": 2,
    "inputs": 2,
    "inference": 2,
    "targets": 2,
    "protocol": 2,
    "verification": 2,
    # L3: the verbs and what they print
    "benching": 3,
    "common_inputs": 3,
    "folding": 3,
    "exporting": 3,
    "selftest": 3,
    "attributing": 3,
    "pipeline": 3,
    "building": 3,
    "verifying": 3,
    "recording": 3,
    "report": 3,
    # L4: the command line and the test suite
    "testing": 4,
    "cli": 4,
    "__main__": 4,
}
"""The layer of every module or package of bnfold; bnfold/__init__.py stands above them all."""

FRAMEWORKS = {"torch", "torchvision", "onnx", "onnxruntime", "onnx_ir", "onnxscript", "onnxsim"}
MAY_IMPORT_FRAMEWORKS = {"formats", "run"}
ALGEBRA_MAY_IMPORT = {"numpy", "bnfold", *sys.stdlib_module_names}
LAZY = {"ml_dtypes"}
"""Packages that L0 and L1 import inside a function only: not every type needs them."""

FILES = sorted(PACKAGE.rglob("*.py"))


def _unit(path: Path) -> str:
    """The first part of a module's name below bnfold; empty for bnfold/__init__.py itself."""
    first = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "" if first == "__init__" else first


def _imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Every module that is imported, by full name, and whether that happens at import time."""
    tree = ast.parse(path.read_text())
    inside = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or _is_type_checking(node)
        for child in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                yield name.name, id(node) not in inside
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            assert node.module is not None
            yield node.module, id(node) not in inside
            if node.module == "bnfold":
                for name in node.names:
                    yield f"bnfold.{name.name}", id(node) not in inside


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_a_module_belongs_to_a_layer(path: Path) -> None:
    assert not _unit(path) or _unit(path) in LAYERS


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_no_module_imports_from_a_higher_layer(path: Path) -> None:
    own = LAYERS.get(_unit(path), 9)
    for name, _ in _imports(path):
        unit = name.split(".")[1] if name.startswith("bnfold.") else None
        if unit in LAYERS:
            assert LAYERS[unit] <= own, f"{_name(path)} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_frameworks_are_imported_in_the_native_layer_only(path: Path) -> None:
    if _unit(path) in MAY_IMPORT_FRAMEWORKS:
        return
    named = {name.split(".")[0] for name, _ in _imports(path)}
    assert named & FRAMEWORKS == set()


@pytest.mark.parametrize("path", [p for p in FILES if LAYERS.get(_unit(p), 9) <= 1], ids=_name)
def test_graph_and_algebra_import_numpy_and_the_standard_library(path: Path) -> None:
    for name, early in _imports(path):
        top = name.split(".")[0]
        assert top in ALGEBRA_MAY_IMPORT or (top in LAZY and not early), f"it imports {name}"


def test_the_public_package_imports_nothing_of_its_own_early() -> None:
    early = {name for name, early in _imports(PACKAGE / "__init__.py") if early}
    own = {name for name in early if name.startswith("bnfold.")}
    assert all(LAYERS[name.split(".")[1]] <= 1 for name in own)


@pytest.mark.parametrize("module", ["bnfold", "bnfold.plan", "bnfold.rounding", "bnfold.reference"])
def test_importing_it_imports_no_framework(module: str) -> None:
    code = f"import sys, {module}; print(*sys.modules, sep='\\n')"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.split())
    assert module in loaded
    assert loaded & (FRAMEWORKS | LAZY) == set()


def test_the_check_sees_an_import_where_it_is(tmp_path: Path) -> None:
    source = tmp_path / "sample.py"
    source.write_text(
        "import torch.nn\ndef f():\n    import ml_dtypes\n    from bnfold import cli\n"
    )
    assert list(_imports(source)) == [
        ("torch.nn", True),
        ("ml_dtypes", False),
        ("bnfold", False),
        ("bnfold.cli", False),
    ]
