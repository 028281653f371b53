"""What torch.export cannot follow: the parts that it can follow fold, the rest is kept and said."""

from __future__ import annotations

import dataclasses
import logging
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import bnfold
from bnfold.algebra.plan import Outcome
from bnfold.algebra.refusal import Reason
from bnfold.errors import ExportError, ModelError
from bnfold.verbs.folding import FoldResult
from tests.formats.networks import trained

X = torch.from_numpy(np.random.default_rng(5).standard_normal((2, 3, 9, 7)).astype(np.float32))


def block(*, channels: int = 3, out: int = 6) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, out, 3, bias=False), nn.BatchNorm2d(out), nn.Tanh())


class Net(nn.Module):
    """A block and a pair of its own: what forward does between them differs."""

    def __init__(self) -> None:
        super().__init__()
        self.block = block()
        self.conv = nn.Conv2d(6, 5, 1, bias=False)
        self.bn = nn.BatchNorm2d(5)

    def tail(self, y: Tensor) -> Tensor:
        return self.bn(self.conv(y))  # type: ignore[no-any-return]


def fold(module: nn.Module, x: Any = X, **options: Any) -> FoldResult:
    """A verified fold that keeps class and structure, and leaves the original bit for bit."""
    trained(module)
    tensors = {name: t.detach().clone() for name, t in module.state_dict().items()}
    attributes = {name: sorted(vars(m)) for name, m in module.named_modules()}
    result = bnfold.fold(module, x, **options)
    assert result.passed, result.verification and result.verification.summary
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, tensors[name]), name
    assert attributes == {name: sorted(vars(m)) for name, m in module.named_modules()}
    if options.get("form") != "graph":
        assert type(result.model) is type(module)
        names = [name for name, _ in module.named_modules()]
        assert [name for name, _ in result.model.named_modules()] == names
    return result


def folded(result: FoldResult) -> list[str]:
    return [site.name for site in result.plan.sites if site.outcome is Outcome.FOLDED]


def kept(result: FoldResult) -> dict[str, Reason | None]:
    return {s.name: s.reason for s in result.plan.sites if s.outcome is Outcome.KEPT}


class IfSum(Net):
    def forward(self, x: Tensor) -> Tensor:
        y = self.block(x)
        if y.sum() > 0:
            y = y * 1.5
        return self.tail(y)


class Loop(Net):
    def forward(self, x: Tensor) -> Tensor:
        y = self.block(x)
        while y.abs().max() > 0.1:
            y = y / 2
        return self.tail(y)


class Assertion(Net):
    def forward(self, x: Tensor) -> Tensor:
        y = self.block(x)
        assert torch.isfinite(y).all()
        return self.tail(y)


class PrintValue(Net):
    def forward(self, x: Tensor) -> Tensor:
        y = self.block(x)
        self.text = f"{y.mean():.3f}"
        return self.tail(y)


class InNumpy(Net):
    def forward(self, x: Tensor) -> Tensor:
        y = torch.from_numpy(np.tanh(self.block(x).double().numpy())).to(x.dtype)
        return self.tail(y)


class Selected(Net):
    def forward(self, x: Tensor) -> Tensor:
        y = self.block(x)
        rows = (y.mean((1, 2, 3)) > -9).nonzero().flatten()
        return self.tail(y[rows]).sum(0)


LINES = {
    IfSum: ("if y.sum() > 0:", "depends on the values of a tensor"),
    Loop: ("while y.abs().max() > 0.1:", "depends on the values of a tensor"),
    Assertion: ("assert torch.isfinite(y).all()", "depends on the values of a tensor"),
    PrintValue: ('self.text = f"{y.mean():.3f}"', "is put into a text"),
    InNumpy: ("y = torch.from_numpy", "is handed to NumPy"),
    Selected: ("return self.bn(self.conv(y))", "depends on the values of a tensor"),
}


@pytest.mark.parametrize("kind", LINES, ids=lambda kind: kind.__name__)
def test_what_is_before_the_line_folds_and_the_line_is_named(kind: type[Net]) -> None:
    line, found = LINES[kind]
    result = fold(kind(), verify=kind is not InNumpy)
    assert folded(result) == ["block.1"]
    assert kept(result) == {"bn": Reason.NOT_CAPTURED}
    assert isinstance(result.model.block[1], nn.Identity)
    why = result.plan.sites[-1].why or ""
    (note,) = (note for note in result.notes if "cannot capture" in note)
    for text in (why, note):
        assert "test_capture.py:" in text
        assert line in text
        assert found in text
    assert "only block could be folded" in note
    assert not any("form graph" in note for note in result.notes)


def test_the_graph_form_is_refused_with_the_line_and_what_to_do() -> None:
    with pytest.raises(ModelError, match=r"IfSum: test_capture\.py:\d+ \(if y\.sum") as caught:
        bnfold.fold(trained(IfSum()), X, form="graph")
    assert "--form module" in caught.value.hint


def test_torch_prints_no_graph_of_its_own(capfd: pytest.CaptureFixture[str]) -> None:
    fold(IfSum())
    assert "def forward" not in "".join(capfd.readouterr())


def test_nothing_can_be_captured() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.bn(self.conv(x)) if x.sum() > 0 else self.conv(x)

    result = fold(Pair(), X.abs())
    assert kept(result) == {"bn": Reason.NOT_CAPTURED}
    assert any("nothing in it could be folded" in note for note in result.notes)


def test_the_largest_parts_are_found_at_any_depth() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([IfSum(), block(channels=5)])

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = layer(x)
            return x

    result = fold(Outer())
    assert folded(result) == ["layers.0.block.1", "layers.1.1"]
    assert kept(result) == {"layers.0.bn": Reason.NOT_CAPTURED}


class Scripted(Net):
    def __init__(self) -> None:
        super().__init__()
        self.block = torch.jit.script(block())
        self.after = block(channels=5)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.tail(self.block(x)))  # type: ignore[no-any-return]


def test_a_scripted_child_is_kept_and_what_stands_beside_it_folds() -> None:
    result = fold(Scripted())
    assert folded(result) == ["after.1"]
    assert kept(result) == dict.fromkeys(("block.1", "bn"), Reason.NOT_CAPTURED)


class TestWhatEscapes:
    """A value that a forward leaves on its module must stay as it is."""

    class Appends(Net):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[Any] = []

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(self.block(x))
            self.seen.append({"y": y})
            return self.bn(y)  # type: ignore[no-any-return]

    class Assigns(Net):
        last: Tensor | None = None

        def forward(self, x: Tensor) -> Tensor:
            self.last = self.conv(self.block(x))
            return self.bn(self.last)  # type: ignore[no-any-return]

    class InChild(Net):
        def forward(self, x: Tensor) -> Tensor:
            self.block.note = Slotted(self.conv(self.block(x)))
            return self.bn(self.block.note.y)  # type: ignore[no-any-return]

    @pytest.mark.parametrize("kind", [Appends, Assigns, InChild])
    def test_it_is_a_result(self, kind: Callable[[], nn.Module]) -> None:
        result = fold(kind())
        assert folded(result) == ["block.1"]
        assert kept(result) == {"bn": Reason.GRAPH_OUTPUT}

    def test_the_list_of_the_result_holds_what_the_original_put_there(self) -> None:
        original = self.Appends()
        model = fold(original).model
        model.seen.clear()
        with torch.no_grad():
            model(X)
            original(X)
        torch.testing.assert_close(model.seen[-1]["y"], original.seen[-1]["y"])


class Slotted:
    __slots__ = ("y",)

    def __init__(self, y: Tensor) -> None:
        self.y = y


@dataclasses.dataclass
class Outputs:
    y: Tensor
    middle: Tensor


class TestOutputs:
    class Data(Net):
        def forward(self, x: Tensor) -> Outputs:
            z = self.conv(self.block(x))
            return Outputs(self.bn(z), z)

    def test_a_dataclass_and_all_its_fields(self) -> None:
        result = fold(self.Data())
        assert folded(result) == ["block.1"]
        assert kept(result) == {"bn": Reason.GRAPH_OUTPUT}

    class Nested(Net):
        def forward(self, x: Tensor) -> Any:
            return {"a": (self.tail(self.block(x)), None, {"b": [x.mean(), 3]}), "text": "t"}

    def test_nested_with_none_text_and_numbers(self) -> None:
        assert folded(fold(self.Nested())) == ["block.1", "bn"]

    class Custom(Net):
        def forward(self, x: Tensor) -> Slotted:
            return Slotted(self.tail(self.block(x)))

    def test_an_object_that_cannot_be_compared_is_refused(self) -> None:
        with pytest.raises(ModelError, match="is a Slotted, which cannot be compared"):
            bnfold.fold(trained(self.Custom()), X)

    class Varying(Net):
        count = 0

        def forward(self, x: Tensor) -> Any:
            self.count += 1
            y = self.tail(self.block(x))
            return (y, x) if self.count % 2 else y

    def test_a_structure_that_changes_from_call_to_call_is_refused(self) -> None:
        with pytest.raises(ModelError, match=r"other outputs for the same input: .*, then"):
            bnfold.fold(trained(self.Varying()), X)

    class ByValue(Net):
        def forward(self, x: Tensor) -> Any:
            y = self.block(x)
            return (self.tail(y), y) if x.sum() > 0 else self.tail(y)

    def test_a_structure_that_depends_on_the_values_is_compared_case_by_case(self) -> None:
        result = fold(self.ByValue())
        assert folded(result) == ["block.1"]
        assert result.verification is not None
        outputs = {row.place.output for row in result.verification.rows}
        assert outputs == {"output", "output.0", "output.1"}


class NoGrad(Net):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            y = self.block(x)
        with torch.inference_mode():
            return self.tail(y)


class Checkpoint(Net):
    def forward(self, x: Tensor) -> Tensor:
        from torch.utils.checkpoint import checkpoint

        y: Any = checkpoint(self.block, x, use_reentrant=True)
        return self.tail(checkpoint(nn.Identity(), y, use_reentrant=False))  # type: ignore[arg-type]


class Recurrent(Net):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(5, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.rnn(self.tail(self.block(x)).flatten(2).transpose(1, 2))[0]
        return y


class Complex(Net):
    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.fft2(self.tail(self.block(x)))


class Counts(Net):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1)
        return self.tail(self.block(x))


class Logs(Net):
    def forward(self, x: Tensor) -> Tensor:
        logging.getLogger("net").info("forward of %s", x.shape)
        return self.tail(self.block(x))


class AnyArguments(Net):
    def forward(self, *args: Tensor, **options: Tensor) -> Tensor:
        return self.tail(self.block(args[0])) * options.get("scale", 1)


class Tries(Net):
    """What fails in the middle of a forward leaves an operator that cannot be run again."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.block(x)
        try:
            y = y.view(-1, 5, 11)
        except RuntimeError:
            y = y * 2
        return self.tail(y)


class AllOptional(Net):
    def forward(self, x: Tensor | None = None, mask: Tensor | None = None) -> Any:
        assert x is not None
        y = self.tail(self.block(x))
        return {"y": y if mask is None else y * mask, "none": None}


class Hidden(Net):
    """A layer that no module knows of."""

    def __init__(self) -> None:
        super().__init__()
        self.more = [nn.Conv2d(5, 4, 1), nn.ConvTranspose2d(4, 3, 2)]

    def forward(self, x: Tensor) -> Tensor:
        return self.more[1](self.more[0](self.tail(self.block(x))))  # type: ignore[no-any-return]


class Pruned(Net):
    def __init__(self) -> None:
        super().__init__()
        prune.l1_unstructured(self.conv, "weight", 0.3)
        parametrizations.weight_norm(self.block[0])

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self.block(x))


class CompiledChild(Net):
    def __init__(self) -> None:
        super().__init__()
        self.block = torch.compile(self.block, backend="eager")

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self.block(x))


def hooked() -> nn.Module:
    net = Logs()
    net.register_forward_hook(lambda module, args, output: {"twice": output * 2})
    net.register_forward_pre_hook(lambda module, args: (args[0] + 1,))
    return net


def patched() -> nn.Module:
    """As libraries do that move weights around: forward is an attribute of the instance."""
    net = Logs()
    forward = types.MethodType(lambda self, x: self.tail(self.block(x)) * 3, net)
    net.forward = forward  # type: ignore[method-assign]
    return net


@pytest.mark.parametrize(
    "make",
    [
        *(NoGrad, Checkpoint, Recurrent, Complex, Counts, Logs, CompiledChild, hooked, patched),
        *(Tries, AllOptional, Hidden),
    ],
)
def test_what_is_captured_as_a_whole(make: Callable[[], nn.Module]) -> None:
    names = {"block._orig_mod.1", "bn"} if make is CompiledChild else {"block.1", "bn"}
    result = fold(make())
    assert result.plan.batchnorms.kept == 0
    assert names <= set(folded(result))
    assert not any("cannot capture" in note for note in result.notes)


def test_a_graph_module_folds() -> None:
    result = bnfold.fold(torch.fx.symbolic_trace(trained(Logs())), X)
    assert result.passed
    assert result.plan.batchnorms.kept == 0


def test_weights_that_hooks_compute_are_baked_and_can_be_saved(tmp_path: Path) -> None:
    result = bnfold.fold(trained(Pruned()), X)
    assert result.passed
    assert result.plan.batchnorms.kept == 0
    result.save(tmp_path / "m.pt")
    loaded = torch.load(tmp_path / "m.pt", weights_only=False)
    assert isinstance(loaded.conv.weight, nn.Parameter)
    assert isinstance(loaded.block[0].weight, nn.Parameter)


def test_a_result_that_cannot_be_pickled(tmp_path: Path) -> None:
    net = trained(Logs())
    net.callback = lambda x: x
    result = bnfold.fold(net, X)
    with pytest.raises(ExportError, match=r"the result cannot be pickled: .*lambda"):
        result.save(tmp_path / "m.pt")
    assert not any(tmp_path.iterdir())


def test_free_arguments() -> None:
    assert folded(fold(AnyArguments(), {"args": X, "scale": torch.ones(1)})) == ["block.1", "bn"]


def test_another_type_in_between_is_kept_with_the_form_that_would_fold_it() -> None:
    class Autocast(Net):
        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                y = self.block(x)
            return self.tail(y.float())

    result = fold(Autocast(), keep_classes=True)
    assert folded(result) == ["bn"]
    assert result.plan.batchnorms.kept == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_parts_in_a_narrow_type(dtype: torch.dtype) -> None:
    result = fold(trained(IfSum()).to(dtype), X.to(dtype))
    assert folded(result) == ["block.1"]
    assert result.model.block[0].weight.dtype == dtype


class TestAllCalls:
    """A part that is called several times is captured once, for all of them."""

    class Pyramid(Net):
        def __init__(self, shape: Callable[[Tensor], Tensor]) -> None:
            super().__init__()
            self.shape = shape

        def forward(self, x: Tensor) -> Tensor:
            y = self.block(x).mean() + self.block(self.shape(x)).mean()
            return y * 2 if y > 0 else y * 3

    @pytest.mark.parametrize("shape", [lambda x: x * 2, lambda x: x[:, :, ::2]])
    def test_of_one_size_or_several(self, shape: Any) -> None:
        assert folded(fold(self.Pyramid(shape))) == ["block.1"]

    @pytest.mark.parametrize("shape", [lambda x: x[0], lambda x: x[:1], lambda x: x.double()])
    def test_of_another_rank_type_or_of_size_one(self, shape: Any) -> None:
        class Wide(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.linear, self.bn = nn.Linear(3, 3, bias=False), nn.BatchNorm1d(3)

            def forward(self, x: Tensor) -> Tensor:
                if x.ndim == 2:
                    return self.bn(self.linear(x.float()))  # type: ignore[no-any-return]
                return self.bn(self.linear(x.float()).mT).mT  # type: ignore[no-any-return]

        class Twice(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.block = Wide()

            def forward(self, x: Tensor) -> Tensor:
                y = self.block(x).mean() + self.block(shape(x)).mean()
                return y * 2 if y > 0 else y * 3

        x = X.flatten(2)[:, :, :3]
        result = fold(Twice(), x)
        assert kept(result) == {"block.bn": Reason.NOT_CAPTURED}
        assert "different kinds of inputs" in (result.plan.sites[0].why or "")

    def test_with_another_flag(self) -> None:
        class Flagged(Net):
            def forward(self, x: Tensor, flag: bool) -> Tensor:
                return self.block(x) if flag else self.block[0](x)  # type: ignore[no-any-return]

        class Both(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.inner = Flagged()

            def forward(self, x: Tensor) -> Tensor:
                y = self.inner(x, True).mean() + self.inner(x, flag=False).mean()
                return y * 2 if y > 0 else y * 3

        result = fold(Both())
        assert kept(result) == {"inner.block.1": Reason.NOT_CAPTURED}


class Reaching(Net):
    """Code around the block that gets at what is in it, on the path that is seen or on another."""

    def __init__(self) -> None:
        super().__init__()
        self.links = [self.block[0]]

    def around(self, x: Tensor) -> Iterator[Tensor]:
        yield x

    def forward(self, x: Tensor) -> Tensor:
        y = self.block(x)
        total = sum(each.sum() for each in self.around(x))
        return self.tail(y) + (total if y.sum() > 0 else -total)


class Calls(Reaching):
    def around(self, x: Tensor) -> Iterator[Tensor]:
        yield self.links[0](x)


class Reads(Reaching):
    def around(self, x: Tensor) -> Iterator[Tensor]:
        yield F.conv2d(x, self.links[0].weight)


class CallsElsewhere(Reaching):
    def around(self, x: Tensor) -> Iterator[Tensor]:
        yield self.block[0](x) if x.sum() > 1e9 else x


class IteratesElsewhere(Reaching):
    def around(self, x: Tensor) -> Iterator[Tensor]:
        if x.sum() > 1e9:
            for layer in self.block:
                x = layer(x)
        yield x


class ReadsElsewhere(Reaching):
    def __init__(self) -> None:
        super().__init__()
        self.block = Inner()  # type: ignore[assignment]

    def around(self, x: Tensor) -> Iterator[Tensor]:
        yield F.conv2d(x, self.block.conv.weight) if x.sum() > 1e9 else x


class Inner(nn.Sequential):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.norm = nn.BatchNorm2d(6)


@pytest.mark.parametrize("kind", [Calls, Reads, CallsElsewhere, IteratesElsewhere, ReadsElsewhere])
def test_a_part_that_others_look_into_does_not_change(kind: Callable[[], nn.Module]) -> None:
    assert folded(fold(kind())) == []


def test_a_part_that_nobody_looks_into_changes() -> None:
    assert folded(fold(Reaching())) == ["block.1"]


def test_a_parameter_that_another_module_holds_as_well_is_untied() -> None:
    net = IfSum()
    net.block[0].weight = nn.Parameter(net.block[0].weight.detach()[:, :, :1, :1].contiguous())
    net.block[0].kernel_size = (1, 1)
    net.extra = nn.Conv2d(3, 6, 1)
    net.extra.weight = net.block[0].weight
    net.block.append(nn.Identity())

    class Beside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x).sum() + self.net.extra(x).sum()  # type: ignore[no-any-return]

    result = fold(Beside())
    assert folded(result) == ["net.block.1"]
    assert torch.equal(result.model.net.extra.weight, net.extra.weight)


class TestBeforeFolding:
    def test_wrappers_are_taken_off_with_a_note(self) -> None:
        net = trained(Logs())
        wrapped = torch.compile(nn.DataParallel(net), backend="eager")
        result = bnfold.fold(wrapped, X)
        assert result.passed
        assert type(result.model) is Logs
        assert [n for n in result.notes if "taken off" in n] == [
            "the OptimizedModule around it was taken off",
            "the DataParallel around it was taken off",
        ]

    def test_a_lazy_layer_has_to_run_first(self) -> None:
        with pytest.raises(ModelError, match=r"^0\.weight has no shape yet") as caught:
            bnfold.fold(nn.Sequential(nn.LazyConv2d(4, 3), nn.BatchNorm2d(4)), X)
        assert "run the model once" in (caught.value.hint or "")

    @pytest.mark.parametrize("way", ["dynamic", "layer"])
    def test_a_quantized_module_is_refused(self, way: str) -> None:
        net: nn.Module = nn.Sequential(nn.Flatten(), nn.Linear(189, 4))
        if way == "dynamic":
            net = torch.ao.quantization.quantize_dynamic(net, {nn.Linear})
        else:
            net[1] = torch.ao.nn.quantized.Linear(189, 4)
        with pytest.raises(ModelError, match=r"the model is quantized: 1 is a torch\.ao") as caught:
            bnfold.fold(net, X)
        assert "before it is quantized" in (caught.value.hint or "")

    def test_a_module_that_lacks_something_is_no_wrong_use(self) -> None:
        net = trained(Logs())
        del net.conv
        with pytest.raises(ModelError, match=r"Logs fails at .*has no attribute 'conv'"):
            bnfold.fold(net, X)

    def test_a_module_without_values_is_refused(self) -> None:
        with pytest.raises(ModelError, match=r"block\.0\.weight has no values") as caught:
            bnfold.fold(Logs().to("meta"), X)
        assert "load_state_dict" in (caught.value.hint or "")
