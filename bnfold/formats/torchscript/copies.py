"""A ScriptModule as the bytes of its archive, and the copies that are made by way of these."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import torch

from bnfold.errors import ModelError, first_line
from bnfold.formats.pytorch.precision import require_room, torch_type
from bnfold.formats.torchscript.nodes import argument_names, constant_tensor, walk
from bnfold.process_state import quiet

_JIT: Any = torch.jit  # untyped in part


def archived(module: Any, extra_files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    try:
        with quiet():
            _JIT.save(module, buffer, _extra_files=dict(extra_files))
    except Exception as error:
        raise ModelError(
            f"the TorchScript module is damaged, it cannot be saved: {first_line(error)}",
            "write it again with torch.jit.save and this version of torch",
        ) from error
    return buffer.getvalue()


def copied(module: Any, device: str = "cpu") -> Any:
    """A module on `device` that shares nothing with `module`."""
    return loaded(archived(module, {}), device)


def loaded(archive: bytes, device: str = "cpu") -> Any:
    try:
        with quiet():
            return _JIT.load(io.BytesIO(archive), device)
    except RuntimeError as error:
        raise ModelError(
            f"the TorchScript module cannot be read again once it is saved: {first_line(error)}",
            "give its parts and attributes names that are identifiers, and export it again",
        ) from error


def widened(module: Any) -> Any:
    """A copy with parameters, buffers and the tensors in its code in float64."""
    return _in_type(module, torch.float64)


def in_precision(module: Any, dtype: str) -> Any:
    """A copy with every float in `dtype`, the types that its code names included."""
    target = torch_type(dtype)
    constants = (constant_tensor(node) for node in walk(module.inlined_graph))
    held = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    held |= {f"a constant of shape {[*t.shape]}": t for t in constants if t is not None}
    require_room(held, dtype)
    made = _in_type(module, target)
    graph = made.graph
    for node in list(walk(graph)):
        for name, value in zip(argument_names(node), list(node.inputs()), strict=False):
            if name == "dtype" and value.toIValue() in _NUMBERS_OF_FLOATS:
                graph.setInsertPoint(node)
                value = graph.insertConstant(_NUMBERS_OF[target])
                node.replaceInput(argument_names(node).index(name), value)
    return copied(made)


_NUMBERS_OF = {torch.float16: 5, torch.float32: 6, torch.float64: 7, torch.bfloat16: 15}
"""What TorchScript calls the types of floats."""

_NUMBERS_OF_FLOATS = frozenset(_NUMBERS_OF.values())


def _in_type(module: Any, dtype: torch.dtype) -> Any:
    made = copied(module).to(dtype)
    graph = made.graph
    torch._C._jit_pass_inline(graph)
    for node in list(walk(graph)):
        tensor = constant_tensor(node)
        if tensor is not None and tensor.is_floating_point():
            graph.setInsertPoint(node)
            node.output().replaceAllUsesWith(graph.insertConstant(tensor.to(dtype)))
    return made
