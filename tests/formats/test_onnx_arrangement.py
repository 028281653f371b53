"""Split, Slice, Gather, Pad and Resize in ONNX: what passes an affine, and what must not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from bnfold.algebra.refusal import Reason
from tests.formats.onnx_nets import Net, check_fold, fold, kinds


def ints(net: Net, *values: int) -> str:
    return net.weight(list(values), np.int64)


def both_halves(net: Net, y: str) -> str:
    net.node("Split", y, ints(net, 2, 4), made=["left", "right"], axis=1)
    return net.node("Concat", net.bn("left", 2), net.bn("right", 4), axis=1)


def equal_parts(net: Net, y: str) -> str:
    net.node("Split", y, made=["left", "right"], axis=-3, num_outputs=2)
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


def one(net: Net, index: int) -> str:
    return net.weight(index, np.int64)


def cut_on_rows_and_columns(net: Net, y: str) -> str:
    how = ints(net, 1, -4), ints(net, -2, 5), ints(net, 2, 3)
    return net.bn(net.node("Slice", y, *how), 6)


def taken_whole(net: Net, y: str) -> str:
    return net.bn(net.node("Slice", y, ints(net, 0), ints(net, 99), ints(net, 1)), 6)


def one_row(net: Net, y: str) -> str:
    row = net.node("Gather", y, one(net, -2), axis=2)
    return net.bn(net.node("Unsqueeze", row, ints(net, 2)), 6)


def enlarged(net: Net, y: str) -> str:
    scales = net.weight([2, 1.5])
    return net.bn(net.node("Resize", y, "", scales, axes=[2, -1], mode="linear"), 6)


def averaged_down(net: Net, y: str) -> str:
    scales = net.weight([1, 1, 0.5, 0.7])
    return net.bn(net.node("Resize", y, "", scales, mode="cubic", antialias=1), 6)


def to_a_size(net: Net, y: str) -> str:
    return net.bn(net.node("Resize", y, "", "", ints(net, 2, 6, 4, 11), mode="cubic"), 6)


def spread_out(net: Net, y: str) -> str:
    pooled = net.node("GlobalAveragePool", y)
    return net.bn(net.node("Expand", pooled, ints(net, 2, 1, 7, 5)), 6)


def spread_along_rows(net: Net, y: str) -> str:
    pooled = net.node("ReduceMean", y, ints(net, 2))
    return net.bn(net.node("Expand", pooled, ints(net, 3, 1)), 6)


def not_spread(net: Net, y: str) -> str:
    return net.bn(net.node("Expand", y, ints(net, 1, 1)), 6)


def tiled(net: Net, y: str) -> str:
    return net.bn(net.node("Tile", y, ints(net, 1, 1, 2, 3)), 6)


def tiled_along_columns(net: Net, y: str) -> str:
    return net.bn(net.node("Tile", y, ints(net, 1, 1, 1, 2)), 6)


def wrapped(net: Net, y: str) -> str:
    return net.bn(net.node("Pad", y, ints(net, 1, 2), "", ints(net, -1), mode="wrap"), 6)


def three_of_five(net: Net, y: str) -> str:
    inner = net.conv(y, 6, 5, (1, 1))
    net.node("Split", inner, made=["two", "more", "last"], axis=1, num_outputs=3)
    return net.node("Concat", net.bn("more", 2), net.bn("last", 1), net.node("Relu", "two"), axis=1)


def list_taken_apart(net: Net, y: str) -> str:
    """What an unoptimised export makes of torch.chunk."""
    net.node("SplitToSequence", y, net.weight(4, np.int64), made="list", axis=1)
    left = net.node("SequenceAt", "list", net.weight(0, np.int64))
    right = net.node("SequenceAt", "list", net.weight(-1, np.int64))
    return net.node("Concat", net.bn(left, 4), net.bn(right, 2), axis=1)


def list_with_indices_among_the_nodes(net: Net, y: str) -> str:
    """Each index is a Constant right before the node that reads it."""
    net.node("SplitToSequence", y, net.weight([2, 4], np.int64), made="list", axis=1)
    parts = [
        net.node("SequenceAt", "list", net.node("Constant", value_int=i, made=f"at {i}"))
        for i in (0, 1)
    ]
    return net.node("Concat", net.bn(parts[0], 2), net.bn(parts[1], 4), axis=1)


FOLDED = [
    *[list_taken_apart, list_with_indices_among_the_nodes],
    *[both_halves, equal_parts, cropped, some_channels, backwards, gathered, reflected, resized],
    *[cut_on_rows_and_columns, taken_whole, one_row, enlarged, averaged_down, to_a_size],
    *[spread_out, spread_along_rows, not_spread, tiled, tiled_along_columns, wrapped],
    three_of_five,
]


@pytest.mark.parametrize("build", FOLDED, ids=lambda f: f.__name__.replace("_", " "))
def test_the_affine_passes(build: Callable[[Net, str], str]) -> None:
    net = Net(opset=19)
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


def cut_on_channels_and_rows(net: Net, y: str) -> str:
    sliced = net.node("Slice", y, ints(net, 1, 1), ints(net, 4, 5), ints(net, 2, 1))
    return net.bn(sliced, 4)


def repeated_channels(net: Net, y: str) -> str:
    return net.bn(net.node("Tile", y, ints(net, 1, 2, 1, 1)), 12)


def resized_channels(net: Net, y: str) -> str:
    return net.bn(net.node("Resize", y, "", net.weight([1, 2, 1, 1], np.float32)), 12)


def resized_channels_by_axes(net: Net, y: str) -> str:
    scales = net.weight([2, 2], np.float32)
    return net.bn(net.node("Resize", y, "", scales, axes=[1, 3]), 12)


def resized_with_a_fill(net: Net, y: str) -> str:
    roi, scales = net.weight([0, 0, 0, 0, 1, 1, 2, 2]), net.weight([1, 1, 2, 2])
    how: dict[str, Any] = {"mode": "linear", "coordinate_transformation_mode": "tf_crop_and_resize"}
    return net.bn(net.node("Resize", y, roi, scales, **how), 6)


def one_channel(net: Net, y: str) -> str:
    """A BatchNorm over rows, where the channels used to be."""
    return net.node(
        "Unsqueeze", net.bn(net.node("Gather", y, one(net, 2), axis=1), 7), ints(net, 1)
    )


KEPT = {
    repeated_channels: Reason.OTHER_READERS,
    resized_channels: Reason.SHIFT,  # nothing above is known, so the reason is what comes after
    resized_channels_by_axes: Reason.SHIFT,
    resized_with_a_fill: Reason.SHIFT,
    one_channel: Reason.WRONG_AXIS,
    padded_with_zeros: Reason.ZERO_PADDING,
    overlapping: Reason.OTHER_READERS,
    half_of_the_rows: Reason.NOT_UNIFORM,
}


@pytest.mark.parametrize(
    ("cut", "options", "passes"),
    [
        ((0, 2), {}, True),
        ((0, 2, 0, 1), {}, True),
        ((1, 3), {}, False),
        ((0, 2, 0, 2), {}, False),
        ((0, 2), {"of": "z"}, False),
        ((0, 2), {"keep_aspect_ratio_policy": "not_larger"}, False),
    ],
)
def test_a_resize_to_a_size_that_varies(
    cut: tuple[int, ...], options: dict[str, Any], passes: bool
) -> None:
    """Of the data's own batch and channels, and of the rows and columns of another value."""
    net = Net(opset=18)
    z = net.node("Tanh", net.input("z", "N", 6, "H", "W"))
    y = net.conv(net.input("x", "M", 3, "R", "S"), 3, 6, (1, 1))
    whole = net.node("Shape", z if options.pop("of", "y") == "z" else y)
    own = net.node("Slice", whole, *(ints(net, bound) for bound in cut))
    other = net.node("Slice", net.node("Shape", z), ints(net, 2), ints(net, 4))
    sizes = net.node("Concat", own, other, axis=0)
    resized = net.node("Resize", y, "", "", sizes, mode="linear", **options)
    net.node("Relu", net.bn(resized, 6), made="y")
    net.output("y")
    _, plan = fold(net.proto())
    assert plan.batchnorms.kept == (0 if passes else 1), str(plan)
    if passes:
        check_fold(net.proto())


@pytest.mark.parametrize("build", KEPT, ids=lambda f: f.__name__.replace("_", " "))
def test_the_affine_stays(build: Callable[[Net, str], str]) -> None:
    net = Net(opset=18)
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


def cropped_all_round(net: Net, y: str) -> str:
    return net.node("Slice", y, ints(net, 1, 0), ints(net, -1, -2), ints(net, 2, 3))


def enlarged_by_factors(net: Net, y: str) -> str:
    return net.node("Resize", y, "", net.weight([1, 1, 2, 1.5]), mode="linear")


def pixels_of_channels(net: Net, y: str) -> str:
    return net.node("DepthToSpace", net.conv(y, 6, 24, (1, 1)), blocksize=2)


FREE = [cropped_all_round, enlarged_by_factors, pixels_of_channels]


@pytest.mark.parametrize("build", FREE, ids=lambda f: f.__name__.replace("_", " "))
def test_the_affine_passes_where_no_size_is_known(build: Callable[[Net, str], str]) -> None:
    net = Net()
    y = net.conv(net.input("x", "N", 3, "H", "W"), 3, 6, (1, 1))
    net.output(net.bn(build(net, y), 6))
    _, plan = check_fold(net.proto())
    assert plan.batchnorms.kept == 0, str(plan)


def test_a_piece_of_unknown_length_is_opaque() -> None:
    """To index 2 of an unknown size, or from the last three on: how much is cut is not known."""
    net = Net()
    y = net.conv(net.input("x", "N", 3, "H", "W"), 3, 6, (1, 1))
    top = net.node("Slice", y, ints(net, 0), ints(net, 2), ints(net, 2))
    end = net.node("Slice", y, ints(net, -3), ints(net, 2**40), ints(net, 2))
    net.output(net.bn(top, 6))
    net.output(net.bn(end, 6))
    _, plan = check_fold(net.proto())
    assert plan.batchnorms.folded == 0
