"""One network in every form: as a module, a captured graph, TorchScript and ONNX."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

import bnfold
from bnfold.algebra.plan import Plan
from bnfold.algebra.refusal import Reason
from bnfold.verification import Verification

FORMS = ("module", "graph", "torchscript", "onnx")


@dataclass(frozen=True, eq=False)
class Folded:
    """What became of a network in one form; `model` is the framework's own object."""

    plan: Plan
    verification: Verification
    model: Any

    @property
    def reasons(self) -> set[Reason | None]:
        """Why anything was kept."""
        return {site.reason for site in self.plan.sites} - {None}


def fold_in(form: Any, net: nn.Module, x: Tensor) -> Folded:
    """Fold and verify; `result.model` raises where the verification failed."""
    result: Any
    if form in ("module", "graph"):
        result = bnfold.fold(net, x, form=form)
    else:
        result = bnfold.export(net, x, to=[form])[form]
    assert result.verification.passed, result.verification.summary
    return Folded(result.plan, result.verification, result.model)
