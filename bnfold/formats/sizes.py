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
            f"its values take {in_words(self._made)}, of which {name} {in_words(size)}: "
            f"more than {EXPANSION} times what its inputs and weights do ({in_words(self.taken)})",
            "no network needs that: the file is damaged, or made to do harm",
        )


def in_words(size: int) -> str:
    """So many bytes."""
    for least, unit in ((1e8, "GB"), (1e5, "MB")):
        if size > least:
            return f"{size / (10 * least):,.1f} {unit}"
    return f"{size / 1e3:,.1f} kB"
