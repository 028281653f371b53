"""Split, Slice, Gather, Pad and Resize in ONNX: what passes an affine, and what must not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from bnfold.refusal import Reason
from tests.formats.onnx_nets import Net, check_fold, kinds


def ints(net: Net, *values: int) -> str:
    return net.weight(list(values), np.int64)


def both_halves(net: Net, y: str) -> str:
    net.node("Split", y, ints(net, 2, 4), made=["left", "right"], axis=1)
    return net.node("Concat", net.bn("left", 2), net.bn("right", 4), axis=1)


def equal_parts(net: Net, y: str) -> str:
    net.node("Split", y, made=["left", "right"], axis=-3)
    return net.node("Concat", net.bn("left", 3), net.node("Relu", "right"), axis=1)


def cropped(net: Net, y: str) -> str:
    sliced = net.node("Slice", y, ints(net, 1), ints(net, -1), ints(net, 3))
    return net.bn(sliced, 6)


def some_channels(net: Net, y: str) -> str:
    sliced = net.node("Slice", y, ints(net, 1), ints(net, 6), ints(net, 1), ints(net, 2))
    return net.bn(sliced, 3)


def backwards(net: Net, y: str) -> str:
    least = np.iinfo(np.int64).min
    sliced = net.node("Slice", y, ints(net, -1), ints(net, least), ints(net, 1), ints(net, -1))
    return net.bn(sliced, 6)


def gathered(net: Net, y: str) -> str:
    return net.bn(net.node("Gather", y, ints(net, 4, -6, 2), axis=1), 3)


def reflected(net: Net, y: str) -> str:
    pads = ints(net, 0, 0, 1, 2, 0, 0, 2, 1)
    return net.bn(net.node("Pad", y, pads, mode="reflect"), 6)


def resized(net: Net, y: str) -> str:
    scales = net.weight([1, 1, 2, 1.5], np.float32)
    how: dict[str, Any] = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
    return net.bn(net.node("Resize", y, "", scales, **how), 6)


def list_taken_apart(net: Net, y: str) -> str:
    """What an unoptimised export makes of torch.chunk."""
    net.node("SplitToSequence", y, net.weight(4, np.int64), made="list", axis=1)
    left = net.node("SequenceAt", "list", net.weight(0, np.int64))
    right = net.node("SequenceAt", "list", net.weight(-1, np.int64))
    return net.node("Concat", net.bn(left, 4), net.bn(right, 2), axis=1)


FOLDED = [
    list_taken_apart,
    *[both_halves, equal_parts, cropped, some_channels, backwards, gathered, reflected, resized],
]


@pytest.mark.parametrize("build", FOLDED, ids=lambda f: f.__name__.replace("_", " "))
def test_the_affine_passes(build: Callable[[Net, str], str]) -> None:
    net = Net()
    y = net.conv(net.input("x", 2, 3, 9, 7), 3, 6)
    net.node("Relu", build(net, y), made="y")
    net.output("y")
    after, plan = check_fold(net.proto())
    assert plan.batchnorms.kept == 0, str(plan)
    assert "BatchNormalization" not in kinds(after)


def padded_with_zeros(net: Net, y: str) -> str:
    return net.bn(net.node("Pad", y, ints(net, 0, 0, 1, 1, 0, 0, 1, 1)), 6)


def overlapping(net: Net, y: str) -> str:
    left = net.node("Slice", y, ints(net, 0), ints(net, 4), ints(net, 1))
    right = net.node("Slice", y, ints(net, 2), ints(net, 6), ints(net, 1))
    return net.node("Add", net.bn(left, 4), right)


def half_of_the_rows(net: Net, y: str) -> str:
    net.node("Split", y, ints(net, 3, 4), made=["top", "rest"], axis=2)
    return net.node("Concat", net.bn("top", 6), "rest", axis=2)


def cut_on_two_axes(net: Net, y: str) -> str:
    sliced = net.node("Slice", y, ints(net, 1, 1), ints(net, 4, 5), ints(net, 2, 1))
    return net.bn(sliced, 4)


KEPT = {
    cut_on_two_axes: Reason.SHIFT,  # nothing above is known, so the reason is what comes after
    padded_with_zeros: Reason.ZERO_PADDING,
    overlapping: Reason.OTHER_READERS,
    half_of_the_rows: Reason.NOT_UNIFORM,
}


@pytest.mark.parametrize("build", KEPT, ids=lambda f: f.__name__.replace("_", " "))
def test_the_affine_stays(build: Callable[[Net, str], str]) -> None:
    net = Net()
    y = net.conv(net.input("x", 2, 3, 9, 7), 3, 6)
    net.node("Relu", build(net, y), made="y")
    net.output("y")
    _, plan = check_fold(net.proto())
    (site,) = plan.sites
    assert site.reason is KEPT[build], site.why


def test_one_shift_for_all_channels_stays_behind_a_pad_of_zeros() -> None:
    """The pad would have to add another number, which no writer changes."""
    net = Net()
    y = net.conv(net.input("x", 2, 3, 9, 7), 3, 6)
    padded = net.node("Pad", y, ints(net, 0, 0, 1, 1, 0, 0, 1, 1))
    net.node("Relu", net.node("Add", padded, net.weight(0.5)), made="y")
    net.output("y")
    after, plan = check_fold(net.proto())
    assert plan.affines.kept == 1
    assert "Add" in kinds(after)
