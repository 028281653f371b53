"""A refusal is a value: a reason code, a sentence, and the node it is about."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Reason(StrEnum):
    """Why an affine stays. The value is the code in reports; the comment is its meaning."""

    BATCH_STATISTICS = "batch-statistics"  # the BatchNorm uses the statistics of the batch itself
    NOT_CONSTANT = "not-constant"  # a parameter is computed at run time, or can be overridden
    NON_FINITE = "non-finite"  # NaN or infinity in the statistics or parameters
    NON_POSITIVE_VARIANCE = "non-positive-variance"  # var + eps is not above zero
    MISMATCHED_CHANNELS = "mismatched-channels"  # parameter lengths disagree with the data
    UNKNOWN_SHAPE = "unknown-shape"  # a rank or size that the algebra needs is not known
    GRAPH_INPUT = "graph-input"  # nothing above: the value is an input of the model
    GRAPH_OUTPUT = "graph-output"  # the value is an output of the model and must not change
    OTHER_READERS = "other-readers"  # something else reads the value and would see it changed
    NO_READER = "no-reader"  # nothing reads the result
    WRONG_AXIS = "wrong-axis"  # the affine lies on another axis than the layer's features
    ZERO_PADDING = "zero-padding"  # zeros padded in after the shift would not be shifted
    PARTIAL_TAPS = "partial-taps"  # outputs of a transposed convolution see only some taps
    NEGATIVE_SCALE = "negative-scale"  # a maximum or activation turns over under a scale below 0
    SHIFT = "shift"  # a shift cannot pass a nonlinearity or an average with zeros
    NOT_LINEAR = "not-linear"  # the operation is not linear, or not known to be
    OTHER_OPERAND = "other-operand"  # an addition whose other operand cannot take its part
    NOT_UNIFORM = "not-uniform"  # channels that are merged carry different values
    FORM = "form"  # the node has no room for both a scale and a shift
    PRECISION = "precision"  # rounding to the parameter's type would overflow or lose the value
    SHARED_MODULE = "shared-module"  # one module serves several calls
    NOT_A_PLAIN_MODULE = "not-a-plain-module"  # hooks, parametrisation or a forward of its own
    SEARCH_LIMIT = "search-limit"  # too many ways to place the shift; none of those tried worked


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a move is not made: `reason` for programs, `why` for people, `node` for finding it."""

    reason: Reason
    why: str
    node: str | None = None

    def __str__(self) -> str:
        return self.why
