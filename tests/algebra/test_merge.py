"""Branches that become one convolution, and those that must not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnfold.algebra.graph import Add, Conv
from bnfold.algebra.plan import Outcome, Plan
from bnfold.algebra.planner import make_plan
from tests.algebra.graphs import Build, difference, param, site

SEED = st.integers(0, 2**32 - 1)


def planned(build: Build, *outputs: str) -> Plan:
    plan = make_plan(build.graph(*outputs))
    assert difference(build, plan) < 1e-9
    return plan


def kinds(plan: Plan) -> list[str]:
    return [type(node.op).__name__ for node in plan.after.nodes]


def test_repvgg_block_is_one_convolution() -> None:
    """3x3 + BN, 1x1 + BN and an identity BN, as in Ding et al. 2021, figure 4."""
    build = Build()
    x = build.input(None, 5, 7, 9)
    wide = build.conv(x, 5, (3, 3), pads=((1, 1), (1, 1)), bias=False, name="wide")
    branches = [
        build.affine(wide, name="bn3"),
        build.affine(build.conv(x, 5, (1, 1), bias=False, name="narrow"), name="bn1"),
        build.affine(x, name="bn0"),
    ]
    out = build.relu(build.add(build.add(*branches[:2]), branches[2]))
    plan = planned(build, out)
    assert kinds(plan) == ["Conv", "Activation"]
    assert [(s.outcome, s.into) for s in plan.sites] == [
        (Outcome.FOLDED, ("wide",)),
        (Outcome.MERGED, ("wide",)),
        (Outcome.MERGED, ("wide",)),
    ]


def test_a_batchnorm_behind_the_sum_folds_once_the_sum_is_merged() -> None:
    """RepViT: depthwise 3x3, depthwise 1x1 and the value itself meet before the BatchNorm."""
    build = Build()
    x = build.input(None, 4, 6, 5)
    wide = build.conv(x, 4, (3, 3), pads=((1, 1), (1, 1)), groups=4, name="wide")
    narrow = build.conv(x, 4, (1, 1), groups=4)
    out = build.affine(build.add(build.add(wide, narrow), x), name="bn")
    plan = planned(build, build.relu(out))
    assert kinds(plan) == ["Conv", "Activation"]
    assert site(plan, "bn").into == ("wide",)


@given(
    SEED,
    st.integers(1, 3),
    st.lists(
        st.sampled_from(["conv", "point", "identity", "affine", "average", "minus"]),
        min_size=1,
        max_size=3,
    ),
    st.sampled_from([1, 2]),
    st.sampled_from([1, 2, 4]),
)
def test_any_sum_of_linear_branches_keeps_its_value(
    seed: int, rank: int, others: Sequence[str], stride: int, groups: int
) -> None:
    build = Build(seed)
    x = build.input(None, 4, *[7] * rank)
    same = ((1, 1),) * rank
    steps = (stride,) * rank
    total = build.conv(x, 4, (3,) * rank, pads=same, stride=steps, groups=groups, name="main")
    merges = True
    for other in others:
        if other in ("conv", "minus"):
            fine = int(build.rng.choice([groups, 4]))
            branch = build.conv(x, 4, (3,) * rank, pads=same, stride=steps, groups=fine)
        elif other == "point":
            branch = build.conv(x, 4, (1,) * rank, stride=steps, groups=groups)
        elif other == "average":
            branch = build.pool(
                x, "avg", (3,) * rank, stride=steps, pads=same, count_include_pad=True
            )
        elif stride > 1:
            continue
        else:
            branch = x if other == "identity" else build.affine(x)
        signs = (1.0, -1.0) if other == "minus" else ()
        total = build.node(Add(signs), total, branch)
    plan = planned(build, total)
    assert merges
    assert kinds(plan).count("Conv") == 1
    assert "Pool" not in kinds(plan)


NOT_MERGED = {
    "a branch is read elsewhere": "reader",
    "a branch is an output": "output",
    "the strides differ": "stride",
    "the pads differ by unequal amounts": "pads",
    "the small kernel's taps fall between the large one's": "taps",
    "the other connects more": "groups",
    "the branches read different values": "root",
    "one pads by reflection": "mode",
    "the average leaves out its pads": "average",
}


@pytest.mark.parametrize("case", NOT_MERGED.values(), ids=NOT_MERGED)
def test_a_sum_stays_when(case: str) -> None:
    build = Build()
    x = build.input(None, 4, 8, 8)
    ends: list[str] = []
    stride = (2, 2) if case == "stride" else (1, 1)
    same = ((1, 1), (1, 1))
    dilation = (2, 2) if case == "taps" else (1, 1)
    groups = 4 if case == "groups" else 1
    pads = ((2, 2), (2, 2)) if case == "taps" else same
    main = build.conv(x, 4, (3, 3), pads=pads, dilation=dilation, groups=groups)
    other = build.conv(
        build.relu(x) if case == "root" else x,
        1 if case == "stride" else 4,
        {"stride": (8, 8), "pads": (1, 1), "groups": (1, 1)}.get(case, (3, 3)),
        pads=((0, 0),) * 2 if case in ("stride", "pads", "groups") else same,
        stride=stride,
        pad_mode="reflect" if case == "mode" else "zeros",
    )
    if case == "pads":
        main = build.conv(x, 4, (2, 2), pads=((1, 0), (0, 1)))
        other = build.conv(x, 4, (3, 3), pads=((0, 2), (2, 0)))
    if case == "average":
        other = build.pool(x, "avg", (3, 3), stride=(1, 1), pads=same)
    if case == "reader":
        ends.append(build.relu(other))
    if case == "output":
        ends.append(other)
    plan = planned(build, build.add(main, other), *ends)
    assert "Add" in kinds(plan)


def test_merging_over_different_pads_would_be_wrong() -> None:
    """Why TAPS is asked for: centring a kernel whose pads are not centred moves the image."""
    build = Build()
    x = build.input(None, 1, 6, 6)
    wide = build.conv(x, 1, (3, 3), pads=((1, 1), (1, 1)), bias=False, name="wide")
    small = build.conv(x, 1, (2, 2), pads=((1, 0), (0, 1)), bias=False, name="small")
    plan = planned(build, build.relu(build.add(wide, small)))
    assert kinds(plan) == ["Conv", "Activation"]
    op = plan.after.nodes[0].op
    assert isinstance(op, Conv)
    moved = replace(op, weight=op.weight.mapped(lambda w: np.roll(w, 1, 3)))
    nodes = (plan.after.nodes[0].with_op(moved), *plan.after.nodes[1:])
    wrong = Plan(plan.before, replace(plan.after, nodes=nodes), ())
    assert difference(build, wrong) > 0.1


@given(SEED, st.integers(1, 3), st.booleans(), st.booleans(), st.booleans())
def test_two_convolutions_in_a_row_become_one_where_that_is_cheaper(
    seed: int, rank: int, pointwise_first: bool, biased: bool, padded: bool
) -> None:
    build = Build(seed)
    x = build.input(None, 2, *[6] * rank)
    pads = ((1, 1),) * rank if padded else ((0, 0),) * rank
    if pointwise_first:
        y = build.conv(x, 9, (1,) * rank, bias=biased)
        out = build.conv(y, 3, (3,) * rank, pads=pads)
    else:
        y = build.conv(x, 9, (3,) * rank, pads=pads, bias=biased)
        out = build.conv(y, 2, (1,) * rank)
    plan = planned(build, build.affine(build.relu(out), name="kept"))
    exact = not (pointwise_first and padded and biased)
    assert len(plan.after.nodes) == (3 if exact else 4)


def test_convolutions_that_would_grow_stay() -> None:
    build = Build()
    x = build.input(None, 16, 6, 6)
    y = build.conv(x, 2, (1, 1), bias=False)
    assert len(planned(build, build.conv(y, 16, (3, 3))).after.nodes) == 2


def test_an_affine_and_the_value_itself_are_one_affine() -> None:
    build = Build()
    x = build.input(None, 3, 4, 4)
    out = build.relu(build.add(build.affine(x, name="bn"), x))
    plan = planned(build, out)
    assert kinds(plan) == ["Affine", "Activation"]
    assert site(plan, "bn").outcome is Outcome.KEPT


def test_a_sum_that_broadcasts_one_pixel_over_all_stays() -> None:
    build = Build()
    x = build.input(None, 4, 8, 8)
    total = build.add(build.conv(x, 4, (8, 8)), build.conv(x, 4, (1, 1)))
    assert "Add" in kinds(planned(build, build.relu(total)))


def test_weights_of_different_types_are_not_added() -> None:
    build = Build()
    x = build.input(None, 2, 5, 5)
    half = param("half", np.ones((2, 2, 1, 1)), "float16")
    narrow = build.conv(x, 2, (1, 1), weight=half, bias=False)
    wide = build.conv(x, 2, (3, 3), pads=((1, 1), (1, 1)))
    assert "Add" in kinds(planned(build, build.relu(build.add(wide, narrow))))


def test_a_value_that_is_added_twice_counts_twice() -> None:
    build = Build()
    x = build.input(None, 3, 5, 5)
    wide = build.conv(x, 3, (3, 3), pads=((1, 1), (1, 1)))
    plan = planned(build, build.relu(build.add(wide, x, x)))
    assert kinds(plan) == ["Conv", "Activation"]
