"""Channels that move into space or among each other: DepthToSpace, SpaceToDepth, ShuffleNet."""

from __future__ import annotations

import numpy as np
import pytest

from bnfold.algebra.refusal import Reason
from tests.formats.onnx_nets import Net, check_fold


def ints(net: Net, *values: int) -> str:
    return net.weight(list(values), np.int64)


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_depth_to_space_passes_up(mode: str) -> None:
    net = Net()
    inner = net.conv(net.input("x", 2, 3, 10, 8), 3, 12)
    net.output(net.bn(net.node("DepthToSpace", inner, blocksize=2, mode=mode), 3))
    _, plan = check_fold(net.proto())
    assert plan.batchnorms.kept == 0, str(plan)


def test_space_to_depth_passes_down() -> None:
    net = Net()
    inner = net.bn(net.node("Relu", net.conv(net.input("x", 2, 3, 10, 8), 3, 3)), 3)
    net.output(net.conv(net.node("SpaceToDepth", inner, blocksize=2), 12, 5))
    _, plan = check_fold(net.proto())
    assert plan.batchnorms.kept == 0, str(plan)


def test_pixels_of_one_channel_cannot_differ() -> None:
    net = Net()
    inner = net.conv(net.input("x", 2, 3, 10, 8), 3, 4)
    net.output(net.bn(net.node("SpaceToDepth", inner, blocksize=2), 16))
    _, plan = check_fold(net.proto())
    assert plan.sites[0].reason is Reason.NOT_UNIFORM


def shuffled(net: Net, y: str, free: bool) -> str:
    """ShuffleNet's exchange between two groups, as torch exports it."""
    if not free:
        split, whole = ints(net, 0, 2, 3, 7, 5), ints(net, 0, 6, 7, 5)
    else:
        shape = net.node("Shape", y)
        n, h, w = (net.node("Gather", shape, ints(net, i), axis=0) for i in (0, 2, 3))
        split = net.node("Concat", n, ints(net, 2, 3), h, w, axis=0)
        whole = net.node("Concat", n, ints(net, 6), h, w, axis=0)
    turned = net.node("Transpose", net.node("Reshape", y, split), perm=[0, 2, 1, 3, 4])
    return net.node("Reshape", turned, whole)


@pytest.mark.parametrize("above", [True, False])
@pytest.mark.parametrize("sizes", [(2, 9, 7), ("N", 9, 7), ("N", "H", "W")], ids=str)
def test_shuffled_channels_fold(sizes: tuple[int | str, ...], above: bool) -> None:
    net = Net()
    batch, *image = sizes
    free = image == ["H", "W"]
    y = net.conv(net.input("x", batch, 3, *image), 3, 6, (1, 1) if free else (3, 3))
    if above:
        net.output(net.bn(shuffled(net, y, batch == "N"), 6))
    else:
        mixed = shuffled(net, net.bn(net.node("Relu", y), 6), batch == "N")
        net.output(net.conv(mixed, 6, 4, (1, 1)))
    _, plan = check_fold(net.proto())
    assert plan.batchnorms.kept == 0, str(plan)
