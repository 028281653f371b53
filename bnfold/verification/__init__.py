"""Does a candidate compute what its original computes? The answer is measured, case by case."""

from __future__ import annotations

from bnfold.verification.cases import Case
from bnfold.verification.gate import Row
from bnfold.verification.judging import Measurement, compare, measure
from bnfold.verification.measuring import NotDeterministicError
from bnfold.verification.verdict import Verification

__all__ = [
    "Case",
    "Measurement",
    "NotDeterministicError",
    "Row",
    "Verification",
    "compare",
    "measure",
]
