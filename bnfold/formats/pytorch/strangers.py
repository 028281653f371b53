"""Objects of classes that nobody allowed, beside the weights of a checkpoint: neither run nor lost.

In place of each class that a file names, there is one that takes down what the file does with it,
and does nothing. Written again, it gives the same instructions.
"""

from __future__ import annotations

import copyreg
from collections.abc import Iterable
from typing import Any


class StrangerType(type):
    """The class of the classes; `address` is what the file calls one."""

    address: str


class Stranger(metaclass=StrangerType):
    """An object as a file makes it: of a class, called or not, with items and a state."""

    def __new__(cls, *arguments: Any) -> Stranger:
        made = super().__new__(cls)
        made.__dict__.update(arguments=arguments, called=False, items=[], state=None)
        return made

    def __init__(self, *arguments: Any) -> None:
        self.__dict__["called"] = True

    def __setitem__(self, key: Any, entry: Any) -> None:
        self.__dict__["items"].append((key, entry))

    def __setstate__(self, state: Any) -> None:
        self.__dict__["state"] = state

    def __reduce_ex__(self, protocol: Any) -> Any:
        known, kind = vars(self), type(self)
        new: Any = copyreg.__newobj__  # type: ignore[attr-defined]
        made = (kind, known["arguments"]) if known["called"] else (new, (kind, *known["arguments"]))
        return *made, known["state"], None, iter(known["items"])


def strangers(names: Iterable[str]) -> dict[str, Any]:
    """A class for each name."""
    return {
        name: StrangerType(name.rpartition(".")[2], (Stranger,), {"address": name})
        for name in names
    }
