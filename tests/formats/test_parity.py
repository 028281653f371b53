"""Every op has one fate, whatever form the model has, and what is folded computes the same."""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from bnfold.algebra.checking import check
from bnfold.algebra.plan import Outcome
from bnfold.algebra.rounding import make_rounded_plan
from bnfold.formats.model import Model
from bnfold.formats.onnx.model import OnnxModel
from bnfold.formats.pytorch.nn_module import ModuleModel
from bnfold.formats.torchscript.model import TorchScriptModel
from tests.formats.networks import noise, rms, trained
from tests.formats.onnx_nets import Net, check_fold, fold
from tests.formats.parity import (
    BEFORE,
    BEFORE_EXCEPTIONS,
    EXCEPTIONS,
    FORMS,
    NOT_EXPORTED,
    OPS,
    ORDER,
    Op,
)

SAMPLE = {"x": noise(2, 3, 7, 5)}
AT_ONCE = 40
"""Ops that share one model: an export takes seconds, whatever is in it."""

Fates = dict[str, tuple[bool, str]]


class Branch(nn.Module):
    """conv -> op -> BatchNorm, with gammas of both signs."""

    def __init__(self, op: Op) -> None:
        super().__init__()
        self.conv, self.op = nn.Conv2d(3, 8, 1), op
        made = op.run(torch.zeros(2, 8, 7, 5))
        kinds = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
        self.bn = kinds[made.ndim](op.channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.bn(self.op.run(self.conv(x)))
        return made


class Before(Branch):
    """conv -> ReLU -> BatchNorm -> op -> conv: what folds, folds into the second convolution."""

    def __init__(self, op: Op) -> None:
        super().__init__(op)
        self.bn, self.last = nn.BatchNorm2d(8), nn.Conv2d(op.channels, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.last(self.op.run(self.bn(self.conv(x).relu())))
        return made


class Branches(nn.Module):
    def __init__(self, ops: Sequence[Op], kind: type[Branch] = Branch) -> None:
        super().__init__()
        self.branches = nn.ModuleList(kind(op) for op in ops)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [branch(x) for branch in self.branches]


def program(net: nn.Module) -> Model:
    return ModuleModel(net).capture(SAMPLE)


def script(net: nn.Module) -> Model:
    return TorchScriptModel.from_module(torch.jit.trace(net, _inputs(), check_trace=False))


def newer(net: nn.Module) -> Model:
    done = torch.onnx.export(net, _inputs(), dynamo=True, optimize=False, verbose=False)
    assert done is not None
    return OnnxModel.from_proto(done.model_proto)


def older(net: nn.Module) -> Model:
    import onnx

    buffer = io.BytesIO()
    how = {"dynamo": False, "do_constant_folding": False, "input_names": ["x"]}
    torch.onnx.export(net, _inputs(), buffer, **how)
    return OnnxModel.from_proto(onnx.load_from_string(buffer.getvalue()))


MADE: dict[str, Callable[[nn.Module], Model]] = dict(
    zip(FORMS, (program, script, newer, older), strict=True)
)


def _inputs() -> tuple[torch.Tensor]:
    return (torch.from_numpy(SAMPLE["x"]),)


def fates(form: str, names: Sequence[str], kind: type[Branch] = Branch) -> Fates:
    """Whether the BatchNorm beside each op folds, and why not."""
    net = trained(Branches([OPS[name] for name in names], kind))
    for branch in net.branches:
        if not branch.op.shifts:
            nn.init.zeros_(branch.bn.bias)
            nn.init.zeros_(branch.bn.running_mean)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        model = MADE[form](net)
    return dict(zip(names, judged(model, net, len(names)), strict=True))


def judged(model: Model, net: nn.Module, count: int) -> Iterator[tuple[bool, str]]:
    """The fate of each branch's BatchNorm; a fold that computes something else is no fold."""
    plan, weights = make_rounded_plan(check(model.read(SAMPLE)), model.locked(), model.veto)
    sites = {_branch(s.name): s for s in plan.sites if s.batchnorm}
    assert len(sites) == count
    made = list(model.write(plan, weights).runners()[0](SAMPLE).values())
    original = ModuleModel(net)
    floor, truth = (list(r(SAMPLE).values()) for r in (original.runners()[0], original.truth()))
    for i in range(count):
        known = np.isfinite(truth[i])
        error, own = (rms(each[i][known] - truth[i][known]) for each in (made, floor))
        right = error <= 8 * max(own, 2.0**-23 * rms(truth[i][known]))
        done = sites[i].outcome is not Outcome.KEPT
        yield (done, str(sites[i].reason or "") if right else f"WRONG by {error:g} for {own:g}")


def _branch(name: str) -> int:
    return int(re.search(r"branches[./](\d+)", name)[1])


@pytest.fixture(scope="module")
def found(request: pytest.FixtureRequest) -> Callable[[str], Fates]:
    """By form, what becomes of an op: computed with others of those whose tests were chosen."""
    tests = [item for item in request.session.items if isinstance(item, pytest.Function)]
    one = "test_an_op_has_one_fate_in_every_form"
    chosen = [item.callspec.params["name"] for item in tests if item.originalname == one]
    together = cache(fates)

    def of(name: str) -> Fates:
        made: Fates = {}
        for form in FORMS:
            names = [n for n in chosen if not (form == FORMS[-1] and n in NOT_EXPORTED)]
            if name in names:
                first = names.index(name) // AT_ONCE * AT_ONCE
                made[form] = together(form, tuple(names[first : first + AT_ONCE]))[name]
        return made

    return of


@pytest.mark.parametrize("name", OPS)
def test_an_op_has_one_fate_in_every_form(name: str, found: Callable[[str], Fates]) -> None:
    seen = found(name)
    wanted = {form: OPS[name].folds != ((form, name) in EXCEPTIONS) for form in seen}
    assert {form: folds for form, (folds, _) in seen.items()} == wanted, seen
    assert not any("WRONG" in why for _, why in seen.values()), seen


@pytest.mark.parametrize("form", FORMS)
def test_an_op_before_a_convolution_has_one_fate_in_every_form(form: str) -> None:
    names = [name for name in BEFORE if not (form == FORMS[-1] and name in NOT_EXPORTED)]
    seen = fates(form, names, Before)
    wanted = {name: BEFORE[name] != ((form, name) in BEFORE_EXCEPTIONS) for name in names}
    assert {name: folds for name, (folds, _) in seen.items()} == wanted, seen
    assert {why for folds, why in seen.values() if not folds} == {"shift"}, seen
    assert not any("WRONG" in why for _, why in seen.values()), seen


@pytest.mark.parametrize("name", NOT_EXPORTED)
def test_what_the_older_exporter_does_not_know(name: str) -> None:
    with pytest.raises(Exception, match=r"not supported|does not load"):
        older(trained(Branches([OPS[name]]))).runners()


def test_there_are_enough_of_them() -> None:
    assert len(OPS) >= 150
    assert all(name in OPS and form in FORMS for form, name in EXCEPTIONS)


WRITTEN: dict[str, tuple[Callable[[Any, str], str], tuple[int, ...]]] = {
    "add channels": (lambda n, y: n.node("Add", y, n.normal(8, 1, 1)), (7, 13, 14, 21)),
    "sub from number": (lambda n, y: n.node("Sub", n.weight(1.5), y), (7, 13, 14)),
    "mul channels": (lambda n, y: n.node("Mul", n.normal(1, 8, 1, 1), y), (7, 13, 14)),
    "div by zero": (lambda n, y: n.node("Div", y, n.weight([0.0])), (7, 13, 14)),
    "div channels": (
        lambda n, y: n.node("Div", y, n.weight(np.arange(1, 9).reshape(8, 1, 1))),
        (7, 14),
    ),
    "neg": (lambda n, y: n.node("Neg", y), (7, 13)),
    "identity": (lambda n, y: n.node("Identity", y), (7, 13, 16)),
    "dropout": (lambda n, y: n.node("Dropout", y), (7, 10, 12, 13)),
    "add image": (lambda n, y: n.node("Add", y, n.normal(8, 7, 5)), (7, 14)),
    "relu": (lambda n, y: n.node("Relu", y), (7, 14)),
    "mean": (lambda n, y: n.reduced("ReduceMean", y), (7, 11, 13, 18)),
    "sum": (lambda n, y: n.reduced("ReduceSum", y), (7, 11, 13, 18)),
    "amax": (lambda n, y: n.reduced("ReduceMax", y), (7, 11, 13, 18)),
    "squeeze": (lambda n, y: n.squeezed(n.reduced("ReduceMean", y, (2,)), 2), (7, 11, 13)),
    "flip pixels": (lambda n, y: n.sliced(y, (-1, -1), (-99, -99), (2, 3), (-1, -1)), (10, 13)),
    "slice rows": (lambda n, y: n.sliced(y, (1,), (-1,), (2,)), (7, 9, 10, 13)),
    "slice channels": (lambda n, y: n.sliced(y, (2,), (6,), (1,)), (7, 9, 10, 13)),
    "index list": (lambda n, y: n.node("Gather", y, n.ints(*ORDER.tolist()), axis=1), (7, 11, 13)),
    "select row": (lambda n, y: n.node("Gather", y, n.weight(3, np.int64), axis=2), (7, 13)),
    "repeat pixels": (lambda n, y: n.node("Tile", y, n.ints(1, 1, 2, 3)), (7, 13)),
    "expand": (
        lambda n, y: n.node("Expand", n.reduced("ReduceMean", y), n.ints(2, 8, 4, 6)),
        (8, 13),
    ),
    "pad reflect": (lambda n, y: n.padded(y, "reflect"), (7, 11, 13, 18, 21)),
    "pad zeros": (lambda n, y: n.padded(y, "constant"), (7, 11, 13, 18, 21)),
    "transpose pixels": (lambda n, y: n.node("Transpose", y, perm=(0, 1, 3, 2)), (7, 13)),
    "reshape pixels": (lambda n, y: n.node("Reshape", y, n.ints(2, 8, 35)), (7, 13, 14)),
    "flatten pixels": (lambda n, y: n.node("Reshape", y, n.ints(0, 0, -1)), (7, 14)),
    "pixel shuffle": (lambda n, y: n.node("DepthToSpace", y, blocksize=2, mode="CRD"), (11, 13)),
    "avg pool": (lambda n, y: n.node("AveragePool", y, kernel_shape=(2, 2)), (7, 10, 11, 19)),
    "max pool": (lambda n, y: n.node("MaxPool", y, kernel_shape=(2, 2)), (7, 10, 12)),
    "adaptive avg pool": (lambda n, y: n.node("GlobalAveragePool", y), (7, 22)),
    "threshold": (lambda n, y: n.node("ThresholdedRelu", y, alpha=0.0), (10, 22)),
    "abs": (lambda n, y: n.node("Abs", y), (7, 13)),
    "nearest": (lambda n, y: n.resized(y), (11, 13, 18)),
}
"""The same ops written by hand, and the opsets between which their operators changed."""


class Written(Net):
    """What an operator looks like by opset."""

    def ints(self, *values: int) -> str:
        return self.weight(values, np.int64)

    def reduced(self, kind: str, y: str, axes: tuple[int, ...] = (2, 3)) -> str:
        if self.opset >= (13 if kind == "ReduceSum" else 18):
            return self.node(kind, y, self.ints(*axes), keepdims=1)
        return self.node(kind, y, axes=axes, keepdims=1)

    def squeezed(self, y: str, axis: int) -> str:
        if self.opset >= 13:
            return self.node("Squeeze", y, self.ints(axis))
        return self.node("Squeeze", y, axes=(axis,))

    def sliced(self, y: str, *bounds: tuple[int, ...]) -> str:
        if self.opset >= 10:
            return self.node("Slice", y, *(self.ints(*each) for each in bounds))
        names = ("starts", "ends", "axes")
        return self.node("Slice", y, **dict(zip(names, bounds, strict=True)))

    def resized(self, y: str) -> str:
        """Opset 11 wants a region, even where it is not used."""
        region = self.weight([]) if self.opset < 13 else ""
        return self.node("Resize", y, region, self.weight([1, 1, 2, 2]))

    def padded(self, y: str, mode: str) -> str:
        sides = (0, 0, 1, 1, 0, 0, 1, 1)
        if self.opset >= 11:
            return self.node("Pad", y, self.ints(*sides), mode=mode)
        return self.node("Pad", y, pads=sides, mode=mode)


@pytest.mark.parametrize(
    ("name", "opset"), [(name, opset) for name, (_, opsets) in WRITTEN.items() for opset in opsets]
)
def test_an_op_written_by_hand_has_the_same_fate(name: str, opset: int) -> None:
    net = Written(opset=opset)
    made = WRITTEN[name][0](net, net.conv(net.input("x", 2, 3, 7, 5), 3, 8, (1, 1)))
    shape = OPS[name].run(torch.zeros(2, 8, 7, 5)).shape
    net.output(net.bn(made, OPS[name].channels), rank=len(shape))
    _, plan = check_fold(net.proto()) if name != "div by zero" else fold(net.proto())
    assert plan.batchnorms.folded == OPS[name].folds
