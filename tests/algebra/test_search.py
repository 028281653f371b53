"""Placing an affine: every branch is searched for itself, and what failed is undone."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from bnfold.algebra.refusal import Reason
from tests.algebra.graphs import Build, assert_folded, planned, site

CHANNELS = 2


def scaled_only(build: Build, x: str) -> str:
    """A value that takes a positive scale, but no shift."""
    return build.relu(build.conv(x, CHANNELS, (1,), bias=False))


def test_each_of_many_sums_is_placed_for_itself() -> None:
    """Together their operands have 2^300 ways to take the shift."""
    build = Build()
    x = build.input(None, 2, 3)
    sums = [build.add(scaled_only(build, x), build.conv(x, CHANNELS, (1,))) for _ in range(300)]
    out = build.affine(build.concat(*sums), sign="plus")
    assert len(assert_folded(build, build.relu(out)).sites) == 1


def test_a_refusal_behind_many_sums_is_found_at_once() -> None:
    build = Build()
    x = build.input(None, 2, 3)
    sums = [build.add(*(build.conv(x, CHANNELS, (1,)) for _ in range(2))) for _ in range(60)]
    out = build.affine(build.concat(*sums, build.opaque(x)), name="bn")
    kept = site(planned(build, out, same=False), "bn")
    assert "no affine is known to pass through it" in (kept.why or "")


def test_what_was_edited_on_a_way_that_failed_is_undone() -> None:
    """The first operand is half convolution, which has taken the shift when the ReLU refuses."""
    build = Build()
    x = build.input(None, 2, 3)
    half = build.concat(build.conv(x, CHANNELS, (1,), name="a"), scaled_only(build, x))
    other = build.conv(x, 2 * CHANNELS, (1,), name="b")
    out = build.affine(build.add(half, other), sign="plus", name="bn")
    plan = assert_folded(build, build.relu(out))
    assert site(plan, "bn").into == ("a", "conv1", "b")


def test_a_node_that_was_edited_twice_is_undone_once() -> None:
    """A trunk's convolution takes the shift back before, and gets another, of which one fails."""
    build = Build()
    x = build.input(None, 2, 3)
    trunk = build.conv(x, CHANNELS, (1,), name="trunk")
    branch = build.relu(build.affine(trunk, sign="plus", name="bn"))
    merged = build.add(build.conv(trunk, CHANNELS, (1,)), build.conv(branch, CHANNELS, (1,)))
    assert assert_folded(build, build.relu(build.add(merged, trunk))).affines.kept == 0


Tree = tuple[str, list["Tree"]]


def random_tree(choose: random.Random, depth: int = 0) -> Tree:
    kind = choose.choice(["sum", "sum", "joined", "both", "scale", "none"][: 6 if depth else 3])
    if depth > 3 or kind in ("both", "scale", "none"):
        return choose.choice(["both", "both", "both", "scale", "scale", "none"]), []
    return kind, [random_tree(choose, depth + 1) for _ in range(choose.choice([2, 2, 3]))]


def takes(tree: Tree, shift: bool) -> bool:
    """Whether a tree can take an affine, by trying out everything."""
    kind, parts = tree
    if kind == "sum" and shift:
        return any(
            all(takes(part, i == shifted) for i, part in enumerate(parts))
            for shifted in range(len(parts))
        )
    return all(takes(part, shift) for part in parts) if parts else kind in LEAVES[shift]


LEAVES = {True: ("both",), False: ("both", "scale")}


def built(build: Build, tree: Tree, x: str) -> str:
    kind, parts = tree
    values = [built(build, part, x) for part in parts]
    match kind:
        case "sum":
            return build.add(*values)
        case "joined":
            return build.concat(*values, axis=2)
        case "both":
            return build.conv(build.relu(x), CHANNELS, (1,))
        case "scale":
            return scaled_only(build, x)
    return build.affine(build.opaque(x), 2) if kind == "none" else x


def width(tree: Tree) -> int:
    """The size of the last axis; a sum needs one for all its operands."""
    kind, parts = tree
    widths = [width(part) for part in parts]
    if kind == "sum" and len(set(widths)) > 1:
        raise ValueError
    return sum(widths) if kind == "joined" else widths[0] if widths else 3


@given(st.integers(0, 2**32 - 1))
def test_an_affine_folds_wherever_some_way_of_placing_its_shift_works(seed: int) -> None:
    choose = random.Random(seed)
    tree = random_tree(choose)
    try:
        width(tree)
    except ValueError:
        return
    build = Build(seed)
    x = build.input(None, 2, 3)
    out = build.affine(built(build, tree, x), sign="plus", name="bn")
    plan = planned(build, build.relu(out), same=False)
    reason = site(plan, "bn").reason
    assert (reason is None) == takes(tree, True)
    assert reason is not Reason.SEARCH_LIMIT
