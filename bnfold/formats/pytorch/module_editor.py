"""Carry a plan out in the modules of a network, in place: new parameters, nn.Identity for affines.

What cannot be carried out so is told, node by node:
    SHARED_MODULE        the layer is called more than once, or its parameter is read elsewhere
    NOT_A_PLAIN_MODULE   hooks look on, the affine is not a module of its own, or the weight is
                         computed by the module
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from bnfold.algebra.affine import to_batchnorm
from bnfold.algebra.graph import Affine, Graph, Identity, Node, Op, params
from bnfold.algebra.plan import Plan
from bnfold.algebra.refusal import Reason, Refusal
from bnfold.algebra.rounding import Weights
from bnfold.formats.pytorch.aten import Stored, float64
from bnfold.formats.pytorch.program_reader import ProgramReader
from bnfold.runtimes.torch_eager import to_tensor


class ModuleEditor:
    """Maps the nodes of a captured graph to the modules and parameters of one module."""

    def __init__(self, module: nn.Module, reader: ProgramReader) -> None:
        self._root = module
        self._reader = reader
        self._modules = dict(module.named_modules(remove_duplicate=False))
        self._neutral = {native: name for name, native in reader.native.items()}
        self._around: dict[str, frozenset[nn.Module]] = {}
        self._inside: dict[nn.Module, set[str]] = {each: set() for each in module.modules()}
        for node, path in reader.owners.items():
            for outer in _and_above(path):
                if outer in self._modules:
                    self._inside[self._modules[outer]].add(node)

    def watched(self, plan: Plan) -> dict[str, Refusal]:
        """The sites that cannot fold because hooks would see it, with the reason."""
        return dict(self._under_watch(plan))

    def unfit(self, plan: Plan) -> dict[str, Refusal]:
        """The nodes that `plan` edits or dissolves and whose modules cannot, with the reason."""
        refusals: dict[str, Refusal] = {}
        changed = {after.name: after.op for _, after in plan.changed()}
        for before, after in plan.changed():
            if refusal := self._unfit_to_change(before, after, changed):
                refusals[after.name] = refusal
        gone = list(plan.dissolved())
        idle = {node.name for node in plan.before.nodes if isinstance(node.op, Identity)}
        for node in gone:
            if refusal := self._unfit_to_dissolve(node, idle | {other.name for other in gone}):
                refusals[node.name] = refusal
        return refusals

    def write(
        self,
        plan: Plan,
        weights: Weights,
        elsewhere: Callable[[str], bool] = lambda node: False,
    ) -> None:
        """Edit the modules; the nodes that are written `elsewhere` are left alone."""
        for _, after in plan.changed():
            if elsewhere(after.name):
                continue
            if isinstance(after.op, Affine):
                self._rewrite_batchnorm(after, after.op)
            for role, array in weights.get(after.name, {}).items():
                owner, attribute = self._address(after.name, role)
                assign(owner, attribute, to_tensor(array))
                state_sizes(owner)
        gone = {self.owner(n.name) for n in plan.dissolved() if not elsewhere(n.name)}
        for module in gone - {None}:
            put_in_place(self._root, module, nn.Identity())

    def owner(self, node: str) -> nn.Module | None:
        """The innermost module that made a node's call."""
        return self._modules.get(self.path(node))

    def path(self, node: str) -> str:
        """The path of that module."""
        return self._reader.owners.get(node, "")

    def name_of(self, node: str, role: str) -> str:
        """What a state_dict calls the parameter that holds, or will hold, a node's role."""
        constant = self._reader.arguments[node].get(role)
        if constant is None:
            return f"{self.path(node)}.{role}"
        attribute = constant.name.rpartition(".")[2]
        tied = is_same(getattr(self.owner(node), attribute, None), constant.tensor)
        return f"{self.path(node)}.{attribute}" if tied else constant.name

    def _address(self, node: str, role: str) -> tuple[nn.Module, str]:
        """The module and attribute that hold a node's parameter, or will hold its new bias."""
        own = self.owner(node)
        assert own is not None
        constant = self._reader.arguments[node].get(role)
        if constant is None:
            return own, role
        path, _, attribute = constant.name.rpartition(".")
        tied = is_same(getattr(own, attribute, None), constant.tensor)
        return (own if tied else self._modules[path]), attribute

    def _unfit_to_change(
        self, before: Node, node: Node, changed: Mapping[str, Op]
    ) -> Refusal | None:
        owner = self.owner(node.name)
        if owner is None:
            return _not_plain(node, "it belongs to no module")
        if has_hooks(owner):
            return _not_plain(node, "hooks on its module would see the change")
        if isinstance(node.op, Affine):
            return self.unfit_to_rewrite(before, owner)
        for role, _ in params(node.op):
            constant = self._reader.arguments[node.name].get(role)
            if constant is None and role != "bias":
                return _not_plain(node, f"its {role} is computed by the module")
            if constant is None:
                if not _takes_bias(owner):
                    return _not_plain(node, "its module has no place for a bias")
                constant = self._reader.arguments[node.name]["weight"]
            elif not self._is_stored(constant):
                return _not_plain(node, f"its {role} is computed by the module")
            others = self._other_readers(node.name, owner, constant)
            if not all(_is_equal(node, role, changed.get(other)) for other in others):
                return _shared(node)
        return None

    def unfit_to_rewrite(self, node: Node, owner: nn.Module) -> Refusal | None:
        """Whether a BatchNorm's module computes with anything but its own four tensors and eps."""
        if not isinstance(owner, nn.modules.batchnorm._NormBase) or owner.running_var is None:
            return _not_plain(node, "it is not a BatchNorm module")
        gamma = 1 if owner.weight is None else float64(owner.weight)
        scale = gamma / np.sqrt(float64(owner.running_var) + owner.eps)
        if isinstance(node.op, Affine) and not np.array_equal(node.op.affine.scale, scale):
            return _not_plain(node, "its module computes with another eps than its own")
        for role in ("weight", "bias", "running_mean", "running_var"):
            constant = self._reader.arguments[node.name].get(role)
            held = getattr(owner, role)
            if held is not None if constant is None else not is_same(held, constant.tensor):
                return _not_plain(node, f"its {role} is computed by the module")
            if constant and not self._is_sole_reader(node.name, owner, constant):
                return _shared(node)
        return None

    def _is_stored(self, constant: Stored) -> bool:
        """Whether the constant is an attribute of a module, rather than computed from some."""
        path, _, attribute = constant.name.rpartition(".")
        held = getattr(self._modules.get(path), attribute, None)
        return constant.name in self._reader.users and is_same(held, constant.tensor)

    def _is_sole_reader(self, node: str, owner: nn.Module, constant: Stored) -> bool:
        return not self._other_readers(node, owner, constant)

    def _other_readers(self, node: str, owner: nn.Module, constant: Stored) -> set[str]:
        """The calls that read the parameter too, but for those of a module with one of its own.

        A call that does not stand in the neutral graph goes by its name in the program.
        """
        holds, found = _holds(owner, constant), set[str]()
        for reader in self._reader.users[constant.name]:
            call = self._neutral.get(reader, reader)
            other = self.owner(call)
            own = holds and reader in self._neutral and other is not owner
            if call != node and not (own and _holds(other, constant)):
                found.add(call)
        return found

    def _unfit_to_dissolve(self, node: Node, gone: set[str]) -> Refusal | None:
        owner = self.owner(node.name)
        if owner is None or owner is self._root:
            return _not_plain(node, "it is computed by the model's own forward, not by a module")
        if has_hooks(owner):
            return _not_plain(node, "hooks on its module would see the change")
        if rest := sorted(self._inside[owner] - gone):
            return _not_plain(node, f"its module also computes {rest[0]}")
        if not _is_unary(owner):
            return _not_plain(node, "its module takes more than one input")
        for name, users in self._reader.users.items():
            scopes = (self._reader.scopes.get(user, "") for user in users)
            if self._lies_in(name, owner) and not all(self._lies_in(s, owner) for s in scopes):
                return _not_plain(node, f"{name} is read outside its module")
        return None

    def _lies_in(self, path: str, module: nn.Module) -> bool:
        if path not in self._around:
            outer = (self._modules.get(each) for each in _and_above(path))
            self._around[path] = frozenset(each for each in outer if each is not None)
        return module in self._around[path]

    def _under_watch(self, plan: Plan) -> Iterator[tuple[str, Refusal]]:
        """Folds that change a value which goes in or out of a module with hooks."""
        watched = [m for m in self._inside if m is not self._root and has_hooks(m)]
        if not watched:
            return
        ancestors = _ancestors(plan.before)
        sites = {node.name: node for node in plan.before.nodes if node.is_site}
        for site in plan.sites:
            region = _between(site.name, site.into, ancestors) & self._reader.owners.keys()
            for module in watched:
                if region & self._inside[module] and region - self._inside[module]:
                    why = "hooks on a module that it is folded through would see the change"
                    yield site.name, _not_plain(sites[site.name], why)

    def _rewrite_batchnorm(self, node: Node, op: Affine) -> None:
        module: Any = self.owner(node.name)
        mean, var = float64(module.running_mean), float64(module.running_var)
        made = to_batchnorm(op.affine, mean, var, module.eps)
        like = module.running_mean if module.weight is None else module.weight
        for attribute, numbers in zip(("weight", "bias"), made, strict=True):
            assign(module, attribute, torch.from_numpy(numbers).to(like.dtype))
        module.affine = True


def put_in_place(root: nn.Module, old: nn.Module | None, new: nn.Module) -> None:
    """Let `new` be wherever `old` is in the network."""
    for parent in list(root.modules()):
        for name, child in parent._modules.items():
            if child is old:
                parent._modules[name] = new


def assign(owner: nn.Module, attribute: str, tensor: torch.Tensor) -> None:
    """Give a module a tensor in the role, and on the device, of the one that it had."""
    old = getattr(owner, attribute)
    if old is None or isinstance(old, nn.Parameter):
        trains = old is None or old.requires_grad
        tensor = nn.Parameter(tensor, requires_grad=trains)
    if old is not None:
        tensor.data = tensor.data.to(old.device)
    setattr(owner, attribute, tensor)


def state_sizes(owner: nn.Module) -> None:
    """Let a layer say the sizes that its weight has: two in a row may have become one."""
    if isinstance(owner, nn.Linear):
        owner.out_features, owner.in_features = owner.weight.shape
    elif isinstance(owner, nn.modules.conv._ConvNd) and not owner.transposed:
        owner.out_channels, per_group = owner.weight.shape[:2]
        owner.in_channels = per_group * owner.groups


def _ancestors(graph: Graph) -> dict[str, set[str]]:
    """Every node with all the nodes that its inputs depend on."""
    producer = {value: node.name for node in graph.nodes for value in node.outputs}
    found: dict[str, set[str]] = {}
    for node in graph.nodes:
        above = {producer[value] for value in node.inputs if value in producer}
        found[node.name] = above.union(*(found[name] for name in above))
    return found


def _between(site: str, takers: tuple[str, ...], ancestors: dict[str, set[str]]) -> set[str]:
    """The nodes whose results change when `site` is folded into `takers`, and these."""
    region = {site, *takers}
    for taker in takers:
        first, last = (taker, site) if taker in ancestors[site] else (site, taker)
        region |= {name for name in ancestors[last] if first in ancestors[name]}
    return region


def _and_above(path: str) -> list[str]:
    """The path of a module and of all modules that it lies in."""
    parts = path.split(".") if path else []
    return [".".join(parts[:n]) for n in range(len(parts) + 1)]


def has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def is_same(held: Any, tensor: torch.Tensor) -> bool:
    """Whether an attribute is this very tensor, rather than an equal one."""
    return isinstance(held, torch.Tensor) and (
        held is tensor or (held.is_set_to(tensor) and held.numel() > 0)
    )


def _holds(module: nn.Module | None, constant: Stored) -> bool:
    held = () if module is None else module._parameters.values()
    return any(is_same(tensor, constant.tensor) for tensor in held)


def _takes_bias(module: nn.Module) -> bool:
    """Whether the module is a torch layer whose forward would use a bias, once it has one."""
    if not isinstance(module, nn.modules.conv._ConvNd | nn.Linear) or module.bias is not None:
        return False
    for kind in type(module).__mro__:
        forward = kind.__dict__.get("forward")
        if forward is None:
            continue
        names = forward.__code__.co_names
        if kind.__module__.startswith("torch.nn.modules") or "bias" in names:
            return True
        if "super" not in names:
            return False
    return False


def _is_unary(module: nn.Module) -> bool:
    """Whether forward can be called with one argument, like that of nn.Identity."""
    parameters = inspect.signature(module.forward).parameters.values()
    required = [p for p in parameters if p.default is p.empty and p.kind is not p.VAR_KEYWORD]
    return len(required) == 1


def _not_plain(node: Node, why: str) -> Refusal:
    return Refusal(Reason.NOT_A_PLAIN_MODULE, f"{node.name}: {why}", node.name)


def _is_equal(node: Node, role: str, op: Op | None) -> bool:
    """Whether another call has the same new numbers for `role`."""
    own, other = getattr(node.op, role), getattr(op, role, None)
    if own is None or other is None:
        return own is other
    return own is other or (own.dtype == other.dtype and np.array_equal(own.load(), other.load()))


def _shared(node: Node) -> Refusal:
    why = f"{node.name}: its module serves several calls"
    return Refusal(Reason.SHARED_MODULE, why, node.name)
