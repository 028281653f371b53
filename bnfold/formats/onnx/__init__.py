"""ONNX models, through onnx-ir; torch is never imported.

onnx-ir imports sympy for arithmetic on symbolic sizes, which folding does not do, and which takes
longer to import than everything else together: it is loaded if it is asked for.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import LazyLoader
from types import ModuleType

_DEFERRED = ("sympy", "onnx_ir._symbolic_shapes")


class _Deferring(MetaPathFinder):
    """Finds the modules of _DEFERRED, to be executed on the first use of one of their names."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        found = PathFinder.find_spec(fullname, path, target) if fullname in _DEFERRED else None
        if found is not None and found.loader is not None:
            found.loader = LazyLoader(found.loader)
        return found


_finder = _Deferring()
sys.meta_path.insert(0, _finder)
try:
    import onnx_ir  # noqa: F401
finally:
    sys.meta_path.remove(_finder)
