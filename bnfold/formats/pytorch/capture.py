"""An nn.Module as an ExportedProgram: the whole of it or, where that fails, the parts that can be.

A program of parts runs each part, a submodule, on inputs of its own, and returns all their results:
what is folded in a part leaves these as they are, whatever the code around it does with them.

Exact when   CAPTURED    torch.export can follow the part: nothing it does depends on values
             ALL_CALLS   one program covers every call of the part that was seen: they differ in
                         sizes alone, and these are free in the program
             CLOSED      nobody calls a module inside the part, or reads a parameter of it, from
                         outside; and the code around it does not name what lies inside
             ESCAPES     a tensor that a forward leaves on its module, in a list or an attribute, is
                         a result as well
"""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.export import Dim, ExportedProgram
from torch.utils._pytree import tree_unflatten

from bnfold.errors import ModelError, first_line
from bnfold.formats.pytorch.failure import found_in
from bnfold.formats.pytorch.functional import functional
from bnfold.formats.pytorch.identifiers import Identifiers, is_identifier
from bnfold.formats.pytorch.program_names import identified
from bnfold.formats.pytorch.recording import Arguments, Record, plain_modules, record
from bnfold.formats.pytorch.surroundings import reaches_into
from bnfold.formats.pytorch.tensors import escaped, tensors_in
from bnfold.process_state import changed, quiet

Part = tuple[str, Sequence[Arguments]]
"""The path of a submodule, and all its calls."""


@dataclass(frozen=True, eq=False, slots=True)
class Capture:
    """`parts` are the paths of what `program` covers; [""] is the whole.

    The program is functional, and `names` lead from its paths to the module's. `missing` has every
    BatchNorm that runs and is not covered, with the reason; `failure` says why the whole could not
    be captured.
    """

    program: ExportedProgram
    names: Identifiers
    parts: tuple[str, ...] = ("",)
    missing: Mapping[str, str] = field(default_factory=dict)
    failure: str = ""


def capture(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Capture:
    """Capture as much of `module` as possible; it is not changed.

    Raises ModelError if torch.export fails even on the parts that it took one by one.
    """
    try:
        return Capture(*program_of(module, [("", [Arguments.of(args, kwargs)])]))
    except Exception as error:  # whatever torch raises, it could not follow this module
        failure = found_in(error)
    tree = copied(module, share=True)
    return _Search(module, tree, record(tree, args, kwargs)).capture(failure)


def export(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], shapes: Any
) -> ExportedProgram:
    """torch.export without gradients, which would only show as regions of another grad mode.

    Without them, torch's own layers could take a fused path that hides what they compute. Raises
    ModelError for keywords that Python would read as something else: torch writes them into code.
    """
    if odd := next((name for name in kwargs if not is_identifier(name)), None):
        raise ModelError(
            f"the model has an input that is called {odd!r:.200}",
            "call it by an identifier",
        )
    mha = torch.backends.mha
    with (
        changed(mha.get_fastpath_enabled, mha.set_fastpath_enabled, False),
        quiet("torch"),
        redirect_stderr(io.StringIO()),
        torch.no_grad(),
    ):
        return torch.export.export(module, args, kwargs, dynamic_shapes=shapes, strict=False)


def copied(module: nn.Module, *, share: bool = False) -> nn.Module:
    """A deep copy of the structure, and of the tensors unless they are to be shared."""
    tensors = [*module.parameters(), *module.buffers()] if share else []
    memo = {id(tensor): tensor for tensor in tensors}
    for tensor in (t for child in module.modules() for t in vars(child).values()):
        if isinstance(tensor, torch.Tensor) and not tensor.is_leaf:  # what deepcopy refuses
            memo[id(tensor)] = tensor.detach().clone()
    try:
        return copy.deepcopy(module, memo)
    except Exception as error:
        raise ModelError(
            f"{type(module).__name__} cannot be copied: {first_line(error)}",
            "fold never changes the model it is given, so it must support copy.deepcopy",
        ) from error


def program_of(
    module: nn.Module,
    parts: Sequence[Part],
    *,
    free: Any = Dim.DYNAMIC,
    traced: bool = False,
    seen: Callable[[list[Any], list[torch.Tensor]], None] = lambda results, left: None,
) -> tuple[ExportedProgram, Identifiers]:
    """The parts, each on inputs of its own; all tensors that result are outputs.

    `free` is what torch.export is told of sizes in which the calls of a part differ; `traced` is
    that of `functional`; `seen` is given what the parts returned and left on modules while they
    were followed.
    The module's own hooks are left out: they see its inputs and results, which stay.
    """
    stage = copied(module, share=True)
    stage._forward_hooks.clear()
    stage._forward_pre_hooks.clear()
    patched, plain = vars(stage).pop("forward", None), type(stage).forward
    _leave_out_others(stage, [path for path, _ in parts])

    def forward(
        self: nn.Module, inputs: list[list[torch.Tensor]], unread: torch.Tensor
    ) -> list[torch.Tensor]:
        results = []
        with escaped(stage) as left:
            for (path, calls), tensors in zip(parts, inputs, strict=True):
                args, kwargs = _with_tensors(calls[0], tensors)
                run = self.get_submodule(path) if path else patched or plain.__get__(self)
                results.append(run(*args, **kwargs))
        seen(results, left)
        return [*tensors_in(results), *left]

    base = nn.Module if isinstance(stage, torch.fx.GraphModule) else type(stage)
    stage.__class__ = type(type(stage).__name__, (base,), {"forward": forward})
    given = [
        [torch.empty_like(t, device=d) for t, d in zip(call.tensors, call.devices, strict=True)]
        for _, (call, *_) in parts
    ]
    shapes = [[dict.fromkeys(axes, free) for axes in free_sizes(calls)] for _, calls in parts]
    unread = torch.empty(2)  # a program must have an input
    program = export(stage, (given, unread), {}, {"inputs": shapes, "unread": {}})
    program.graph.eliminate_dead_code()  # what was tried and failed cannot be run again
    program, names = identified(program)
    return functional(program, traced=traced), names


def _leave_out_others(stage: nn.Module, parts: Sequence[str]) -> None:
    """Only the parts run; of what lies beside them stays what holds a tensor of theirs as well.

    So a tied tensor keeps its name. TorchScript is in no part.
    """
    if "" in parts:
        return
    inside = {child for path in parts for child in stage.get_submodule(path).modules()}
    tensors = {id(tensor) for child in inside for tensor in _stored_in(child)}
    for parent in list(plain_modules(stage)):
        if parent in inside:
            continue
        for name, child in list(parent._modules.items()):
            if child is not None and not any(
                each in inside or not tensors.isdisjoint(map(id, _stored_in(each)))
                for each in child.modules()
            ):
                parent._modules[name] = nn.Identity()


def _stored_in(module: nn.Module) -> Iterator[torch.Tensor]:
    if not isinstance(module, torch.jit.ScriptModule):
        yield from module.parameters(recurse=False)
        yield from module.buffers(recurse=False)


def _with_tensors(call: Arguments, tensors: list[torch.Tensor]) -> Any:
    rest = iter(tensors)
    leaves = [next(rest) if isinstance(x, torch.Tensor) else x for x in call.leaves]
    return tree_unflatten(leaves, call.structure)


def _per_tensor(calls: Sequence[Arguments]) -> Iterator[tuple[torch.Tensor, ...]]:
    return zip(*(call.tensors for call in calls), strict=True)


def free_sizes(calls: Sequence[Arguments]) -> list[list[int]]:
    """For each tensor that is passed, the axes along which the calls differ."""
    return [
        [
            axis
            for axis, sizes in enumerate(zip(*(t.shape for t in tensors), strict=True))
            if len(set(sizes)) > 1
        ]
        for tensors in _per_tensor(calls)
    ]


class _Search:
    """Finds the largest parts, from the root downwards.

    `tree` is a copy of the module, on which the calls were recorded: the paths are the same.
    """

    def __init__(self, module: nn.Module, tree: nn.Module, seen: Record) -> None:
        self._module = module
        self._tree = tree
        self._seen = seen
        self._visited: set[nn.Module] = set()
        self._parts: list[Part] = []
        self._missing: dict[str, str] = {}

    def capture(self, failure: str) -> Capture:
        self._descend("", self._tree, failure)
        try:
            found = program_of(self._module, self._parts)
        except Exception as error:  # whatever torch raises
            raise ModelError(
                f"torch.export fails on {type(self._module).__name__}: {found_in(error)}",
                "export it to ONNX or TorchScript first, and fold that",
            ) from error
        return Capture(*found, tuple(path for path, _ in self._parts), self._missing, failure)

    def _descend(self, path: str, module: nn.Module, why: str) -> None:
        """Take the module as a part, or its children; `why` is what failed outside of it."""
        self._visited.add(module)
        calls = self._seen.calls.get(module)
        if calls and path and _may_fold(module):
            failed = self._unfit(path, module, calls)
            if failed is None:
                self._visited.update(module.modules())
                self._parts.append((path, calls))
                return
            why = failed
        if isinstance(module, torch.jit.ScriptModule):
            self._miss_scripted(path, module)
        elif calls and isinstance(module, nn.modules.batchnorm._NormBase):
            self._missing[path] = why
        for name, child in module.named_children():
            if child not in self._visited:
                self._descend(f"{path}.{name}".lstrip("."), child, why)

    def _miss_scripted(self, path: str, module: torch.jit.ScriptModule) -> None:
        for name, child in module.named_modules():
            self._visited.add(child)
            if "BatchNorm" in getattr(child, "original_name", ""):
                self._missing[f"{path}.{name}".strip(".")] = f"{path} is TorchScript"

    def _unfit(self, path: str, module: nn.Module, calls: list[Arguments]) -> str | None:
        """Why the module is no part; None if it is one."""
        if not all(call.is_plain() for call in calls):
            return f"{path} takes other inputs than tensors and numbers"
        if not all(call.is_like(calls[0]) for call in calls) or _has_single_size(calls):
            return f"{path} is called with different kinds of inputs"
        if visitor := next(self._seen.visitors(module), None):
            names = {each: name for name, each in module.named_modules()}
            return f"{path}.{names[visitor]} is used from outside {path} as well".replace("..", ".")
        if chain := reaches_into(module, plain_modules(self._tree)):
            return f"the code around {path} gets at what is in it ({chain})"
        try:
            program_of(self._module, [(path, calls)])
        except Exception as error:  # whatever torch raises, it could not follow this part
            return found_in(error)
        return None


def _may_fold(module: nn.Module) -> bool:
    """Whether there may be two operators in it: a layer of torch's own is one."""
    own = type(module).__module__.startswith("torch.nn.modules")
    return not isinstance(module, torch.jit.ScriptModule) and (
        not own or any(True for _ in module.children())
    )


def _has_single_size(calls: Sequence[Arguments]) -> bool:
    """Whether a size that differs is 1 somewhere, where broadcasting makes it another program."""
    return any(
        min(t.shape[axis] for t in tensors) < 2
        for tensors, axes in zip(_per_tensor(calls), free_sizes(calls), strict=True)
        for axis in axes
    )
