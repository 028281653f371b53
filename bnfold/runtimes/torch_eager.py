"""Run PyTorch callables on NumPy samples: as they are, or with every operation in float64.

The float64 run takes a copy of the model whose parameters are float64 already. A dispatch mode
sees each ATen operator, also those that TorchScript's interpreter calls, and hands it float64 in
place of any narrower float: a cast in the model's own code ("x.float()") or a constant in it stays
float64 too, so the result is the truth that the model approximates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from bnfold.errors import BnfoldError, ModelError
from bnfold.naming import unique
from bnfold.process_state import changed
from bnfold.processes.supervision import watched
from bnfold.runtimes import NotComputableError, Outputs, Overwriting, Sample
from bnfold.runtimes.sides import OF_ATEN, Sides

_WIDE = {
    torch.float32: torch.float64,
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.complex32: torch.complex128,
    torch.complex64: torch.complex128,
}


class InFloat64(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While active, no operator computes in a float narrower than float64."""

    supports_higher_order_operators = True

    def __init__(self, sides: Sides | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._sides = sides
        self._wide: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        args, kwargs = tree_map(self._widen, (args, dict(kwargs or {})))
        if func is torch.ops.aten.convolution.default and _is_grouped(*args):
            return _grouped_convolution(*args)
        if func is torch.ops.higher_order.cond:
            condition, then, otherwise, operands = args
            with self:
                return (then if condition else otherwise)(*operands)
        if self._sides is not None:
            _note_sides(self._sides, func, args)  # before an operator writes to what it reads
        return tree_map(self._widen, func(*args, **kwargs))

    def _widen(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor) and value.dtype in _WIDE:
            known = self._wide.get(id(value))
            if known is None or known[0] is not value:
                known = self._wide[id(value)] = (value, value.detach().to(_WIDE[value.dtype]))
            return known[1]
        return _WIDE.get(value, value) if isinstance(value, torch.dtype) else value


def _note_sides(sides: Sides, func: Any, args: Any) -> None:
    """What an operator with several sides is about to reach."""
    name = str(getattr(func, "overloadpacket", func)).rpartition(".")[2].rstrip("_")
    first = args[0] if args else None
    sides.work += first.numel() if isinstance(first, torch.Tensor) else 0
    if name in OF_ATEN and isinstance(first, torch.Tensor) and not first.is_complex():
        plain = [to_array(a) if isinstance(a, torch.Tensor) else a for a in args]
        sides.note(sides.numbered(name), OF_ATEN[name](plain, {}))


class _WideArguments(TorchFunctionMode):
    """Convolutions compare the types of their arguments before any dispatch mode sees them.

    A parameter of a module that no module knows of, such as one in a plain list, is still narrow.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in _CONVOLUTIONS:
            args, kwargs = tree_map(_widened, (args, dict(kwargs or {})))
        return func(*args, **(kwargs or {}))


def _widened(value: Any) -> Any:
    return (
        value.to(_WIDE.get(value.dtype, value.dtype)) if isinstance(value, torch.Tensor) else value
    )


_CONVOLUTIONS = frozenset(
    getattr(torch, f"{kind}{n}d") for kind in ("conv", "conv_transpose") for n in (1, 2, 3)
)


def _is_grouped(x: Any, weight: Any, *rest: Any) -> bool:
    """Whether torch would compute the groups one by one, which it does in float64 on the CPU."""
    transposed, groups = rest[4], rest[6]
    return groups > 1 and not transposed and x.device.type == "cpu" and x.dtype == torch.float64


def _grouped_convolution(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    output_padding: list[int],
    groups: int,
) -> torch.Tensor:
    """aten.convolution of all groups at once: windows [N, g, Cin/g, *out, *K] times the weight."""
    kernel = weight.shape[2:]
    windows = torch.nn.functional.pad(x, [p for p in reversed(padding) for _ in range(2)])
    for axis, (size, step, spread) in enumerate(zip(kernel, stride, dilation, strict=True), 2):
        windows = windows.unfold(axis, spread * (size - 1) + 1, step)[..., ::spread]
    sizes = windows.shape
    split = windows.reshape(sizes[0], groups, -1, *sizes[2 : 2 + len(kernel)], kernel.numel())
    by_group = weight.reshape(groups, -1, weight.shape[1], kernel.numel())
    made = torch.einsum("ngi...k,goik->ngo...", split, by_group).flatten(1, 2)
    return made if bias is None else made + bias.reshape(-1, *[1] * len(kernel))


class TorchRunner:
    """`function` called with the sample's tensors by the names of its parameters, without grad.

    `arguments` gives, for every input name in order, the parameter to pass it by keyword, or None
    to pass it by position; an input that is not among them goes by its own name. `wide` computes in
    float64, of a `function` with float64 parameters. `place` is what reports call where it runs;
    the device by default.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        arguments: Mapping[str, str | None],
        *,
        wide: bool = False,
        device: str = "cpu",
        place: str | None = None,
    ) -> None:
        self.sides = Sides() if wide else None
        self._function = function
        self._arguments = arguments
        self._wide = wide
        self._device = device
        self._place = place or device

    @property
    def input_names(self) -> tuple[str, ...]:
        return tuple(self._arguments)

    @property
    def name(self) -> str:
        return "float64" if self._wide else f"torch {self._place}"

    @watched
    def __call__(self, sample: Sample) -> Outputs:
        tensors = self.tensors(sample)
        before = {name: (tensor, tensor.clone()) for name, tensor in tensors.items()}
        outputs = self.call(tensors)
        changed = tuple(name for name, pair in before.items() if not _are_same(*pair))
        return Overwriting(outputs, changed) if changed else outputs

    def call(self, tensors: Mapping[str, torch.Tensor]) -> Outputs:
        """A run on the tensors that `tensors` gives. Raises ModelError for what it raises."""
        call = self._bound(tensors)
        if self.sides is not None:
            self.sides.begin()
        with torch.no_grad(), in_float64(self.sides) if self._wide else full_float32():
            with _told("in float64" if self._wide else "as it is"):
                made = call()
            return named_outputs(made)

    def bound(self, sample: Sample) -> Callable[[], object]:
        """A run on `sample` that converts nothing and waits for the device: what is timed."""
        call = self._bound(self.tensors(sample))

        def run() -> None:
            with torch.no_grad(), full_float32():
                call()
                if self._device != "cpu":
                    torch.cuda.synchronize()

        return run

    def tensors(self, sample: Sample) -> dict[str, torch.Tensor]:
        """The sample as tensors where the model runs, in the order of its inputs."""
        tensors = {
            name: to_tensor(sample[name]).to(self._device)
            for name in sorted(sample, key=self._order)
        }
        if self._wide:
            return {name: t.to(_WIDE.get(t.dtype, t.dtype)) for name, t in tensors.items()}
        return tensors

    def _bound(self, tensors: Mapping[str, torch.Tensor]) -> Callable[[], Any]:
        """The function with the tensors as its arguments."""
        keywords = {name: self._arguments.get(name, name) for name in tensors}
        positional = [t for name, t in tensors.items() if keywords[name] is None]
        named = {key: tensors[name] for name, key in keywords.items() if key is not None}
        return partial(self._function, *positional, **named)

    def _order(self, name: str) -> int:
        names = list(self._arguments)
        return names.index(name) if name in names else len(names)


def _are_same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors have the same form and the same numbers; NaN is the same as NaN."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return bool(((one == other) | (one.isnan() & other.isnan())).all())


_OF_SCRIPTS = "The following operation failed in the TorchScript interpreter"
"""How an error begins that ends with its cause."""


@contextmanager
def _told(how: str) -> Iterator[None]:
    """What stops a model is told of the model; what of bnfold is in the run says so itself."""
    try:
        yield
    except (BnfoldError, NotComputableError, MemoryError):
        raise
    except Exception as error:  # a model raises what it likes
        lines = [line for line in str(error).splitlines() if line.strip()] or [""]
        first = lines[-1].strip() if lines[0].startswith(_OF_SCRIPTS) else lines[0]
        kind = type(error).__name__
        first = first.removeprefix(f"{kind}: ")
        why = f"{kind}: {first}" if first else kind
        raise ModelError(
            f"the model does not run {how}: {why}", "give it inputs that it takes with --input"
        ) from error


@contextmanager
def in_float64(sides: Sides | None = None) -> Iterator[None]:
    """Nothing computes in a narrower float; fused attention, which might, is off.

    The default type matters where integers meet a Python number: the result has that type.
    """
    mha = torch.backends.mha
    with (
        changed(mha.get_fastpath_enabled, mha.set_fastpath_enabled, False),
        changed(torch.get_default_dtype, torch.set_default_dtype, torch.float64),
        InFloat64(sides),
        _WideArguments(),
    ):
        yield


@contextmanager
def full_float32() -> Iterator[None]:
    """TF32 is off: its error is a thousand times that of float32 and would hide mistakes."""
    with ExitStack() as stack:
        for backend in (torch.backends.cuda.matmul, torch.backends.cudnn):
            read = partial(getattr, backend, "allow_tf32")
            write = partial(setattr, backend, "allow_tf32")
            stack.enter_context(changed(read, write, False))
        yield


def to_tensor(array: NDArray[Any]) -> torch.Tensor:
    """A tensor with its own memory; bfloat16 arrays are those of ml_dtypes."""
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(np.array(array))


def to_array(tensor: torch.Tensor) -> NDArray[Any]:
    tensor = tensor.detach().cpu().resolve_conj().resolve_neg()
    if tensor.dtype == torch.bfloat16:
        import ml_dtypes

        return tensor.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def named_outputs(result: Any) -> Outputs:
    """The tensors of any nest of tuples, lists, dicts and dataclasses, named by their path."""
    named: Outputs = {}
    _collect(result, "", named)
    return named


def _collect(value: Any, path: str, named: Outputs) -> None:
    if isinstance(value, torch.Tensor):
        _add(to_array(value).copy(), path, named)  # the model may use its memory again
    elif isinstance(value, bool | int | float):
        _add(np.asarray(value), path, named)
    elif isinstance(value, Mapping):
        for key, entry in value.items():
            _collect(entry, f"{path}.{key}" if path else str(key), named)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        names = getattr(value, "_fields", None) or [f"output.{i}" for i in range(len(value))]
        for name, entry in zip(names, value, strict=True):
            _collect(entry, f"{path}.{name}" if path else name, named)
    elif hasattr(value, "__dataclass_fields__"):
        _collect({name: getattr(value, name) for name in value.__dataclass_fields__}, path, named)
    elif value is not None and not isinstance(value, str):
        leaves = tree_flatten(value)[0]
        if leaves == [value]:
            raise ModelError(
                f"the output {path or 'of the model'} is a {type(value).__name__}, "
                "which cannot be compared",
                "wrap the model in a module whose forward returns tensors",
            )
        for i, leaf in enumerate(leaves):
            _collect(leaf, f"{path or 'output'}.{i}", named)


def _add(array: NDArray[Any], path: str, named: Outputs) -> None:
    """Under its path, or one that is not taken: no output may go missing."""
    named[unique(path or "output", named)] = array
