"""Names in TorchScript, which is stored as source: torch.jit writes names into it as they are.

A quote, a keyword or a letter beyond ASCII in the name of a module or an attribute makes a file
that cannot be read, or that says something else. Freezing in memory, before anything is written,
leaves `forward` alone, with constants in the place of all that had a name.
"""

from __future__ import annotations

import copy
import keyword
import re
from collections.abc import Iterator
from typing import Any

import torch

from bnfold.errors import ModelError, first_line
from bnfold.process_state import quiet

_PLAIN = re.compile(r"[\w-](?:[\w -]*[\w-])?", re.ASCII)

_RESERVED = {*keyword.kwlist, "Ellipsis"}
"""What TorchScript reads as something else than a name."""


def is_written_plainly(module: torch.jit.ScriptModule) -> bool:
    """Whether torch.jit reads the names in `module` again as it writes them."""
    return all(_PLAIN.fullmatch(name) and name not in _RESERVED for name in _names(module))


def without_names(module: torch.jit.ScriptModule) -> torch.jit.ScriptModule:
    """What `forward` of a copy computes in eval mode, as a module without parts or attributes."""
    jit: Any = torch.jit
    try:
        with quiet():
            made: torch.jit.ScriptModule = jit.freeze(
                copy.deepcopy(module).eval(), optimize_numerics=False
            )
    except Exception as error:
        raise ModelError(
            f"the TorchScript module has names that cannot be written, and it cannot be frozen: "
            f"{first_line(error)}",
            "give its parts names that are identifiers, and export it again",
        ) from error
    return made


def _names(module: torch.jit.ScriptModule) -> Iterator[str]:
    """What the parts and tensors of `module` are called, and attributes where torch knows them."""
    native: Any = torch._C
    for part in module.modules():
        inner: Any = part
        for held in (native.ModuleDict, native.ParameterDict, native.BufferDict):
            yield from (name for name, _ in held(inner._c).items())
        if kind := vars(part).get("_concrete_type"):
            yield from kind.get_attributes()
