"""Operators that nothing is known of: the same wherever everything of them is the same, only there.

Each pair is an original that is proved of itself, and a candidate that differs in one thing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from bnfold.errors import ModelError
from tests.proof.nets import CONSTANTS, Array, folded, model, norm, proof

CONV = "a = Conv <pads = [1, 1, 1, 1]> (x, w, c)"
VECTOR = "float[N, 5, P, Q] y"
DIVIDED = "q = Squeeze (s)\nf = Cast <to = 1> (q)\ny = Div (a, f)"
IDS = "float[N, 3, H, W] x, int64[4] ids"

PAIRS: dict[str, tuple[str, str]] = {
    "attribute of an unknown operator": (
        f"{CONV}\ny = own.Thing <mode = 1> (a)",
        f"{CONV}\ny = own.Thing <mode = 2> (a)",
    ),
    "attribute that is left out": (
        f"{CONV}\ny = own.Thing <mode = 1> (a)",
        f"{CONV}\ny = own.Thing (a)",
    ),
    "unknown operator of another domain": (
        f"{CONV}\ny = own.Relu (a)",
        f"{CONV}\ny = Relu (a)",
    ),
    "constant of an unknown operator": (
        f"{CONV}\ny = own.Thing (a, beta)",
        f"{CONV}\ny = own.Thing (a, mean)",
    ),
    "inputs of an unknown operator": (
        f"{CONV}\nb = Conv (x, w1)\ny = own.Thing (a, b)",
        f"{CONV}\nb = Conv (x, w1)\ny = own.Thing (b, a)",
    ),
    "one input twice": (
        f"{CONV}\nb = Conv (x, w1)\ny = own.Thing (a, b)",
        f"{CONV}\nb = Conv (x, w1)\ny = own.Thing (a, a)",
    ),
    "outputs of an unknown operator": (
        f"{CONV}\ny, z = own.Thing (a)",
        f"{CONV}\nz, y = own.Thing (a)",
    ),
    "an output left out": (
        f"{CONV}\ny = own.Thing (a)",
        f"{CONV}\ny, z = own.Thing (a)",
    ),
    "a scale before an unknown operator": (
        f"{CONV}\nb = Mul (a, row)\ny = own.Thing (b)",
        f"{CONV}\nb = own.Thing (a)\ny = Mul (b, row)",
    ),
    "a scale past a sigmoid": (
        f"{CONV}\nb = Sigmoid (a)\ny = Mul (b, half)",
        f"{CONV}\nb = Mul (a, half)\ny = Sigmoid (b)",
    ),
    "bounds of a clip": (
        f"{CONV}\ny = Clip (a, zero_f, six)",
        f"{CONV}\ny = Clip (a, zero_f, seven)",
    ),
    "rows of a table": (
        "t = Gather (table, ids)\ny = Unsqueeze (t, two)",
        "t = Gather (other, ids)\ny = Unsqueeze (t, two)",
    ),
    "indices": (
        "t = Gather (table, ids)\ny = Unsqueeze (t, two)",
        "k = Add (ids, one)\nt = Gather (table, k)\ny = Unsqueeze (t, two)",
    ),
    "an integer beyond what float64 holds": (
        "k = Add (ids, huge)\nt = own.Thing (k)\ny = Unsqueeze (t, two)",
        "k = Add (ids, huger)\nt = own.Thing (k)\ny = Unsqueeze (t, two)",
    ),
    "a size by another axis": (
        f"{CONV}\ns = Shape <start = 2, end = 3> (a)\n{DIVIDED}",
        f"{CONV}\ns = Shape <start = 3, end = 4> (a)\n{DIVIDED}",
    ),
    "the size of another value": (
        f"a = Conv (x, w, c)\ns = Shape <start = 2, end = 3> (a)\n{DIVIDED}",
        f"a = Conv (x, w, c)\ns = Shape <start = 2, end = 3> (x)\n{DIVIDED}",
    ),
    "a comparison": (
        f"{CONV}\ng = Greater (a, half)\ny = Where (g, a, half)",
        f"{CONV}\ng = GreaterOrEqual (a, half)\ny = Where (g, a, half)",
    ),
    "a type on the way": (
        f"{CONV}\nh = Cast <to = 11> (a)\ny = Cast <to = 1> (h)",
        f"{CONV}\nh = Cast <to = 10> (a)\ny = Cast <to = 1> (h)",
    ),
    "an axis": (
        f"{CONV}\ny = Softmax <axis = 1> (a)",
        f"{CONV}\ny = Softmax <axis = 2> (a)",
    ),
    "a shift through a sum of computed weights": (
        f"{CONV}\nk = Sigmoid (a)\nb = Add (a, row)\ny = MatMul (k, b)",
        f"{CONV}\nk = Sigmoid (a)\nb = MatMul (k, a)\ny = Add (b, row)",
    ),
}
MORE: dict[str, Any] = {
    "zero_f": np.array(0, np.float32),
    "six": np.array(6, np.float32),
    "seven": np.array(7, np.float32),
    "one": np.array(1),
    "huge": np.array(1 << 60),
    "huger": np.array((1 << 60) + 1),
    "table": CONSTANTS["m"],
    "other": CONSTANTS["m"][::-1],
}


def outputs_of(body: str) -> str:
    return VECTOR if "ids" not in body else "float[4, K, L] y"


@pytest.mark.parametrize("name", PAIRS)
def test_an_operator_is_the_same_in_everything(name: str) -> None:
    one, other = PAIRS[name]
    inputs = IDS if "ids" in one else "float[N, 3, H, W] x"
    original, candidate = (
        model(body, MORE, inputs=inputs, outputs=outputs_of(body)) for body in (one, other)
    )
    assert proof(original, original).proved, proof(original, original).open
    found = proof(original, candidate)
    assert not found.proved


FUNCTION = '<domain: "own", opset_import: ["" : {opset}]>\nThing (p) => (q) {{ {body} }}'


def test_a_function_is_what_it_holds() -> None:
    """It stays one, for its opset has another meaning; and what it holds is held to."""
    call = f"{CONV}\ny = own.Thing (a)"
    body = "q = Softmax (p)"
    original = model(call, outputs=VECTOR, more=FUNCTION.format(opset=11, body=body))
    assert proof(original, original).proved
    for opset, other in ((11, "q = Softmax <axis = 2> (p)"), (12, "q = Sigmoid (p)"), (17, body)):
        candidate = model(call, outputs=VECTOR, more=FUNCTION.format(opset=opset, body=other))
        assert not proof(original, candidate).proved


def test_an_opset_that_changes_an_operator_is_another_model() -> None:
    body = f"{CONV}\ny = Softmax <axis = 1> (a)"
    old, older, new = (model(body, outputs=VECTOR, opset=opset) for opset in (12, 11, 13))
    assert proof(old, older).proved
    assert not proof(old, new).proved


def test_random_numbers_are_not_the_same_twice() -> None:
    original = model(f"{CONV}\nb = RandomNormalLike (a)\ny = Add (a, b)", outputs=VECTOR)
    found = proof(original, original)
    assert not found.proved
    assert "same result each time" in found.summary


BRANCH = """{conv}
k = ReduceMax <keepdims = 0> (a)
g = Greater (k, half)
y = If (g) <then_branch = one () => (float[N, 5, P, Q] u) {{ u = {one} }},
            else_branch = other () => (float[N, 5, P, Q] v) {{ v = {other} }}>"""


def branching(one: str, other: str) -> onnx.ModelProto:
    body = BRANCH.format(conv=CONV, one=one, other=other)
    return model(body, outputs=VECTOR)


def test_branches_are_what_they_hold() -> None:
    original = branching("Relu (a)", "Sigmoid (a)")
    assert proof(original, original).proved
    assert not proof(original, branching("Relu (a)", "Tanh (a)")).proved
    assert not proof(original, branching("Sigmoid (a)", "Relu (a)")).proved


def looping(body: str, count: int = 3) -> onnx.ModelProto:
    text = f"""{CONV}
    n = Constant <value_int = {count}> ()
    y = Loop (n, , a) <body =
      each (int64 i, bool go, float[N, 5, P, Q] s) => (bool on, float[N, 5, P, Q] t) {{
        on = Identity (go)
        {body}
    }}>"""
    return model(text, outputs=VECTOR)


def test_a_loop_is_what_it_holds() -> None:
    original = looping("t = Relu (s)")
    assert proof(original, original).proved
    assert not proof(original, looping("t = Sigmoid (s)")).proved
    assert not proof(original, looping("t = Relu (a)")).proved
    assert not proof(original, looping("t = Relu (s)", 4)).proved


def test_inputs_and_outputs_are_the_same() -> None:
    body = f"{CONV}\nb = Relu (a)\ny = Sigmoid (b)"
    original = model(body, outputs=f"{VECTOR}, float[N, 5, P, Q] b")
    assert proof(original, original).proved
    for candidate in (
        model(body, outputs=f"float[N, 5, P, Q] b, {VECTOR}"),
        model(body, outputs=VECTOR),
        model(body, outputs=f"{VECTOR}, float[N, 5, P, Q] a"),
        model(body, inputs="float[N, 3, 8, W] x", outputs=f"{VECTOR}, float[N, 5, P, Q] b"),
        model(body, inputs="double[N, 3, H, W] x", outputs=f"{VECTOR}, float[N, 5, P, Q] b"),
    ):
        assert not proof(original, candidate).proved


def test_an_initializer_that_is_an_input_can_be_another() -> None:
    original = model(f"{CONV}\ny = Relu (a)", outputs=VECTOR)
    candidate = model(f"{CONV}\ny = Relu (a)", outputs=VECTOR)
    candidate.graph.input.append(helper.make_tensor_value_info("c", TensorProto.FLOAT, [5]))
    assert not proof(original, candidate).proved


def test_a_shared_weight_is_changed_in_one_place() -> None:
    body = (
        "a = Conv <pads = [1, 1, 1, 1]> (x, w)\nr = Relu (a)\nb = Conv (x, w)\ny = own.Thing (r, b)"
    )
    original = model(body, outputs=VECTOR)
    assert proof(original, original).proved
    apart = model(
        body.replace("b = Conv (x, w)", "b = Conv (x, k)"), {"k": CONSTANTS["w"]}, outputs=VECTOR
    )
    assert proof(original, apart).proved
    changed: Array = CONSTANTS["w"].copy()
    changed[3, 1, 2, 0] *= 1 + 2**-22
    apart = model(
        body.replace("b = Conv (x, w)", "b = Conv (x, k)"), {"k": changed}, outputs=VECTOR
    )
    assert not proof(original, apart).proved


def test_two_that_are_one() -> None:
    """Two equal operators on one value are one function: a tool may share them, or part them."""
    twice = f"{CONV}\nb = Sigmoid (a)\nd1 = Sigmoid (a)\ny = own.Thing (b, d1)"
    once = f"{CONV}\nb = Sigmoid (a)\ny = own.Thing (b, b)"
    assert proof(model(twice, outputs=VECTOR), model(once, outputs=VECTOR)).proved
    assert proof(model(once, outputs=VECTOR), model(twice, outputs=VECTOR)).proved


def test_a_shape_is_that_of_what_has_the_same() -> None:
    """The BatchNorm whose shape is read is gone; what is left has the same shape."""
    tail = "s = Shape (n)\nk = ConstantOfShape (s)\ny = Sub (n, k)"
    original = model(f"{CONV}\n{norm('n', 'a')}\n{tail}", outputs=VECTOR)
    assert proof(original, folded(original)).proved


def test_shapes_on_the_way_are_not_believed() -> None:
    """A declared shape would make a constant of what is computed; at other sizes it is another."""
    tail = "s = Shape (a)\nq = Cast <to = 1> (s)\nt = ReduceSum <keepdims = 0> (q)\ny = Div (a, t)"
    computed = model(f"{CONV}\n{tail}", outputs=VECTOR)
    declared = helper.make_tensor_value_info("a", TensorProto.FLOAT, [2, 5, 8, 8])
    computed.graph.value_info.append(declared)
    fixed = model(f"{CONV}\ny = Div (a, sizes)", {"sizes": np.float32(23)}, outputs=VECTOR)
    assert proof(computed, computed).proved
    assert not proof(fixed, computed).proved


def test_two_initializers_of_one_name_are_refused() -> None:
    twice = model(f"{CONV}\ny = Relu (a)", outputs=VECTOR)
    twice.graph.initializer.append(twice.graph.initializer[0])
    with pytest.raises(ModelError, match="two initializers called"):
        proof(twice, twice)
