"""Where torch keeps the input weights of a recurrent layer: in one list, behind each other.

For every layer, and in it for every direction: weight_ih, weight_hh, then bias_ih and bias_hh if it
has biases, then weight_hr if it projects. A sequence goes into those of the first layer.
"""

from __future__ import annotations

from bnfold.formats.meaning import layers
from bnfold.formats.meaning.operands import Constant, computed, not_linear
from bnfold.formats.meaning.steps import Meaning
from bnfold.formats.pytorch.calls import Call

OPERATORS = ("lstm", "gru", "rnn_tanh", "rnn_relu")
LIST = "params"
"""The argument that is the list."""


def entries(count: int, layer_count: int, *, biased: bool, both: bool) -> dict[str, int]:
    """Role of a parameter of the neutral op -> its place among the `count` of the list."""
    each = count // (layer_count * (1 + both))
    found = {"weight": 0, "bias": 2, "reverse_weight": each, "reverse_bias": each + 2}
    return {
        role: place
        for role, place in found.items()
        if (biased or "bias" not in role) and (both or "reverse" not in role)
    }


def places(call: Call) -> dict[str, int]:
    """The same for a call."""
    biased, both = call.flag("has_biases"), call.flag("bidirectional")
    count = len(call.operands(LIST))
    return entries(count, call.whole("num_layers"), biased=biased, both=both)


def recurrent(call: Call) -> Meaning:
    if not call.has("input"):
        raise not_linear("it reads a packed sequence")
    weights = call.operands(LIST)
    if not all(isinstance(each, Constant) for each in weights):
        raise computed("one of its weights")
    names = [each.name for each in weights]
    if any(names.count(names[place]) > 1 for place in places(call).values()):
        raise not_linear("one of its weights reads the state as well")
    held = {role: weights[place] for role, place in places(call).items()}
    states = [tensor for tensor in call.tensors if tensor.name != call.x.name]
    return layers.recurrent(call.x, states, **held)
