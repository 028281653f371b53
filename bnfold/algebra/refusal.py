"""A refusal is a value: a reason code, a sentence, and the node and tensor it is about.

What a reason means, and what would help, stands beside its code: reports and docs/rules.md take
their words from here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class Reason(StrEnum):
    """Why an affine stays: its code in reports, what that means, an example, and what would help.

    `remedy` has {node} for the node that refuses. It begins with "nothing" where no change but
    another training helps.
    """

    meaning: str
    example: str
    remedy: str

    def __new__(cls, code: str, meaning: str, example: str, remedy: str) -> Reason:
        member = str.__new__(cls, code)
        member._value_ = code
        member.meaning, member.example, member.remedy = meaning, example, remedy
        return member

    BATCH_STATISTICS = (
        "batch-statistics",
        "The BatchNorm computes with the statistics of the batch itself, so it is no affine.",
        "`nn.BatchNorm2d(8, track_running_stats=False)`; ONNX `training_mode=1`",
        "give {node} running statistics (track_running_stats=True, some training data in train "
        "mode) and put it into eval mode before it is exported; measure the accuracy again",
    )
    NOT_CONSTANT = (
        "not-constant",
        "A parameter is computed at run time, or the caller can override it.",
        "an ONNX initializer that is a graph input as well; a mean that is computed from the batch",
        "make the parameters of {node} constants: running statistics instead of those of the "
        "batch, eval mode, and no weights among the model's inputs",
    )
    NON_FINITE = (
        "non-finite",
        "A statistic or a parameter is NaN or infinite.",
        "a `running_var` of NaN after a diverged training",
        "nothing: the numbers are lost; take an earlier checkpoint, or train again",
    )
    NON_POSITIVE_VARIANCE = (
        "non-positive-variance",
        "var + eps of a channel is not above zero, so its square root divides by nothing.",
        "`running_var = -1`",
        "nothing: the numbers are lost; take an earlier checkpoint, or train again",
    )
    MISMATCHED_CHANNELS = (
        "mismatched-channels",
        "The lengths of the parameters disagree with each other or with the data.",
        "`running_mean [2]` beside `running_var [3]`",
        "nothing: {node} cannot run as it is; look at how the model was converted",
    )
    UNKNOWN_SHAPE = (
        "unknown-shape",
        "A rank or a size that the algebra needs is not known.",
        "a Reshape to a shape that is computed at run time",
        "fix the sizes that need not vary and simplify the model: `bnfold export --to onnx`",
    )
    GRAPH_INPUT = (
        "graph-input",
        "Nothing stands before it: the value is an input of the model.",
        "`silu(bn(image))`",
        "nothing in the model; the affine can be applied to the data instead",
    )
    GRAPH_OUTPUT = (
        "graph-output",
        "The value that would change is an output of the model.",
        "`y = conv(x); return y, bn(y)`",
        "leave that value out of the model's outputs, if nobody needs it",
    )
    OTHER_READERS = (
        "other-readers",
        "Something else reads the value that would change.",
        "a pre-activation block: `x + conv(relu(bn(x)))`",
        "nothing for these weights: the other readers need the result of {node} as it is",
    )
    NO_READER = (
        "no-reader",
        "Nothing reads the result, so nothing after it can take it.",
        "a head that was cut off",
        "remove it: its result is not used",
    )
    WRONG_AXIS = (
        "wrong-axis",
        "The affine lies on another axis than the features of the layer, or on one that is "
        "averaged, padded or resized.",
        "`BatchNorm1d` behind a `Linear` on [N, L, C]: its channels are L",
        "nothing for these weights: the affine would have to lie on the features of {node}",
    )
    ZERO_PADDING = (
        "zero-padding",
        "Zeros, or another number, are padded in behind the affine and would miss its shift.",
        "`Conv2d(8, 8, 3, padding=1)(bn(silu(x)))`",
        "nothing for these weights: it would fold without padding in {node}, or with "
        'padding_mode="replicate"',
    )
    PARTIAL_TAPS = (
        "partial-taps",
        "Some outputs of a transposed convolution see only some taps, hence part of a shift.",
        "`ConvTranspose2d(8, 8, 2, stride=2)(bn(silu(x)))`",
        "nothing for these weights: it would fold behind {node}",
    )
    NEGATIVE_SCALE = (
        "negative-scale",
        "A maximum or an activation turns over under a scale below zero.",
        "`bn(max_pool(x))` with gamma of both signs",
        "nothing for these weights: every scale would have to be positive, or the affine on the "
        "other side of {node}",
    )
    SHIFT = (
        "shift",
        "A shift cannot pass an activation, nor an average that divides by another number.",
        "`bn(relu(conv(x)))` before a convolution with zero padding",
        "nothing for these weights: it would pass without a shift, and might fold on the other "
        "side of {node}",
    )
    NOT_LINEAR = (
        "not-linear",
        "The operation is not linear, or bnfold does not know that it is.",
        "`gelu(bn(gelu(x)))`",
        "nothing: neither scale nor shift passes {node}; it might fold on the other side of it",
    )
    OTHER_OPERAND = (
        "other-operand",
        "A sum, or another node with several inputs, of which one carries the affine alone.",
        "`bn(silu(x)) + y`: no affine of x + y",
        "nothing: the affine belongs to one of the values that meet in {node}, not to its result",
    )
    NOT_UNIFORM = (
        "not-uniform",
        "Channels that are merged or split into one carry different scales or shifts.",
        "`Linear(x.reshape(n, c * h, w))` behind a BatchNorm over c",
        "nothing for these weights: all that {node} merges would need one scale and one shift",
    )
    FORM = (
        "form",
        "The node before or after it holds a scale or a shift, and has no room for both.",
        "`x * scale + shift` as two nodes, and nothing else near them",
        "write {node} as a BatchNorm, which has room for a scale and a shift",
    )
    PRECISION = (
        "precision",
        "Rounding to the parameter's type would overflow or lose the value.",
        "a scale of 1e6 into a float16 weight",
        "store the parameters of {node} in a wider type, such as float32",
    )
    SHARED_MODULE = (
        "shared-module",
        "One module, or one parameter, serves several calls that would need different weights.",
        "a detection head that is called on every scale",
        "fold the graph form (--form graph), or give each call a module of its own",
    )
    NOT_A_PLAIN_MODULE = (
        "not-a-plain-module",
        "The module has hooks, computes its weight, or the operation stands in a forward, which "
        "cannot change.",
        "`x * self.scale` in the model's own forward",
        "fold the graph form (--form graph)",
    )
    NO_PLACE = (
        "no-place",
        "The weights are to be loaded into their own class, which has no place for the result.",
        "`conv(x)` without a bias, which a `relu` stands behind, and a BatchNorm before",
        "write the folded network without regard to its class (--compact)",
    )
    FUNCTION = (
        "function",
        "It lies in a function of the model that cannot be put in place of its calls.",
        "an ONNX function that imports opset 12, in a model of opset 17",
        "put the functions in place first, and bring them to one opset: "
        "onnx.inliner.inline_local_functions(model, convert_version=True)",
    )
    NOT_CAPTURED = (
        "not-captured",
        "torch.export cannot follow the code around it, so what else that code does is not known.",
        "`if x.sum() > 0: x = bn(conv(x))` in a forward",
        "change the line that is named; or put {node} and its convolution into an nn.Sequential, "
        "which is folded on its own",
    )
    SEARCH_LIMIT = (
        "search-limit",
        "There are too many ways to place the shift; none of those that were tried worked.",
        "a sum of 200 ReLUs, none of which can take a shift",
        "nothing in the model; MOST_ASKED in bnfold/algebra/search.py sets the limit",
    )


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a move is not made: `reason` for programs, `why` for people, `node` for finding it.

    `tensor` is the value concerned, where it is a value rather than a node.
    """

    reason: Reason
    why: str
    node: str | None = None
    tensor: str | None = None

    def __str__(self) -> str:
        return self.why


MOST_NAMES = 3
"""How many names a sentence lists before it counts the rest."""


def listed(names: Iterable[str]) -> str:
    """The names, each once, in a sentence: "a, b, c and 4 more"."""
    each = list(dict.fromkeys(names))
    rest = len(each) - MOST_NAMES
    return ", ".join(each[:MOST_NAMES]) + (f" and {rest} more" if rest > 0 else "")
