"""Arguments that decide whether an affine passes: read in every format as it writes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bnfold.algebra.checking import check
from bnfold.algebra.planner import make_plan
from bnfold.algebra.refusal import Reason
from bnfold.algebra.rounding import make_rounded_plan
from bnfold.formats.model import Model
from bnfold.formats.onnx.model import OnnxModel
from bnfold.formats.onnx.reader import read
from bnfold.formats.pytorch.nn_module import ModuleModel
from bnfold.formats.torchscript.model import TorchScriptModel
from tests.formats.networks import Function, excess, first, noise, trained
from tests.formats.onnx_nets import Net, check_fold, fold

SAMPLE = {"x": noise(2, 3, 7, 5)}


def ints(net: Net, *values: int) -> str:
    return net.weight(values, np.int64)


def dilated(net: Net, x: str) -> str:
    """A tap of two does not reach every output, where one of one does."""
    y = net.bn(net.node("Relu", x), 3)
    return net.node("ConvTranspose", y, net.normal(3, 4, 2, 2), dilations=(2, 2), pads=(1,) * 4)


def column(net: Net, x: str) -> str:
    flat = net.node("Reshape", x, ints(net, 4, -1))
    return net.bn(net.node("Gemm", flat, net.normal(9, 4), net.normal(4, 1)), 4)


def dropped(net: Net, x: str) -> str:
    training = net.input("training", elem=9)
    return net.bn(net.node("Dropout", net.conv(x, 3, 4), net.weight(0.5), training), 4)


def padded(net: Net, x: str) -> str:
    y = net.node("Pad", net.conv(x, 3, 4), ints(net, 0, 0, 1, 1, 0, 0, 1, 1), net.weight(1.5))
    return net.node("Mul", y, net.weight(3.0))


def mean_of_nothing(net: Net, x: str) -> str:
    return net.bn(net.node("ReduceMean", net.conv(x, 3, 4), noop_with_empty_axes=1), 4)


def towards_zero(net: Net, x: str) -> str:
    """-7 / 2 is -3: three channels."""
    start = net.node("Div", ints(net, -7), ints(net, 2))
    y = net.node("Slice", net.conv(x, 3, 8), start, ints(net, 99), ints(net, 1))
    return net.bn(y, 3)


WRITTEN: dict[Callable[[Net, str], str], tuple[tuple[int, ...], Reason | None]] = {
    dilated: ((2, 3, 6, 5), Reason.PARTIAL_TAPS),
    column: ((4, 1, 3, 3), Reason.NOT_LINEAR),
    padded: ((2, 3, 7, 5), Reason.ZERO_PADDING),
    mean_of_nothing: ((2, 3, 7, 5), None),
    towards_zero: ((2, 3, 7, 5), None),
}


@pytest.mark.parametrize("build", WRITTEN, ids=lambda build: build.__name__)
def test_in_onnx(build: Callable[[Net, str], str]) -> None:
    shape, reason = WRITTEN[build]
    net = Net(opset=18)
    net.output(build(net, net.input("x", *shape)), rank=2 if build is column else 4)
    _, plan = check_fold(net.proto())
    (site,) = plan.sites
    assert reason in {o.reason for o in site.obstacles} if reason else not site.obstacles, site.why


def test_a_dropout_that_may_train() -> None:
    net = Net(opset=18)
    net.output(dropped(net, net.input("x", 2, 3, 7, 5)))

    _, plan = fold(net.proto())
    assert plan.batchnorms.kept == 1
    assert "training_mode" in str(plan.sites[0].why)


def captured(net: nn.Module) -> Model:
    return ModuleModel(net).capture(SAMPLE)


def traced(net: nn.Module) -> Model:
    x = torch.from_numpy(SAMPLE["x"])
    return TorchScriptModel.from_module(torch.jit.trace(net, x, check_trace=False))


def own_statistics(m: Any, y: torch.Tensor) -> torch.Tensor:
    return F.instance_norm(y, torch.ones(6), torch.ones(6), use_input_stats=True)


def overhanging(m: Any, y: torch.Tensor) -> torch.Tensor:
    return m.b(F.avg_pool2d(y, 2, ceil_mode=True, divisor_override=4))


def most_and_where(m: Any, y: torch.Tensor) -> torch.Tensor:
    most, where = F.max_pool2d(y, 2, return_indices=True)
    return m.b(most) + where.float().sin()


def padded_with_a_number(m: Any, y: torch.Tensor) -> torch.Tensor:
    return F.pad(y, (1, 1, 1, 1), value=1.5) * 3


CALLED = {
    own_statistics: Reason.BATCH_STATISTICS,
    overhanging: Reason.SHIFT,
    most_and_where: Reason.OTHER_OPERAND,
    padded_with_a_number: Reason.ZERO_PADDING,
}


@pytest.mark.parametrize("form", [captured, traced])
@pytest.mark.parametrize("run", CALLED, ids=lambda run: run.__name__)
def test_in_torch(form: Callable[[nn.Module], Model], run: Callable[..., torch.Tensor]) -> None:
    net = Function(lambda m, x: run(m, m.c(x)), c=nn.Conv2d(3, 6, 1), b=nn.BatchNorm2d(6))
    model = form(trained(net))
    plan, weights = make_rounded_plan(check(model.read(SAMPLE)), model.locked(), model.veto)
    (site,) = plan.sites
    assert CALLED[run] in {o.reason for o in site.obstacles}, site.why
    folded = model.write(plan, weights)
    assert excess(model, first(model, SAMPLE), first(folded, SAMPLE), SAMPLE) <= 8


def test_what_is_too_large_is_not_computed() -> None:
    """A weight that would be expanded to a terabyte is none, and no memory is taken for it."""
    net = Net(opset=18)
    huge = net.node("Expand", net.weight(np.ones((1, 3, 1, 1))), ints(net, 1 << 38, 3, 1, 1))
    scaled = net.node("ReduceMean", huge, ints(net, 0), keepdims=1)
    net.output(net.node("Mul", net.conv(net.input("x", 2, 3, 7, 5), 3, 3), scaled))

    plan = make_plan(read(OnnxModel.from_proto(net.proto()).ir).graph)
    assert plan.affines.found == 0
