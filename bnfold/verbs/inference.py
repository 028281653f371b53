"""What a model that is deployed must not have: broken statistics, and operators that are random."""

from __future__ import annotations

from bnfold.algebra.graph import Graph, Opaque
from bnfold.algebra.refusal import Reason
from bnfold.errors import ModelError

RANDOM = {
    *("dropout", "native_dropout", "alpha_dropout", "feature_dropout", "feature_alpha_dropout"),
    *("rand", "rand_like", "randn", "randn_like", "randint", "randint_like", "randperm"),
    *("normal", "uniform", "bernoulli", "multinomial", "poisson", "exponential", "rrelu"),
    *("randomnormal", "randomnormallike", "randomuniform", "randomuniformlike"),
}
"""Operators of torch and ONNX, in lower case, that give other numbers each time they run."""


def refuse_broken(graph: Graph) -> None:
    """Raise ModelError if statistics are broken: the model computes NaN, which verifies nothing."""
    for node in graph.nodes:
        refusal = getattr(node.op, "refusal", None)
        if refusal and refusal.reason in (Reason.NON_FINITE, Reason.NON_POSITIVE_VARIANCE):
            raise ModelError(
                f"the model is broken: {refusal.why}",
                "its outputs cannot be verified; retrain it or take an earlier checkpoint",
            )


def refuse_random(graph: Graph) -> None:
    """Raise ModelError if a node is random: the model is not in eval mode, or no function.

    A Dropout that is not active was read as the identity.
    """
    for node in graph.nodes:
        name = node.kind.rpartition("::")[2].partition(".")[0].rstrip("_").lower()
        if isinstance(node.op, Opaque) and name in RANDOM:
            raise ModelError(
                f"{node.name} ({node.kind}) gives other numbers each time the model runs",
                "let dropout follow the module's training flag; draw random numbers outside",
            )
