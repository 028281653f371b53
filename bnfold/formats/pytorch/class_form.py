"""Folded weights in the places that the class of their network has.

A file of weights is loaded into a class, with every BatchNorm that the class makes. In this form it
holds what computes the same there: a BatchNorm that was folded multiplies by exactly 1. It adds
nothing, or the shift that the layer before it has no bias for.

    y = (x - 0) w / sqrt(v + eps) + t        w / sqrt(v + eps) = 1,  t = 0 or the shift

Exact when   PLACE    every new parameter has a place of its shape, which no other name ties; or it
                      is the bias of a layer that only a folded BatchNorm reads, on its own axis
             NORM     what was folded is a BatchNorm of torch with its own statistics
             NEUTRAL  there are w and v in its types that multiply by exactly 1 (`neutral`)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from bnfold.algebra.graph import Affine, Conv, Graph, Identity, Node, params
from bnfold.algebra.plan import Plan
from bnfold.algebra.refusal import Reason, Refusal
from bnfold.formats.pytorch.capture import copied
from bnfold.formats.pytorch.changes import Changes, dissolve, place, submodules
from bnfold.formats.pytorch.module_editor import ModuleEditor
from bnfold.formats.pytorch.precision import in_precision

_NORMS = nn.modules.batchnorm._NormBase

_LARGEST = 7
"""4**7 is the largest power of 4 that float16 can hold."""


def neutral(eps: float, dtype: torch.dtype, *, affine: bool) -> tuple[float, float] | None:
    """The weight and running_var in `dtype` with which a BatchNorm multiplies by exactly 1.

    As torch computes it: in float32 for narrower types. None if there are none; without `affine`
    the weight is 1. First of all 1 and the number nearest to 1 - eps; where their rounding shows,
    2^n and 4^n, beside which eps vanishes.
    """
    near = float(torch.tensor(1 - eps, dtype=torch.float64).to(dtype))
    larger = [(2.0**n, 4.0**n) for n in range(1, _LARGEST + 1)] if affine else []
    wide = np.float64 if dtype is torch.float64 else np.float32
    for weight, var in ((1.0, near), *larger):
        root = np.sqrt(wide(var) + wide(eps)) if var >= 0 else wide(0)
        if root > 0 and wide(weight) * (wide(1) / root) == 1:
            return weight, var
    return None


def shift_of(norm: nn.Module) -> torch.Tensor | None:
    """What a BatchNorm adds that is neutral otherwise; None if it is not."""
    if not isinstance(norm, _NORMS) or norm.running_var is None or norm.running_mean is None:
        return None
    found = neutral(norm.eps, norm.running_var.dtype, affine=norm.affine)
    if found is None or not bool((norm.running_var == found[1]).all()):
        return None
    if not norm.affine:
        return -norm.running_mean
    plain = bool((norm.weight == found[0]).all() and (norm.running_mean == 0).all())
    return norm.bias.detach() if plain else None


class ClassForm:
    """What the class of `module` has places for; `module` is as its factory makes it."""

    def __init__(self, module: nn.Module) -> None:
        self._module = copied(module, share=True)
        self._modules = submodules(self._module)
        self._shapes = {name: t.shape for name, t in self._module.state_dict().items()}
        held = (p for m in self._module.modules() for p in m._parameters.values() if p is not None)
        self._times = Counter(map(id, held))

    def cast(self, dtype: str) -> ClassForm:
        """The same class with its floats in `dtype`."""
        return ClassForm(in_precision(self._module, dtype))

    def unplaced(self, plan: Plan, editor: ModuleEditor, changes: Changes) -> dict[str, Refusal]:
        """The nodes that `plan` edits or dissolves and that the class has no place for.

        `changes` are those that were made to the network before.
        """
        found: dict[str, Refusal] = {}
        homes = self.homes(plan, editor)
        for before, after in plan.changed():
            for name, shape in _new(before, after, editor):
                known = name in changes.homes or self._has_place(name, shape)
                if not known and name not in homes:
                    found[after.name] = _no_place(after, f"{name} has no place in its class")
        for node in plan.dissolved():
            if not isinstance(node.op, Identity) and not self._can_be_neutral(node, editor):
                found[node.name] = _no_place(node, "its class computes it in any case")
        return found

    def homes(self, plan: Plan, editor: ModuleEditor) -> dict[str, str]:
        """New biases that the class has no place for -> the BatchNorm that can add them."""
        graph, gone = plan.before, {node.name: node for node in plan.dissolved()}
        readers = _readers(graph)
        found: dict[str, str] = {}
        for before, after in plan.changed():
            new = [name for name, _ in _new(before, after, editor) if name not in self._shapes]
            norm = gone.get(_sole_reader(before, graph, readers) or "")
            if new != [editor.name_of(after.name, "bias")] or norm is None:
                continue
            if self._takes_shift(norm, before, graph, editor):
                found[new[0]] = editor.path(norm.name)
        return found

    def dressed(self, network: nn.Module, changes: Changes) -> dict[str, torch.Tensor]:
        """The state of `network`, which `changes` made of the class, as the class holds it."""
        state = dict(self._module.state_dict())
        for name in changes.identity:
            for role, tensor in _neutral_state(self._modules[name]).items():
                state[f"{name}.{role}"] = tensor
        aliases = _aliases(self._modules)
        for name, tensor in network.state_dict().items():
            if name in changes.homes:
                for home in aliases[self._modules[changes.homes[name]]]:
                    role, sign = ("bias", 1) if f"{home}.bias" in state else ("running_mean", -1)
                    state[f"{home}.{role}"] = (sign * tensor).to(state[f"{home}.{role}"].dtype)
            elif name not in changes.plain:
                state[name] = tensor
        return state

    def within(self, changes: Changes) -> list[str]:
        """A name of what each module held that is gone."""
        first = {name.rpartition(".")[0]: name for name in reversed(self._shapes)}
        return [first[name] for name in changes.identity if name in first]

    def loaded(self, state: Mapping[str, torch.Tensor]) -> nn.Module:
        """A network of the class with the state, as torch loads it."""
        made = copied(self._module)
        made.load_state_dict(state, strict=True)
        return made.eval()

    def _has_place(self, name: str, shape: tuple[int, ...]) -> bool:
        path, _, attribute = name.rpartition(".")
        owner = self._modules.get(path)
        held = None if owner is None else owner._parameters.get(attribute)
        return tuple(self._shapes.get(name, ())) == shape and self._times[id(held)] <= 1

    def _can_be_neutral(self, node: Node, editor: ModuleEditor) -> bool:
        """NORM and NEUTRAL."""
        norm = editor.owner(node.name)
        if not isinstance(node.op, Affine) or not isinstance(norm, _NORMS):
            return False
        if norm.running_var is None or editor.unfit_to_rewrite(node, norm) is not None:
            return False
        return neutral(norm.eps, norm.running_var.dtype, affine=norm.affine) is not None

    def _takes_shift(self, norm: Node, layer: Node, graph: Graph, editor: ModuleEditor) -> bool:
        """Whether a BatchNorm can add what the layer before it has no bias for."""
        module, shape = editor.owner(norm.name), graph.shapes.get(layer.outputs[0])
        if not isinstance(module, _NORMS) or shape is None or not isinstance(norm.op, Affine):
            return False
        (_, weight), *_ = params(layer.op)
        if isinstance(layer.op, Conv) and len(shape) != len(weight.shape):
            return False
        axis = 1 if isinstance(layer.op, Conv) else len(shape) - 1
        to = module.running_mean if module.bias is None else module.bias
        own = getattr(torch, weight.dtype)
        fits = to is not None and torch.promote_types(own, to.dtype) == to.dtype
        return norm.op.affine.axes == (axis,) and fits


def undressed(module: nn.Module, changes: Changes) -> Changes:
    """Take the neutral BatchNorms out of a network of the class that was loaded; what was done.

    One that is not neutral any more stays, with the layer before it as it is. Raises ValueError for
    names that lead to nothing.
    """
    modules, homes = submodules(module), {}
    moved: dict[str, torch.Tensor] = {}
    for bias, home in changes.homes.items():
        place(module, bias)
        shift = shift_of(modules[home]) if home in modules else None
        if shift is not None and home in changes.identity:
            homes[bias] = home
            moved[bias] = shift
    at_home = {modules[home] for home in homes.values()}
    identity = []
    for name in changes.identity:
        norm = modules.get(name)
        shift = None if norm is None else shift_of(norm)
        if norm is None or (shift is not None and (norm in at_home or not bool(shift.any()))):
            dissolve(module, name)
            identity.append(name)
    for bias, shift in moved.items():
        layer, attribute = place(module, bias)
        like = next(layer.parameters(), shift)
        layer._parameters[attribute] = nn.Parameter(shift.to(like.dtype).clone())
    return Changes((), tuple(identity), tuple(homes), (), homes, compact=False)


def _neutral_state(norm: nn.Module) -> dict[str, torch.Tensor]:
    """The tensors of a BatchNorm as they are where it does nothing."""
    held: Any = norm
    found = neutral(held.eps, held.running_var.dtype, affine=held.affine)
    assert found is not None
    numbers = {"weight": found[0], "bias": 0.0, "running_mean": 0.0, "running_var": found[1]}
    state = held.state_dict()
    return {role: torch.full_like(state[role], numbers[role]) for role in numbers if role in state}


def _new(before: Node, after: Node, editor: ModuleEditor) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of the parameters that an edit replaces."""
    if isinstance(after.op, Affine):
        size = after.op.affine.size
        yield from ((f"{editor.path(after.name)}.{role}", (size,)) for role in ("weight", "bias"))
        return
    for role, param in params(after.op):
        if param is not getattr(before.op, role, None):
            yield editor.name_of(after.name, role), tuple(param.shape)


def _readers(graph: Graph) -> dict[str, list[Node]]:
    found: dict[str, list[Node]] = {}
    for node in graph.nodes:
        for value in node.inputs:
            found.setdefault(value, []).append(node)
    return found


def _sole_reader(node: Node, graph: Graph, readers: Mapping[str, list[Node]]) -> str | None:
    """The one node that reads what a node makes, through identities; None if there are more."""
    while len(node.outputs) == 1 and node.outputs[0] not in graph.outputs:
        reading = readers.get(node.outputs[0], [])
        if len(reading) != 1:
            return None
        (node,) = reading
        if not isinstance(node.op, Identity):
            return node.name
    return None


def _aliases(modules: Mapping[str, nn.Module]) -> dict[nn.Module, list[str]]:
    found: dict[nn.Module, list[str]] = {}
    for name, module in modules.items():
        found.setdefault(module, []).append(name)
    return found


def _no_place(node: Node, why: str) -> Refusal:
    return Refusal(Reason.NO_PLACE, f"{node.name}: {why}", node.name)
