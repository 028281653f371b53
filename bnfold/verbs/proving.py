"""The verb `prove`: is a candidate the same function for every input? Nothing is run."""

from __future__ import annotations

from typing import Any

from bnfold.errors import BnfoldError, UsageError
from bnfold.formats.model import Model
from bnfold.formats.opening import Opening, open_model
from bnfold.process_state import in_turn
from bnfold.proof.prover import prove as prove_written
from bnfold.proof.verdict import Finding, Open, Proof


@in_turn
def prove(reference: Any, candidate: Any, *, opening: Opening | None = None) -> Proof:
    """What can be proved of `candidate`, each a path or a model; both are ONNX.

    Raises BnfoldError if either cannot be opened, or is of a format that nothing is proved of.
    """
    original, other = (open_model(each, opening) for each in (reference, candidate))
    found = proved(original, other)
    if found is None:
        lacking = next(each for each in (original, other) if not each.provable)
        raise UsageError(
            f"nothing is proved of a {lacking.format} model: a proof reads ONNX",
            "bnfold verify measures; or export both, and prove these",
        )
    return found


def proved(original: Model, candidate: Model) -> Proof | None:
    """The proof for two models that are open; None for formats that tell too little of theirs."""
    if not (original.provable and candidate.provable):
        return None
    try:
        with original.written() as old, candidate.written() as new:
            return prove_written(old, new)
    except BnfoldError:
        raise
    except Exception as error:  # a proof that fails is none; it takes no verdict with it
        why = Open("", f"the proof ended early: {type(error).__name__}: {error}")
        return Proof((Finding("", (why,)),))
