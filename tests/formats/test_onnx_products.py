"""Attention and other products of computed values in ONNX, as exporters write them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from bnfold.algebra.refusal import Reason
from tests.formats.onnx_nets import Net, check_fold, fold, kinds

TOKENS = 35
"""Of a convolution by 3x3 on 9x7."""

HEADS = 2


def ints(net: Net, *values: int) -> str:
    return net.weight(list(values), np.int64)


def split_heads(net: Net, x: str, channels: int = 4) -> str:
    """[N, C, 7, 5] -> [N, heads, tokens, C / heads]"""
    split = net.node("Reshape", x, ints(net, 0, HEADS, channels // HEADS, -1))
    return net.node("Transpose", split, perm=[0, 1, 3, 2])


def joined(net: Net, y: str, channels: int = 4) -> str:
    """The way back, and a BatchNorm."""
    turned = net.node("Transpose", y, perm=[0, 1, 3, 2])
    return net.bn(net.node("Reshape", turned, ints(net, 0, channels, 7, 5)), channels)


Step = Callable[[Net, str], str]


def attended(net: Net, x: str, between: Step | None = None, **softmax: Any) -> str:
    query, key, value = (split_heads(net, net.conv(x, 3, 4)) for _ in range(3))
    logits = net.node("MatMul", query, net.node("Transpose", key, perm=[0, 1, 3, 2]))
    weights = net.node("Softmax", logits, **softmax)
    if between is not None:
        weights = between(net, weights)
    return joined(net, net.node("MatMul", weights, value))


def dropped_and_cast(net: Net, weights: str) -> str:
    return net.node("Cast", net.node("Dropout", weights), to=1)


def reshaped(net: Net, weights: str) -> str:
    flat = net.node("Reshape", weights, ints(net, -1, TOKENS, TOKENS))
    return net.node("Reshape", flat, ints(net, -1, HEADS, TOKENS, TOKENS))


def turned(net: Net, weights: str) -> str:
    return net.node("Transpose", weights, perm=[0, 1, 3, 2])


def rescaled(net: Net, weights: str) -> str:
    return net.node("Mul", weights, net.weight(1.5))


def shortened(net: Net, weights: str) -> str:
    """Some of the weights, laid over all the values again: they sum to less than one."""
    cut = net.node("Slice", weights, ints(net, 0), ints(net, 30), ints(net, 3))
    return net.node("Pad", cut, ints(net, *[0] * 7, 5))


MEANS: dict[str, Callable[[Net, str], str]] = {
    "attention": lambda net, x: attended(net, x),
    "dropout and cast": lambda net, x: attended(net, x, dropped_and_cast),
    "reshaped weights": lambda net, x: attended(net, x, reshaped),
    "columns, turned": lambda net, x: attended(net, x, turned, axis=2),
}


@pytest.mark.parametrize("batch", [2, "N"])
@pytest.mark.parametrize("case", MEANS)
def test_a_batchnorm_passes_attention(case: str, batch: int | str) -> None:
    net = Net()
    net.output(MEANS[case](net, net.input("x", batch, 3, 9, 7)))
    after, plan = check_fold(net.proto())
    assert plan.batchnorms.kept == 0, str(plan)
    assert "BatchNormalization" not in kinds(after)


def test_a_batchnorm_of_the_values_passes_attention_down() -> None:
    net = Net()
    x = net.input("x", 2, 6, 4)
    logits = net.node("MatMul", net.node("MatMul", x, net.normal(4, 3)), net.normal(2, 3, 6))
    weights = net.node("Softmax", logits)
    values = net.node("Mul", net.node("Sigmoid", x), net.normal(4))
    values = net.node("Add", values, net.normal(4))
    net.output(net.node("MatMul", net.node("MatMul", weights, values), net.normal(4, 5)), rank=3)
    _, plan = check_fold(net.proto())
    assert plan.affines.kept == 0, str(plan)


def context(net: Net, x: str) -> str:
    """values @ softmax: the weights of each column sum to one."""
    values = net.node("Reshape", net.conv(x, 3, 4), ints(net, 0, 4, -1))
    scores = net.node("Reshape", net.conv(x, 3, 1), ints(net, 0, 1, -1))
    columns = net.node("Transpose", net.node("Softmax", scores), perm=[0, 2, 1])
    return net.bn(net.node("Unsqueeze", net.node("MatMul", values, columns), ints(net, 3)), 4)


def test_a_batchnorm_passes_a_mean_of_columns() -> None:
    net = Net()
    net.output(context(net, net.input("x", "N", 3, 9, 7)))
    _, plan = check_fold(net.proto())
    assert plan.batchnorms.kept == 0


SUMS: dict[str, Callable[[Net, str], str]] = {
    "other axis": lambda net, x: attended(net, x, axis=2),
    "rescaled": lambda net, x: attended(net, x, rescaled),
    "shortened": lambda net, x: attended(net, x, shortened),
    "turned": lambda net, x: attended(net, x, turned),
}


@pytest.mark.parametrize("case", SUMS)
def test_weights_that_do_not_sum_to_one_pass_no_shift(case: str) -> None:
    net = Net()
    net.output(SUMS[case](net, net.input("x", 2, 3, 9, 7)))
    _, plan = check_fold(net.proto())
    (site,) = [site for site in plan.sites if site.batchnorm]
    assert site.reason is Reason.SHIFT, site.why


@pytest.mark.parametrize(("axis", "folded"), [(3, 1), (-1, 1), (2, 0), (1, 0), (None, 0)])
def test_before_opset_13_softmax_goes_over_all_that_follows(axis: int | None, folded: int) -> None:
    net = Net(opset=12)
    how = {} if axis is None else {"axis": axis}
    net.output(attended(net, net.input("x", 2, 3, 9, 7), **how))
    _, plan = check_fold(net.proto())
    assert plan.batchnorms.folded == folded


def one_operator(net: Net, x: str, *extra: str, made: Any = (), **attributes: Any) -> str:
    parts = [split_heads(net, net.conv(x, 3, 4)) for _ in range(3)]
    return joined(net, net.node("Attention", *parts, *extra, made=made, **attributes))


def flat_heads(net: Net, x: str, queries: int, pairs: int) -> str:
    """Attention on [N, tokens, heads * E], with `pairs` heads of keys and values."""
    parts = [
        net.node(
            "Transpose",
            net.node("Reshape", net.conv(x, 3, 2 * n), ints(net, 0, 2 * n, -1)),
            perm=[0, 2, 1],
        )
        for n in (queries, pairs, pairs)
    ]
    y = net.node("Attention", *parts, q_num_heads=queries, kv_num_heads=pairs)
    wide = net.node("Transpose", y, perm=[0, 2, 1])
    return net.bn(net.node("Reshape", wide, ints(net, 0, 2 * queries, 7, 5)), 2 * queries)


def mask(net: Net, *, whole: bool, added: bool = False) -> str:
    part = np.eye(TOKENS, dtype=bool)
    part[3] = whole
    return net.weight(np.where(part, 0, -np.inf)) if added else net.weight(part, np.bool_)


ATTENTIONS: dict[str, tuple[Callable[[Net, str], str], int]] = {
    "plain": (lambda net, x: one_operator(net, x), 1),
    "flat": (lambda net, x: flat_heads(net, x, 2, 2), 1),
    "shared values": (lambda net, x: flat_heads(net, x, 4, 2), 0),
    "mask": (lambda net, x: one_operator(net, x, mask(net, whole=True)), 1),
    "added mask": (lambda net, x: one_operator(net, x, mask(net, whole=True, added=True)), 1),
    "causal": (lambda net, x: one_operator(net, x, is_causal=1), 1),
}


@pytest.mark.parametrize("case", ATTENTIONS)
def test_attention_as_one_operator(case: str) -> None:
    build, folded = ATTENTIONS[case]
    net = Net(opset=23, ir=10)
    net.output(build(net, net.input("x", 2, 3, 9, 7)))
    _, plan = check_fold(net.proto())
    assert plan.batchnorms.folded == folded, str(plan)


@pytest.mark.parametrize("added", [False, True])
def test_a_row_that_is_masked_altogether_passes_nothing(added: bool) -> None:
    net = Net(opset=23, ir=10)
    x = net.input("x", 2, 3, 9, 7)
    net.output(one_operator(net, x, mask(net, whole=False, added=added)))
    _, plan = fold(net.proto())
    assert plan.batchnorms.folded == 0


@pytest.mark.parametrize("case", ["computed mask", "cache", "probabilities"])
def test_attention_that_does_more_passes_nothing(case: str) -> None:
    net = Net(opset=23, ir=10)
    x = net.input("x", 2, 3, 9, 7)
    match case:
        case "computed mask":
            net.output(one_operator(net, x, net.input("mask", TOKENS, TOKENS)))
        case "cache":
            past = [net.input(name, 2, HEADS, 4, 2) for name in ("keys", "values")]
            net.output(one_operator(net, x, "", *past))
        case _:
            net.output(one_operator(net, x, made=["y", "", "", "probabilities"]))
            net.output("probabilities")
    _, plan = fold(net.proto())
    assert plan.batchnorms.folded == 0


def squared(net: Net, x: str) -> str:
    y = net.conv(x, 3, 4)
    return net.node("Mul", y, y)


def gated(net: Net, x: str) -> str:
    return net.node("Mul", net.conv(x, 3, 4), net.node("Sigmoid", net.conv(x, 3, 4)))


def masked(net: Net, x: str) -> str:
    return net.node("Mul", net.conv(x, 3, 4), net.normal(1, 4, 7, 5))


def divided(net: Net, x: str) -> str:
    return net.node("Div", net.conv(x, 3, 4), net.node("Exp", net.conv(x, 3, 4)))


@pytest.mark.parametrize(("build", "folded"), [(squared, 0), (gated, 1), (masked, 1), (divided, 0)])
def test_a_scale_passes_a_product(build: Callable[[Net, str], str], folded: int) -> None:
    net = Net()
    product = build(net, net.input("x", "N", 3, 9, 7))
    net.output(net.node("Mul", product, net.normal(4, 1, 1)))
    _, plan = check_fold(net.proto())
    assert plan.affines.folded == folded, str(plan)


def test_a_shift_passes_a_sum_with_a_constant_of_many_axes() -> None:
    """A position embedding: the shift goes to the other operand."""
    net = Net()
    total = net.node("Add", net.conv(net.input("x", 2, 3, 9, 7), 3, 4), net.normal(1, 4, 7, 5))
    net.output(net.bn(net.node("Sub", total, net.normal(4, 1, 1)), 4))
    after, plan = check_fold(net.proto())
    assert plan.batchnorms.kept == 1
    assert plan.affines.folded == 1
    assert kinds(after) == ["Conv", "Add", "BatchNormalization"]


def test_products_of_vectors_are_opaque() -> None:
    net = Net()
    x = net.input("x", 3, 4)
    product = net.node("MatMul", x, net.node("ReduceSum", x, ints(net, 0), keepdims=0))
    net.output(net.node("Mul", product, net.weight(2.0)), rank=1)
    _, plan = check_fold(net.proto())
    assert plan.affines.folded == 0


def test_a_product_with_a_constant_on_the_left_passes_a_scale() -> None:
    net = Net()
    inner = net.node("MatMul", net.input("x", 2, 5, 4), net.normal(4, 6))
    mixed = net.node("MatMul", net.normal(3, 5), inner)
    net.output(net.node("Mul", mixed, net.normal(6)), rank=3)
    after, plan = check_fold(net.proto())
    assert plan.affines.kept == 0
    assert kinds(after) == ["MatMul", "MatMul"]
