"""Numbers in the units that people read."""

from __future__ import annotations

from pathlib import Path


def seconds(value: float) -> str:
    """Three digits, with the unit that suits."""
    for factor, unit in ((1, "s"), (1e3, "ms"), (1e6, "us")):
        if value * factor >= 1 or unit == "us":
            return f"{_three(value * factor)} {unit}"
    raise AssertionError


def size(value: float) -> str:
    """Three digits, with the unit that suits: kB is 1000 bytes."""
    for factor, unit in ((1, "B"), (1e3, "kB"), (1e6, "MB")):
        if value < 1000 * factor:
            return f"{_three(value / factor)} {unit}"
    return f"{_three(value / 1e9)} GB"


def bytes_of(path: str | None) -> int | None:
    """The size of a file; None where there is none, as for a folder or an object in memory."""
    return Path(path).stat().st_size if path and Path(path).is_file() else None


def short(count: int) -> str:
    """A count in three digits: 812, 4.10 G."""
    for factor, unit in ((1, ""), (1e3, " k"), (1e6, " M")):
        if count < 1000 * factor:
            return f"{count}" if not unit else f"{_three(count / factor)}{unit}"
    return f"{_three(count / 1e9)} G"


def _three(value: float) -> str:
    """Three digits that count: 0.123, 1.23, 12.3, 123, 1234."""
    for limit, digits in ((0.9995, 3), (9.995, 2), (99.95, 1)):
        if value < limit:
            return f"{value:.{digits}f}"
    return f"{value:.0f}"
