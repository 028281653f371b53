"""Programs without in-place operators: what is replaced, what torch traces again, and that both are
right."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import ExportedProgram

from bnfold.formats.pytorch.functional import functional

Run = Callable[[Any, Tensor], Any]


class Net(nn.Module):
    """A convolution, and what `run` does with it and its result; it has two buffers."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.conv, self.run = nn.Conv2d(3, 4, 1), run
        for name in ("mean", "var"):
            self.register_buffer(name, torch.ones(4))

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


def programs(run: Run) -> tuple[ExportedProgram, ExportedProgram]:
    torch.manual_seed(0)
    with torch.no_grad():
        program = torch.export.export(Net(run).eval(), (torch.randn(2, 3, 7, 5),), strict=False)
    return program, functional(program)


def writes(program: ExportedProgram) -> list[str]:
    calls = [node.target for node in program.graph.nodes if node.op == "call_function"]
    return [str(op) for op in calls if isinstance(op, torch._ops.OpOverload) and _is_mutable(op)]


def _is_mutable(op: torch._ops.OpOverload) -> bool:
    return bool(op._schema.is_mutable)


def is_traced(program: ExportedProgram) -> bool:
    """torch gives what it traces again another dialect."""
    return program.dialect != "TRAINING"


def assert_same(one: ExportedProgram, other: ExportedProgram) -> None:
    """The same operators on the same numbers: not a bit differs."""
    x = torch.randn(2, 3, 7, 5)
    modules = [copy.deepcopy(each).module() for each in (one, other)]  # one may write to buffers
    with torch.no_grad():
        results = [torch.utils._pytree.tree_leaves(module(x.clone())) for module in modules]
    assert len(results[0]) == len(results[1])
    assert all(map(torch.equal, *results))


def _cut(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    y[:, 0] = 1
    return y  # type: ignore[no-any-return]


def _earlier_view(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    seen = y.flatten(1)
    y.relu_()
    return seen  # type: ignore[no-any-return]


def _part(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    first, _ = y.chunk(2, 1)
    first.relu_()
    return y  # type: ignore[no-any-return]


def _read_before(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    z = y.sigmoid()
    return y.relu_() + z  # type: ignore[no-any-return]


def _view_only(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x).permute(0, 2, 3, 1)
    return torch.add(y.relu_().flatten(1), 1)


REPLACED: dict[str, Run] = {
    "by the result of the call": lambda m, x: F.relu(m.conv(x), inplace=True) * 2,
    "under its old name": lambda m, x: (y := m.conv(x), y.add_(1), y * 2)[-1],
    "twice": lambda m, x: m.conv(x).relu_().mul_(2.0),
    "by a tensor": lambda m, x: m.conv(x).mul_(x.mean((2, 3), keepdim=True)[:, :1]),
    "read before by what computes": _read_before,
    "a view that alone is read": _view_only,
    "a constant": lambda m, x: m.conv(x) * torch.tensor([2.0]),
    "a norm": lambda m, x: F.batch_norm(m.conv(x), torch.ones(4), torch.ones(4)).relu_(),
}

TRACED: dict[str, Run] = {
    "ONE_NAME: a view from before is read": _earlier_view,
    "ONE_NAME: the whole of a part is read": _part,
    "ONE_NAME: a slice is assigned": _cut,
    "ONE_NAME: the input": lambda m, x: m.conv(x.relu_()),
    "ONE_NAME: a view of the input": lambda m, x: x.permute(0, 2, 3, 1).relu_() + 1,
    "ONE_NAME: a buffer": lambda m, x: m.conv(x) + m.mean.add_(1)[:, None, None],
    "ALIKE: the type": lambda m, x: m.conv(x).eq_(0.0) * 2.5,
    "SEEN: a branch": lambda m, x: torch.cond(
        x.sum() > 0, lambda y: y.sin(), lambda y: y.cos(), (m.conv(x),)
    ),
    "SEEN: statistics": lambda m, x: F.batch_norm(m.conv(x), m.mean, m.var, training=True),
}


@pytest.mark.parametrize("name", REPLACED)
def test_what_is_written_to_becomes_a_new_value(name: str) -> None:
    program, made = programs(REPLACED[name])
    assert not is_traced(made)
    assert not writes(made)
    assert_same(program, made)


@pytest.mark.parametrize("name", TRACED)
def test_what_others_would_notice_is_traced_again(name: str) -> None:
    program, made = programs(TRACED[name])
    assert is_traced(made)
    assert not writes(made)
    assert_same(program, made)


def test_an_operator_may_give_its_input_and_not_say_so() -> None:
    """In eval mode a dropout does."""

    def run(m: Any, x: Tensor) -> Any:
        y = m.conv(x)
        z = F.dropout(y, training=False)
        return y.relu_(), z

    assert is_traced(programs(run)[1])


def test_the_program_itself_stays() -> None:
    program, made = programs(lambda m, x: m.conv(x).relu_())
    assert writes(program) == ["aten.relu_.default"]
    assert made.graph is not program.graph


def test_what_nothing_reads_is_left_out() -> None:
    _, made = programs(lambda m, x: F.max_pool2d(m.conv(x), 2, return_indices=True)[0])
    assert len([node for node in made.graph.nodes if "getitem" in node.name]) == 1


@pytest.mark.parametrize("traced", [False, True])
def test_a_view_holds_in_other_layouts(traced: bool) -> None:
    """Channels come last in the weights of the original, and so in what is viewed."""

    def run(m: Any, x: Tensor) -> Tensor:
        return m.conv(x).permute(0, 2, 3, 1).view(2, -1)  # type: ignore[no-any-return]

    net, x = Net(run).eval(), torch.randn(2, 3, 7, 5)
    net.conv = nn.Conv2d(3, 4, 3, padding=1).to(memory_format=torch.channels_last)
    with torch.no_grad():
        program = torch.export.export(net, (x,), strict=False)
        made, exact = functional(program, traced=traced), net(x)
        for each in (program, made):
            each.state_dict["conv.weight"] = nn.Parameter(net.conv.weight.contiguous())
        with pytest.raises(RuntimeError, match="view size is not compatible"):
            program.module()(x)
        rounding = 8 * torch.finfo(torch.float32).eps * exact.abs().max()  # sums in another order
        assert (made.module()(x) - exact).abs().max() <= rounding
