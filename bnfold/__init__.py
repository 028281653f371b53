"""bnfold turns a trained PyTorch or ONNX model into the one that should be deployed.

    result = bnfold.fold("model.onnx")              # verified; result.model, .plan, .verification
    result = bnfold.export(module, "1x3x224x224")   # ONNX, TorchScript, pt2
    network = bnfold.load("folded.pt", "nets:Net")    # the folded weights without BatchNorms
    verdict = bnfold.verify("model.pt", "model.onnx")
    speed = bnfold.bench(["model.onnx"], folded=True)

Importing this package imports no framework; each verb imports what its model needs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bnfold.algebra.plan import Plan, Site
    from bnfold.formats.opening import Opening
    from bnfold.preprocessing import Preprocessing
    from bnfold.proof.verdict import Proof
    from bnfold.protocol import Protocol
    from bnfold.report.results import render
    from bnfold.verbs.benching import BenchResult, Timing, bench
    from bnfold.verbs.exporting import Export, ExportResult, export
    from bnfold.verbs.folding import FoldResult, fold, inspect
    from bnfold.verbs.loading import load
    from bnfold.verbs.proving import prove
    from bnfold.verbs.recording import golden
    from bnfold.verbs.targets import Conversion
    from bnfold.verbs.verifying import verify
    from bnfold.verification import Verification
    from bnfold.verification.golden import Golden

__version__ = "0.1.0"

_HOMES = {
    "BenchResult": "bnfold.verbs.benching",
    "Timing": "bnfold.verbs.benching",
    "bench": "bnfold.verbs.benching",
    "Export": "bnfold.verbs.exporting",
    "ExportResult": "bnfold.verbs.exporting",
    "export": "bnfold.verbs.exporting",
    "FoldResult": "bnfold.verbs.folding",
    "fold": "bnfold.verbs.folding",
    "inspect": "bnfold.verbs.folding",
    "load": "bnfold.verbs.loading",
    "Conversion": "bnfold.verbs.targets",
    "Opening": "bnfold.formats.opening",
    "Golden": "bnfold.verification.golden",
    "golden": "bnfold.verbs.recording",
    "Plan": "bnfold.algebra.plan",
    "Preprocessing": "bnfold.preprocessing",
    "Proof": "bnfold.proof.verdict",
    "prove": "bnfold.verbs.proving",
    "Protocol": "bnfold.protocol",
    "render": "bnfold.report.results",
    "Site": "bnfold.algebra.plan",
    "Verification": "bnfold.verification",
    "verify": "bnfold.verbs.verifying",
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
    "Preprocessing",
    "Proof",
    "Protocol",
    "Site",
    "Timing",
    "Verification",
    "bench",
    "export",
    "fold",
    "golden",
    "inspect",
    "load",
    "prove",
    "render",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'bnfold' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
