"""Imports go only downwards, and folding never pays for a framework that it does not need."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "bnfold"

GRAPH = ("refusal", "affine", "graph", "checking", "reshaping", "def_use", "reference")
"""The modules of the algebra that say what a graph is; the others say what becomes of it."""

ORDER = (
    ("errors",),
    ("naming",),
    tuple(f"algebra.{name}" for name in GRAPH),
    ("algebra",),
    ("formats.meaning",),
    ("proof",),
    ("archive",),
    ("process_state",),
    ("protocol",),
    ("staging",),
    ("streams",),
    ("files",),
    ("processes",),
    ("runtimes",),
    ("environment",),
    ("inputs",),
    ("preprocessing",),
    ("formats",),
    ("isolation",),
    ("verification",),
    ("verbs",),
    ("testing",),
    ("report",),
    ("cli",),
    ("__main__",),
)
"""The packages and modules of bnfold, lowest first; bnfold/__init__.py stands above them all."""

LAYERS = {name: number for number, names in enumerate(ORDER) for name in names}

FRAMEWORKS = {"torch", "torchvision", "onnx", "onnxruntime", "onnx_ir", "onnxscript", "onnxsim"}
MAY_IMPORT_FRAMEWORKS = {"formats", "isolation", "runtimes"}
ALGEBRA_MAY_IMPORT = {"numpy", "bnfold", *sys.stdlib_module_names}
LAZY = {"ml_dtypes"}
"""Packages that L0 and L1 import inside a function only: not every type needs them."""


def _module(path: Path) -> str:
    """The name of a module below bnfold; empty for bnfold/__init__.py itself."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = sorted(PACKAGE.rglob("*.py"))
ALGEBRA = [path for path in FILES if {"algebra", "meaning"} & {*path.relative_to(PACKAGE).parts}]
MODULES = {_module(path): path for path in FILES if path != PACKAGE / "__init__.py"}
PLAIN = ["bnfold", *(f"bnfold.algebra.{name}" for name in ("plan", "rounding", "reference"))]
PLAIN += ["bnfold.formats.meaning.product", "bnfold.proof.prover"]


def _layer(module: str) -> int | None:
    """The layer of a module by its name below bnfold: that of the longest entry it lies in."""
    parts = module.split(".")
    names = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((LAYERS[name] for name in names if name in LAYERS), None)


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
    assert not _module(path) or _layer(_module(path)) is not None


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_no_module_imports_from_a_higher_layer(path: Path) -> None:
    own = _layer(_module(path))
    for name, _ in _imports(path):
        other = _layer(name.removeprefix("bnfold.")) if name.startswith("bnfold.") else None
        if own is not None and other is not None:
            assert other <= own, f"{_name(path)} imports {name}"


def _files(path: Path) -> Iterator[str]:
    """Every file of bnfold that a file imports, at whatever time, by the name of its module."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and f"{node.module}.".startswith("bnfold."):
            for name in node.names:
                inner = f"{node.module}.{name.name}".removeprefix("bnfold.")
                yield inner if inner in MODULES else f"{node.module}".removeprefix("bnfold.")


def test_no_files_import_each_other_in_a_circle() -> None:
    imported = {module: set(_files(path)) for module, path in MODULES.items()}
    assert tuple(TopologicalSorter(imported).static_order())  # raises CycleError


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_frameworks_are_imported_in_the_native_layer_only(path: Path) -> None:
    if _module(path).split(".")[0] in MAY_IMPORT_FRAMEWORKS and path not in ALGEBRA:
        return
    named = {name.split(".")[0] for name, _ in _imports(path)}
    assert named & FRAMEWORKS == set()


@pytest.mark.parametrize("path", ALGEBRA, ids=_name)
def test_algebra_and_meaning_import_numpy_and_the_standard_library(path: Path) -> None:
    for name, early in _imports(path):
        top = name.split(".")[0]
        assert top in ALGEBRA_MAY_IMPORT or (top in LAZY and not early), f"it imports {name}"


def test_the_public_package_imports_nothing_of_its_own_early() -> None:
    early = {name for name, early in _imports(PACKAGE / "__init__.py") if early}
    assert not [name for name in early if name.startswith("bnfold.")]


@pytest.mark.parametrize("module", PLAIN)
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
