"""The verb `load`: a file as the module that is in it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from bnfold.errors import UsageError
from bnfold.formats.model import MODULES
from bnfold.formats.opening import Opening, open_model
from bnfold.process_state import in_turn


@in_turn
def load(
    path: str | Path,
    factory: str | Callable[..., Any],
    args: Any = None,
    *,
    weights: str | None = None,
) -> Any:
    """The network that `factory` builds with the weights of a file, as an nn.Module in eval mode.

    Of a folded file the whole fold: the BatchNorms that were folded are gone, an nn.Identity in
    their place. `factory` is a class or function, or its address "pkg.mod:name"; `args` are its
    arguments, as a list or a dict; `weights` is the key of those to take from a checkpoint that
    holds several. Raises BnfoldError.
    """
    opening = Opening(factory=cast(str, factory), factory_args=args, weights=weights)
    model = open_model(path, opening)
    if model.format not in MODULES:
        raise UsageError(f"{path} is {model.format}, no weights", "open it with its own runtime")
    return model.native
