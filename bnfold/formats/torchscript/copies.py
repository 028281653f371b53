"""A ScriptModule as the bytes of its archive, and the copies that are made by way of these."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import torch

from bnfold.errors import ModelError, first_line
from bnfold.formats.torchscript.nodes import constant_tensor, walk
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
    wide = copied(module).double()
    graph = wide.graph
    torch._C._jit_pass_inline(graph)
    for node in list(walk(graph)):
        tensor = constant_tensor(node)
        if tensor is not None and tensor.is_floating_point():
            graph.setInsertPoint(node)
            node.output().replaceAllUsesWith(graph.insertConstant(tensor.double()))
    return wide
