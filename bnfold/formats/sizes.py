"""Whether the memory that a model asks for is explained by what it is made of.

A file of a kilobyte can ask for a tensor of gigabytes. What its values take, all together and as
far as their sizes are told, is at most MOST_BYTES, or EXPANSION times what inputs and weights do.
"""

from __future__ import annotations

from bnfold.errors import ModelError

MOST_BYTES = 1 << 29
EXPANSION = 1000
"""A convolution of 3 channels into 64 makes 21 times what it reads, and a network has dozens."""


class Sizes:
    """Adds up bytes: `taken` by inputs and weights, and those of the values that are made."""

    def __init__(self, taken: int = 0) -> None:
        self.taken = taken
        self._made = 0
        self._largest = (0, "")

    def make(self, size: int, name: str) -> None:
        """Count a value; `name` says which it is."""
        self._made += size
        self._largest = max(self._largest, (size, name))

    def require_explained(self) -> None:
        """Raise ModelError, which names the largest value, if the values take too much."""
        if self._made <= max(MOST_BYTES, EXPANSION * self.taken):
            return
        size, name = self._largest
        raise ModelError(
            f"its values take {_text(self._made)}, of which {name} {_text(size)}: "
            f"more than {EXPANSION} times what its inputs and weights do ({_text(self.taken)})",
            "no network needs that: the file is damaged, or made to do harm",
        )


def _text(size: int) -> str:
    return f"{size / 1e9:,.1f} GB" if size > 1e8 else f"{size / 1e6:,.1f} MB"
