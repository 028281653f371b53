"""Scales and the products of two computed values: elementwise, and of matrices."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnfold.algebra.affine import ChannelAffine
from bnfold.algebra.graph import Affine, Conv, Op
from bnfold.algebra.refusal import Reason, Refusal
from tests.algebra.graphs import (
    Build,
    apart,
    assert_folded,
    assert_kept,
    close,
    outputs,
    planned,
    site,
)

SEED = st.integers(0, 1 << 20)


@given(SEED, st.booleans())
def test_one_of_two_factors_takes_the_scale(seed: int, uniform: bool) -> None:
    build = Build(seed)
    x = build.input(None, 3, 4, 4)
    y = build.multiply(build.conv(x, 5, (1, 1), name="a"), build.conv(x, 5, (1, 1), name="b"))
    out = build.affine(y, None if uniform else 1, shift=False, name="bn")
    plan = assert_folded(build, build.relu(out))
    assert site(plan, "bn").into == ("a",)


def test_either_factor_alone_can_take_the_scale_and_both_would_be_wrong() -> None:
    build = Build()
    x = build.input(None, 3, 4, 4)
    y = build.multiply(build.conv(x, 5, (1, 1), name="a"), build.conv(x, 5, (1, 1), name="b"))
    out = build.relu(build.affine(y, shift=False, name="bn"))
    scaled: dict[str, Op] = {}
    for factor, other in (("a", "b"), ("b", "a")):
        plan = planned(build, out, locked={other: Refusal(Reason.SHARED_MODULE, "", other)})
        assert site(plan, "bn").into == (factor,)
        scaled |= {n.name: n.op for n in plan.after.nodes if n.name == factor}
    assert apart(build, out, {"a": scaled["a"]}) < 1e-9
    assert apart(build, out, scaled) > 1e-2


@pytest.mark.parametrize("first", [True, False], ids=["left", "right"])
@pytest.mark.parametrize("gate_takes", [True, False], ids=["the gate", "the value"])
def test_the_factor_that_can_take_the_scale_takes_it(first: bool, gate_takes: bool) -> None:
    """As in squeeze and excitation (Hu et al. 2018, arXiv:1709.01507)."""
    build = Build()
    x = build.input(None, 3, 4, 4)
    value, gate = build.conv(x, 5, (1, 1), name="value"), build.mean(x, 2, 3, keepdims=True)
    gate = build.conv(gate, 5, (1, 1), name="gate")
    ends = [] if gate_takes else [build.relu(gate)]
    ends += [build.relu(value)] if gate_takes else []
    y = build.multiply(*((value, gate) if first else (gate, value)))
    plan = assert_folded(build, build.relu(build.affine(y, shift=False, name="bn")), *ends)
    assert site(plan, "bn").into == ("gate" if gate_takes else "value",)


@given(SEED, st.integers(0, 1), st.booleans())
def test_a_scale_of_a_factor_is_one_of_the_product(seed: int, port: int, broadcast: bool) -> None:
    build = Build(seed)
    sizes = (3, 1, 1) if broadcast else (None, 3, 4, 4)
    factors = [build.input(None, 3, 4, 4), build.input(*sizes)]
    axis = build.rank(factors[port]) - 3
    factors[port] = build.affine(factors[port], axis, shift=False)
    assert_folded(build, build.relu(build.conv(build.multiply(*factors), 2, (1, 1))))


@pytest.mark.parametrize("op", ["multiply", "matmul"])
@pytest.mark.parametrize("after", [True, False], ids=["after", "before"])
def test_a_shift_does_not_pass(op: str, after: bool) -> None:
    build = Build()
    x, other = build.input(None, 4, 4), build.input(None, 4, 4)
    join = build.multiply if op == "multiply" else build.matmul
    if after:
        out = build.affine(join(other, build.linear(x, 4)), 2)
    else:
        out = build.linear(join(other, build.affine(x, 2)), 2)
    left = assert_kept(build, Reason.SHIFT, build.relu(out))
    assert "a shift cannot pass a product of computed values" in (left.why or "")


def test_a_square_above_an_affine_would_be_scaled_twice() -> None:
    build = Build()
    y = build.conv(build.input(None, 3, 4), 3, (1,))
    assert_kept(build, Reason.OTHER_READERS, build.affine(build.multiply(y, y), shift=False))


def test_a_square_below_an_affine_takes_its_scale_twice() -> None:
    build = Build()
    a = build.affine(build.input(None, 3, 4), shift=False)
    out = build.conv(build.multiply(a, a), 2, (1,), bias=False)
    plan = assert_folded(build, out)
    bn, _, conv = plan.before.nodes
    _, folded = plan.after.nodes
    assert isinstance(bn.op, Affine)
    assert isinstance(conv.op, Conv)
    assert isinstance(folded.op, Conv)
    scale = bn.op.affine.scale[:, None]
    assert close(folded.op.weight.load(), conv.op.weight.load() * scale**2)


def test_a_factor_that_is_broadcast_over_the_channels_cannot_take_their_scales() -> None:
    build = Build()
    x = build.input(None, 3, 4)
    y = build.multiply(build.input(None, 5, 4), build.conv(x, 1, (1,)))
    out = build.relu(build.affine(y, sign="plus", shift=False))
    assert_kept(build, Reason.GRAPH_OUTPUT, out)
    build = Build()
    x = build.input(None, 3, 4)
    wide = build.mean(build.conv(x, 5, (1,), name="wide"), 0)
    y = build.multiply(build.conv(x, 1, (1,)), wide)
    plan = assert_folded(build, build.relu(build.affine(y, shift=False, name="bn")))
    assert site(plan, "bn").into == ("wide",)


def test_a_common_scale_goes_to_a_factor_that_is_broadcast() -> None:
    build = Build()
    x = build.input(None, 3, 4)
    y = build.multiply(build.relu(build.input(None, 5, 4)), build.conv(x, 1, (1,), name="narrow"))
    same = Affine(ChannelAffine.on_axis(1, np.full(5, -2.0), np.zeros(5)))
    plan = assert_folded(build, build.relu(build.node(same, y, name="bn")))
    assert site(plan, "bn").into == ("narrow",)


@given(SEED, st.integers(1, 3), st.sampled_from(["rows", "columns", "heads", "all"]))
def test_a_product_of_matrices_hands_the_scale_to_the_factor_that_has_the_axis(
    seed: int, heads: int, where: str
) -> None:
    build = Build(seed)
    if where == "heads":
        left = build.conv(build.input(None, 2, 5, 3), heads, (1, 1), name="left")
    else:
        left = build.linear(build.input(None, heads, 3, 2), 5, name="left")
        left = build.transpose(left, 0, 1, 3, 2)
    right = build.linear(build.input(None, heads, 3, 6), 7, name="right")
    y = build.matmul(left, right)
    axis = {"rows": 2, "columns": 3, "heads": 1, "all": None}[where]
    plan = assert_folded(build, build.relu(build.affine(y, axis, shift=False, name="bn")))
    assert site(plan, "bn").into == ("right" if where == "columns" else "left",)


@given(SEED, st.integers(0, 1), st.integers(1, 3))
def test_a_scale_of_a_matrix_is_one_of_the_product_unless_it_is_summed_over(
    seed: int, port: int, axis: int
) -> None:
    build = Build(seed)
    factors = [build.input(None, 2, 5, 3), build.input(None, 2, 3, 6)]
    factors[port] = build.affine(factors[port], axis, shift=False)
    y = build.matmul(*factors)
    behind = build.transpose(y, *[i for i in range(4) if i != axis], axis)
    out = build.relu(build.linear(behind, 2))
    if axis == (3 if port == 0 else 2):
        left = assert_kept(build, Reason.WRONG_AXIS, out)
        assert "it sums over the affine's own channels" in (left.why or "")
    else:
        assert_folded(build, out)


def test_a_scale_of_the_axis_that_is_summed_over_cannot_come_out_of_a_product() -> None:
    build = Build()
    left, right = build.input(None, 4, 4), build.input(None, 4, 4)
    scaled = build.affine(left, 2, shift=False)
    out = build.matmul(scaled, right)
    right_way = outputs(build.graph(out), build)[out]
    a = build.nodes[0].op
    assert isinstance(a, Affine)
    product = build.values[left][0] @ build.values[right][0]
    for axis in (1, 2):
        assert not close(a.affine.moved([axis]).on(product), right_way)
