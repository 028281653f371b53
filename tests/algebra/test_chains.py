"""Layers in a row that become one, alone or as a term of a sum, and those that must not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bnfold.algebra.affine import ChannelAffine
from bnfold.algebra.graph import Affine, Identity, Linear
from bnfold.algebra.plan import Plan
from bnfold.algebra.planner import make_plan
from bnfold.algebra.refusal import Reason, Refusal
from tests.algebra.graphs import Build, difference, param, planned, without_shapes

SEED = st.integers(0, 2**32 - 1)
SAME = ((1, 1), (1, 1))


def kinds(plan: Plan) -> list[str]:
    return [type(node.op).__name__ for node in plan.after.nodes]


def image(seed: int = 0, channels: int = 4) -> tuple[Build, str]:
    build = Build(seed)
    return build, build.input(None, channels, 6, 5)


def tokens(seed: int = 0, *sizes: int) -> tuple[Build, str]:
    build = Build(seed)
    return build, build.input(None, *sizes, 6)


@given(SEED, st.integers(0, 2), st.booleans(), st.booleans())
def test_two_linear_layers_become_one(seed: int, rank: int, first: bool, second: bool) -> None:
    """On values of any rank, and a bias is no obstacle."""
    build, x = tokens(seed, *[3] * rank)
    y = build.linear(build.linear(x, 9, bias=first), 4, bias=second)
    plan = planned(build, build.relu(y))
    assert kinds(plan) == ["Linear", "Activation"]
    assert plan.after.nodes[0].name == "linear1"


@pytest.mark.parametrize(("middle", "layers"), [(2, 2), (3, 1)])
def test_a_bottleneck_stays_unless_the_whole_is_as_small(middle: int, layers: int) -> None:
    """6 in, 6 out: 36 weights as one, 12 for each in the middle as two."""
    build, x = tokens()
    y = build.linear(build.linear(x, middle), 6)
    assert kinds(planned(build, y)).count("Linear") == layers


def test_a_low_rank_update_goes_into_the_layer_that_it_adapts() -> None:
    """W x + 2 B(A x), LoRA, Hu et al. 2021, arXiv:2106.09685, 4.1; with dropout before A."""
    build, x = tokens(0, 3)
    low = build.linear(build.linear(build.identity(x), 1, bias=False), 6, bias=False)
    scaled = build.affine(low, None, holds="scale")
    total = build.add(build.linear(x, 6, name="adapted"), scaled)
    plan = planned(build, build.relu(total))
    assert [node.name for node in plan.after.nodes] == ["adapted", "activation6"]


def test_linear_layers_of_one_value_and_the_value_become_one() -> None:
    build, x = tokens(0, 3)
    y = build.add(build.linear(x, 6, bias=False), build.linear(x, 6))
    total = build.add(build.add(y, x), build.affine(x, 2))
    plan = planned(build, build.relu(total))
    assert kinds(plan) == ["Linear", "Activation"]


def test_an_affine_on_another_axis_than_the_features_does_not_go_into_a_linear_layer() -> None:
    """BatchNorm1d of tokens [N, L, C] is on L, even where L equals C."""
    build, x = tokens(0, 6)
    total = build.add(build.linear(x, 6), build.affine(x, 1))
    assert "Add" in kinds(planned(build, build.relu(total)))


def test_an_affine_of_unknown_rank_goes_into_a_layer_only_if_it_is_uniform() -> None:
    """Axis 0 is that of the features of a vector, and of the rows of a matrix."""
    for axis, left in ((0, ["Linear", "Affine", "Add"]), (None, ["Linear"])):
        build = Build()
        x = build.input(4, 4)
        total = build.add(build.linear(x, 4), build.affine(x, axis))
        plan = make_plan(without_shapes(build.graph(total)))
        assert difference(build, plan) < 1e-9
        assert [k for k in kinds(plan) if k != "Identity"] == left


def test_an_affine_with_equal_numbers_on_another_axis_is_uniform() -> None:
    build, x = tokens(0, 3)
    halved = ChannelAffine((1,), np.full(3, 0.5), np.ones(3))
    total = build.add(build.linear(x, 6), build.node(Affine(halved), x))
    assert kinds(planned(build, build.relu(total))) == ["Linear", "Activation"]


def test_a_linear_layer_and_a_pointwise_convolution_are_not_alike() -> None:
    """On [N, 6, 6] one mixes the last axis, the other the one before it."""
    build, x = tokens(0, 6)
    total = build.add(build.linear(x, 6), build.conv(x, 6, (1,)))
    assert "Add" in kinds(planned(build, build.relu(total)))


ROWS: dict[str, tuple[dict[str, Any], dict[str, Any], bool]] = {
    "1x1 then 3x3": ({}, {"kernel": 3}, True),
    "3x3 then 1x1": ({"kernel": 3}, {}, True),
    "1x1 with bias then padded 3x3": ({}, {"kernel": 3, "pad": 1}, False),
    "1x1 without bias then padded 3x3": ({"bias": False}, {"kernel": 3, "pad": 1}, True),
    "1x1 with bias then 3x3 padded by reflection": (
        {},
        {"kernel": 3, "pad": 1, "pad_mode": "reflect"},
        True,
    ),
    "padded 3x3 with bias then 1x1": ({"kernel": 3, "pad": 1}, {}, True),
    "3x3 then 3x3": ({"kernel": 3}, {"kernel": 3}, False),
    "strided 1x1 then 3x3": ({"stride": 2}, {"kernel": 3}, False),
    "3x3 then strided 1x1": ({"kernel": 3}, {"stride": 2}, False),
    "padded 1x1 then 3x3": ({"pad": 1}, {"kernel": 3}, False),
    "3x3 then padded 1x1": ({"kernel": 3}, {"pad": 1}, False),
    "depthwise 3x3 then depthwise 1x1": ({"kernel": 3, "groups": 4}, {"groups": 4}, True),
    "depthwise 1x1 then depthwise 3x3": ({"groups": 4}, {"kernel": 3, "groups": 4}, True),
    "depthwise 1x1 then 3x3": ({"groups": 4}, {"kernel": 3}, True),
    "3x3 then depthwise 1x1": ({"kernel": 3}, {"groups": 4}, True),
    "pairs 3x3 then depthwise 1x1": ({"kernel": 3, "groups": 2}, {"groups": 4}, True),
    "depthwise 3x3 then 1x1": ({"kernel": 3, "groups": 4}, {}, False),
    "1x1 then depthwise 3x3": ({}, {"kernel": 3, "groups": 4}, False),
    "pairs 3x3 then 1x1 to one channel": ({"kernel": 3, "groups": 2}, {"out": 1}, False),
    "transposed 2x2 then 1x1": ({"kernel": 2, "transposed": True}, {}, False),
    "1x1 then transposed 2x2": ({}, {"kernel": 2, "transposed": True}, False),
    "transposed 1x1 then 1x1": ({"transposed": True}, {}, False),
    "1x1 then transposed 1x1": ({}, {"transposed": True}, False),
}


def layer(
    build: Build,
    x: str,
    *,
    kernel: int = 1,
    pad: int = 0,
    stride: int = 1,
    out: int = 4,
    **how: Any,
) -> str:
    pads = ((pad, pad),) * 2
    return build.conv(x, out, (kernel, kernel), stride=(stride, stride), pads=pads, **how)


@pytest.mark.parametrize(("first", "second", "one"), ROWS.values(), ids=ROWS)
@settings(max_examples=8)
@given(SEED)
def test_two_convolutions_in_a_row(
    first: dict[str, Any], second: dict[str, Any], one: bool, seed: int
) -> None:
    build, x = image(seed)
    plan = planned(build, build.relu(layer(build, layer(build, x, **first), **second)))
    assert kinds(plan).count("Conv") == (1 if one else 2)


@pytest.mark.parametrize("pads", [((1, 1), (1, 1)), ((2, 2), (2, 2))])
def test_a_row_whose_end_is_larger_than_its_start_is_not_computed_there(
    pads: tuple[tuple[int, int], ...],
) -> None:
    """1x1 from 8 to 8, then 3x3 to 1: as one, 72 weights of 136, but on a larger image."""
    build, x = image(0, 8)
    first = build.conv(x, 8, (1, 1), bias=False)
    plan = planned(build, build.relu(build.conv(first, 1, (3, 3), pads=pads)))
    assert kinds(plan).count("Conv") == (1 if pads[0] == (1, 1) else 2)


@pytest.mark.parametrize("kernels", [(1, 1), (1, 3), (3, 1)])
def test_what_does_nothing_between_two_layers_goes_with_them(kernels: tuple[int, int]) -> None:
    build, x = image()
    y = build.identity(build.identity(layer(build, x, kernel=kernels[0], out=6)))
    plan = planned(build, build.relu(layer(build, y, kernel=kernels[1], out=2)))
    assert kinds(plan) == ["Conv", "Activation"]


@pytest.mark.parametrize("case", ["reader", "output", "locked"])
def test_a_row_stays_for_the_sake_of_what_does_nothing_in_it(case: str) -> None:
    build, x = image()
    idle = build.node(Identity(), layer(build, x), name="idle")
    ends = [build.relu(layer(build, idle))]
    if case != "locked":
        ends.append(idle if case == "output" else build.relu(idle))
    locked = {"idle": Refusal(Reason.NOT_A_PLAIN_MODULE, "it may not")} if case == "locked" else {}
    assert kinds(planned(build, *ends, locked=locked)).count("Conv") == 2


@pytest.mark.parametrize("case", ["reader", "output", "locked first", "locked second", "type"])
def test_a_row_stays_when(case: str) -> None:
    build, x = image()
    half = param("half", np.ones((4, 4, 1, 1)), "float16") if case == "type" else None
    first = build.conv(x, 4, (1, 1), weight=half, bias=False, name="first")
    ends = [build.relu(build.conv(first, 4, (1, 1), name="second"))]
    if case == "reader":
        ends.append(build.relu(first))
    if case == "output":
        ends.append(first)
    locked = {
        name: Refusal(Reason.NOT_A_PLAIN_MODULE, "it may not")
        for name in ("first", "second")
        if case == f"locked {name}"
    }
    assert kinds(planned(build, *ends, locked=locked)).count("Conv") == 2


TERMS: dict[str, tuple[Sequence[str], bool]] = {
    "1x1, 3x3": (["point", "inside"], True),
    "1x1 with bias, padded 3x3": (["biased point", "padded"], False),
    "1x1, padded 3x3": (["point", "padded"], True),
    "padded 3x3, 1x1": (["padded", "biased point"], True),
    "1x1 with bias, average": (["biased point", "average"], True),
    "1x1 with bias, padded average": (["biased point", "padded average"], False),
    "1x1, padded average": (["point", "padded average"], True),
    "average, scale and shift": (["padded average", "affine"], True),
    "scale and shift, average": (["affine", "average"], True),
    "scale and shift, padded average": (["affine", "padded average"], False),
    "1x1, 1x1, 3x3": (["point", "narrow", "inside"], True),
    "3x3, 3x3": (["inside", "padded"], False),
    "average, average": (["average", "padded average"], False),
    "average that leaves out its pads, 1x1": (["true average", "point"], False),
    "depthwise 3x3, 1x1": (["depthwise", "point"], True),
}


def append(build: Build, x: str, what: str) -> str:
    three = {"kernel": 3, "bias": False}
    match what:
        case "point" | "biased point":
            return layer(build, x, bias=what != "point", out=6 if build.size(x, 1) == 4 else 4)
        case "narrow":
            return layer(build, x, out=3, bias=False)
        case "inside":
            return layer(build, x, **three)
        case "padded":
            return layer(build, x, pad=1, **three)
        case "depthwise":
            return layer(build, x, pad=1, groups=4, **three)
        case "affine":
            return build.affine(build.identity(x))
    pads = ((0, 0), (0, 0)) if what == "average" else SAME
    counted = what == "padded average"
    return build.pool(x, "avg", (3, 3), pads=pads, count_include_pad=counted)


@pytest.mark.parametrize(("row", "merges"), TERMS.values(), ids=TERMS)
def test_a_row_of_layers_as_a_term_of_a_sum(row: Sequence[str], merges: bool) -> None:
    """The main layer has 3x3 taps, padded or not as the row is, so that the row alone decides."""
    build, x = image(3)
    y = x
    for what in row:
        y = append(build, y, what)
    pad = (build.size(y, 2) - build.size(x, 2)) // 2 + 1
    y = y if build.size(y, 1) == 4 else layer(build, y, bias=False)
    total = build.add(layer(build, x, kernel=3, pad=pad, name="main"), y)
    plan = planned(build, build.relu(total))
    assert ("Add" not in kinds(plan)) == merges


MODES = {
    "zeros beside reflection": ("reflect", "zeros", 1, False),
    "reflection beside reflection": ("reflect", "reflect", 1, True),
    "circular beside reflection": ("reflect", "circular", 1, False),
    "nothing beside reflection": ("reflect", "zeros", 0, True),
    "less reflection beside reflection": ("reflect", "reflect", 1, True),
}


@pytest.mark.parametrize(("mode", "other", "pad", "merges"), MODES.values(), ids=MODES)
def test_pads_of_both_kernels_are_the_same_data(
    mode: str, other: str, pad: int, merges: bool
) -> None:
    build, x = image()
    main = layer(build, x, kernel=5, pad=2, pad_mode=mode)
    small = layer(build, x, kernel=2 * pad + 1, pad=pad, pad_mode=other)
    plan = planned(build, build.relu(build.add(main, small)))
    assert ("Add" not in kinds(plan)) == merges


DECONVOLUTIONS: dict[str, tuple[dict[str, Any], bool]] = {
    "the same geometry": ({}, True),
    "another kernel": ({"kernel": (1, 1), "output_padding": (1, 1), "stride": (2, 2)}, False),
    "other groups": ({"groups": 1}, False),
    "no transpose": ({"transposed": False, "kernel": (1, 1), "stride": (1, 1)}, False),
}


@pytest.mark.parametrize(("how", "merges"), DECONVOLUTIONS.values(), ids=DECONVOLUTIONS)
def test_transposed_convolutions_of_one_value(how: dict[str, Any], merges: bool) -> None:
    build, x = image()
    strided = how.get("transposed", True)
    same: dict[str, Any] = {"kernel": (2, 2), "groups": 2, "transposed": True}
    same["stride"] = (2, 2) if strided else (1, 1)
    if not strided:
        same["kernel"] = (1, 1)
    one = build.conv(x, 4, **same)
    two = build.conv(x, 4, **{**same, **how})
    plan = planned(build, build.relu(build.add(one, two)))
    assert ("Add" not in kinds(plan)) == merges


BROADCAST: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "more is cut off one": ({"out": 4, "output_padding": (1, 1)}, {"out": 4}),
    "one has fewer groups, and so fewer channels": ({"out": 4, "groups": 4}, {"out": 1}),
}


@pytest.mark.parametrize(("one", "two"), BROADCAST.values(), ids=BROADCAST)
def test_transposed_convolutions_with_equal_weights_of_which_one_is_broadcast(
    one: dict[str, Any], two: dict[str, Any]
) -> None:
    build = Build()
    x = build.input(None, 4, 1, 1)
    same: dict[str, Any] = {"kernel": (1, 1), "stride": (2, 2), "transposed": True}
    parts = [build.conv(x, **same, **how) for how in (one, two)]
    assert "Add" in kinds(planned(build, build.relu(build.add(*parts))))


def test_kernels_of_which_each_reaches_further_on_one_side_stay() -> None:
    build = Build()
    x = build.input(None, 4, 6)
    left = build.conv(x, 4, (3,), pads=((2, 0),))
    right = build.conv(x, 4, (3,), pads=((0, 2),))
    assert "Add" in kinds(planned(build, build.relu(build.add(left, right))))


def test_a_branch_of_another_stride_that_is_broadcast_stays() -> None:
    """One pixel of every eight is one pixel of an image of eight."""
    build = Build()
    x = build.input(None, 4, 8, 8)
    total = build.add(build.conv(x, 4, (1, 1)), build.conv(x, 4, (1, 1), stride=(8, 8)))
    assert "Add" in kinds(planned(build, build.relu(total)))


def test_an_average_that_is_broadcast_over_stays() -> None:
    """Of three pixels, one window of two, or two if the size is rounded up."""
    build = Build()
    x = build.input(None, 4, 3, 3)
    average = build.pool(x, "avg", (2, 2), stride=(2, 2), ceil_mode=True)
    total = build.add(build.conv(x, 4, (2, 2), stride=(2, 2)), average)
    assert "Add" in kinds(planned(build, build.relu(total)))


@pytest.mark.parametrize("how", [{"dilation": (2, 2)}, {"divisor": 2}, {}], ids=str)
def test_an_average_of_other_windows_or_another_divisor_stays(how: dict[str, Any]) -> None:
    build, x = image()
    pad = 2 if "dilation" in how else 1
    pads = ((pad, pad),) * 2
    average = build.pool(x, "avg", (3, 3), pads=pads, count_include_pad=True, **how)
    total = build.add(layer(build, x, kernel=5, pad=2), average)
    assert ("Add" in kinds(planned(build, build.relu(total)))) == bool(how)


def test_the_value_behind_a_row_has_the_channels_of_its_end() -> None:
    build, x = image()
    y = layer(build, layer(build, x, kernel=3, out=6), out=2)
    (conv, _) = planned(build, build.relu(y)).after.nodes
    after = planned(build, build.relu(y)).after
    assert after.shapes[conv.outputs[0]] == (None, 2, 4, 3)


def test_adding_over_equal_weights_of_a_transposed_kernel_would_not_be_a_delta() -> None:
    """An identity beside a transposed convolution stays: its taps are laid out the other way."""
    build, x = image()
    main = build.conv(x, 4, (3, 3), pads=SAME, transposed=True)
    assert "Add" in kinds(planned(build, build.relu(build.add(main, x))))


@pytest.mark.parametrize(("stride", "merges"), [(1, True), (2, False)])
def test_an_average_that_rounds_its_size_up_has_smaller_windows_at_the_end(
    stride: int, merges: bool
) -> None:
    build = Build()
    x = build.input(None, 4, 7, 7)
    pads = ((1, 1),) * 2 if stride == 1 else ((0, 1),) * 2
    steps = (stride, stride)
    average = build.pool(
        x, "avg", (3, 3) if stride == 1 else (2, 2), stride=steps, ceil_mode=True,
        pads=pads if stride == 1 else (), count_include_pad=True,
    )  # fmt: skip
    main = build.conv(x, 4, (3, 3) if stride == 1 else (2, 2), stride=steps, pads=pads)
    plan = planned(build, build.relu(build.add(main, average)))
    assert ("Add" not in kinds(plan)) == merges


def test_the_parameters_of_the_layer_that_stays_keep_their_names() -> None:
    build, x = tokens()
    y = build.linear(build.linear(x, 6, name="gone"), 6, bias=False, name="stays")
    (node,) = planned(build, y).after.nodes
    assert isinstance(node.op, Linear)
    assert node.op.bias is not None
    assert (node.op.weight.name, node.op.bias.name) == ("w1", "stays.bias")


def test_a_bias_that_stays_as_it_is_is_not_written_anew() -> None:
    build, x = tokens()
    y = build.linear(build.linear(x, 6, bias=False), 6)
    plan = planned(build, y)
    before, after = plan.before.nodes[1].op, plan.after.nodes[0].op
    assert isinstance(before, Linear)
    assert isinstance(after, Linear)
    assert after.bias is before.bias
