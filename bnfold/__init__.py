"""bnfold turns a trained PyTorch or ONNX model into the one that should be deployed.

    result = bnfold.fold("model.onnx")              # verified; result.model, .plan, .verification
    result = bnfold.export(module, "1x3x224x224")   # ONNX, TorchScript, pt2
    verdict = bnfold.verify("model.pt", "model.onnx")
    speed = bnfold.bench(["model.onnx"], folded=True)

Importing this package imports no framework; each verb imports what its model needs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bnfold.benching import BenchResult, Timing, bench
    from bnfold.exporting import Export, ExportResult, export
    from bnfold.folding import FoldResult, fold, inspect
    from bnfold.formats.opening import Opening
    from bnfold.plan import Plan, Site
    from bnfold.protocol import Protocol
    from bnfold.recording import golden
    from bnfold.targets import Conversion
    from bnfold.verification import Verification
    from bnfold.verification.golden import Golden
    from bnfold.verifying import verify

__version__ = "0.1.0"

_HOMES = {
    "BenchResult": "bnfold.benching",
    "Timing": "bnfold.benching",
    "bench": "bnfold.benching",
    "Export": "bnfold.exporting",
    "ExportResult": "bnfold.exporting",
    "export": "bnfold.exporting",
    "FoldResult": "bnfold.folding",
    "fold": "bnfold.folding",
    "inspect": "bnfold.folding",
    "Conversion": "bnfold.targets",
    "Opening": "bnfold.formats.opening",
    "Golden": "bnfold.verification.golden",
    "golden": "bnfold.recording",
    "Plan": "bnfold.plan",
    "Protocol": "bnfold.protocol",
    "Site": "bnfold.plan",
    "Verification": "bnfold.verification",
    "verify": "bnfold.verifying",
}

__all__ = [
    "BenchResult",
    "Conversion",
    "Export",
    "ExportResult",
    "FoldResult",
    "Golden",
    "Opening",
    "Plan",
    "Protocol",
    "Site",
    "Timing",
    "Verification",
    "bench",
    "export",
    "fold",
    "golden",
    "inspect",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'bnfold' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
