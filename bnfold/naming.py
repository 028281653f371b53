"""Names that are nobody else's."""

from __future__ import annotations

from collections.abc import Container, MutableSet
from itertools import count
from typing import Any


def unique(name: str, taken: Container[Any], mark: str = "#") -> str:
    """The name, or the first of "name#2", "name#3", ... that is not taken.

    Reports show names with "#"; what has to be an identifier is marked with "_".
    """
    if name not in taken:
        return name
    return next(found for n in count(2) if (found := f"{name}{mark}{n}") not in taken)


def claim(name: str, taken: MutableSet[Any], mark: str = "#") -> str:
    """A unique name, which is taken from then on."""
    found = unique(name, taken, mark)
    taken.add(found)
    return found
