"""Outputs that hang on a choice: indices, masks, rounded numbers, and what follows from them.

Where two numbers tie within rounding, the choice between them is open, and so is what follows from
it; everything else has to be the same. What is open is found out by drawing: the numbers that a
model chooses by are moved at random by up to `factor` of their floors, in float64, and what comes
after them is computed again, from numbers that are not moved. An element may be what one of these
draws gives; where they give many different integers, as for the order of many equal numbers, any
between them.

A model that does not show the numbers it chooses by is moved at its inputs instead, by as many
roundings.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnfold.formats.capabilities import Decisions, Shown
from bnfold.protocol import Protocol
from bnfold.runtimes import Runner, Sample
from bnfold.verification.gate import (
    NO_MEASURE,
    Row,
    distance,
    is_discrete,
    judge,
    least,
    scale_of,
    unfilled,
)
from bnfold.verification.measuring import Measured
from bnfold.verification.scatter import moved

Array = NDArray[Any]
Drawn = Mapping[int, Array]
"""Position of an output -> what a draw gives for it."""

DRAWS = 24
"""A choice between two numbers that lie much closer than the draws move them is missed by all draws
once in 2**24 times."""

MANY = 8
"""So many different integers among the draws of an element: any between them may come."""

FURTHER = (8.0, 64.0, 512.0, 4096.0)
"""How many times k floors the nearest tie is looked for, to tell how far it is."""


@dataclass(frozen=True, eq=False, slots=True)
class Undecided:
    """A failure to be looked into: the output numbered `i` of the case `one`."""

    row: Row
    one: Measured
    source: str
    i: int
    output: Array


@dataclass(frozen=True, eq=False, slots=True)
class Ties:
    """Judges what may have fallen the other way; `runner` is moved where nothing is shown."""

    decisions: Decisions
    runner: Runner
    _shown: dict[str, Shown | None] = field(default_factory=dict)
    _drawn: dict[tuple[int, str, float], list[Drawn]] = field(default_factory=dict)

    def matter(self, i: int, truth: Array) -> bool:
        """Whether the output numbered `i` may hang on a choice."""
        return is_discrete(truth) or i in self.decisions.positions

    def settled(self, found: Undecided, floor: Any, protocol: Protocol) -> Row:
        """The judgement of an output where elements at a tie may be what either choice gives."""
        nearest = closest(found.output, list(found.one.values(found.i)))
        for factor in (0.0, 1.0, protocol.k):
            if factor:
                nearest = self._closest(found, factor, nearest)
            if nearest is None:
                continue
            difference = found.row.difference or NO_MEASURE
            error = distance(found.output, nearest)
            row = judge(found.row.place, floor, error, difference, protocol)
            if row.passed:
                ratio = max(row.ratio, factor, 1.0)
                return replace(row, ratio=ratio, used=ratio / protocol.k, ties=_other(found))
        if not is_discrete(found.output) and nearest is not None:
            return replace(row, why=f"{row.why}; no tie explains it")
        return replace(
            found.row, ratio=np.inf, used=np.inf, why=self._why(found, nearest, protocol)
        )

    def _closest(self, found: Undecided, factor: float, known: Array | None) -> Array | None:
        drawn = self._draws(found.one, found.source, factor)
        others = [each[found.i] for each in drawn if found.i in each]
        return closest(
            found.output, [*([] if known is None else [known]), *found.one.values(found.i), *others]
        )

    def _why(self, found: Undecided, nearest: Array | None, protocol: Protocol) -> str:
        """What differs, where, and how far it is from a tie."""
        truth = list(found.one.truth.values())[found.i]
        if nearest is None:
            return (
                f"its shape is {list(found.output.shape)}, the original's is {list(truth.shape)}, "
                f"and no tie within {protocol.k:g} floors explains it"
            )
        wrong = found.output != nearest
        first = tuple(int(axis[0]) for axis in np.nonzero(wrong))
        where = (
            f"{list(first)} is {found.output[first]}, not {nearest[first]}"
            if first
            else (f"it is {found.output}, not {nearest}")
        )
        how_far = self._how_far(found, first, protocol.k)
        return f"{int(wrong.sum())} of {wrong.size} elements are wrong: {where}; {how_far}"

    def _how_far(self, found: Undecided, first: tuple[int, ...], k: float) -> str:
        if self._of(found.source) is None:
            return f"no input within {k:g} roundings gives that"
        for times in FURTHER:
            drawn = self._draws(found.one, found.source, k * times)
            others = [each[found.i] for each in drawn if found.i in each]
            if any(
                other.shape == found.output.shape and other[first] == found.output[first]
                for other in others
            ):
                return f"the nearest tie that explains it is about {k * times:g} floors away"
        return f"there is no tie within {k * FURTHER[-1]:g} floors"

    def _of(self, source: str) -> Shown | None:
        if source not in self._shown:
            self._shown[source] = self.decisions.shown(source)
        return self._shown[source]

    def _draws(self, one: Measured, source: str, factor: float) -> list[Drawn]:
        key = id(one), source, factor
        if key not in self._drawn:
            shown = self._of(source)
            if shown is None:
                made = _by_inputs(self.runner, one.case.sample, factor)
            else:
                made = _by_choices(shown, one.case.sample, factor)
            self._drawn[key] = list(made)
        return self._drawn[key]


def _other(found: Undecided) -> int:
    """How many elements are not those of the truth, of integers; of others this is not counted."""
    truth = list(found.one.truth.values())[found.i]
    if truth.shape != found.output.shape:
        return abs(truth.size - found.output.size) or 1
    return int((truth != found.output).sum()) if is_discrete(truth) else 0


def _by_choices(shown: Shown, sample: Sample, factor: float) -> Iterator[Drawn]:
    """What it chooses by moved by up to `factor` of the floors."""
    exact, own = shown.truth(sample), shown.runner(sample)
    rooms = {name: factor * _room(value, exact[name]) for name, value in own.items()}
    for seed in range(DRAWS):
        made = shown.tail({**sample, **exact}, rooms, seed)
        if made:
            yield dict(zip(shown.positions, made.values(), strict=True))


def _room(own: Array, exact: Array) -> Array:
    """The floor of every number: none where it comes out exactly, such as 0 behind a ReLU.

    That of fill values is not that of what lies between them.
    """
    if exact.dtype.kind != "f" or own.shape != exact.shape:
        return np.zeros(exact.shape)
    rooms = np.zeros(exact.shape)
    plain = unfilled(exact)
    for part in [np.ones(exact.shape, bool)] if plain is None else [plain, ~plain]:
        if part.any():
            lowest = least(scale_of(exact[part]), own.dtype.name)
            rooms[part] = distance(own[part], exact[part]).or_more(lowest).max
    return np.where(np.isfinite(rooms) & (own != exact), rooms, 0.0)


def _by_inputs(runner: Runner, sample: Sample, factor: float) -> Iterator[Drawn]:
    """The inputs moved by up to `factor` roundings."""
    for seed in range(DRAWS):
        made = runner(moved(sample, seed, lambda epsilon: factor * epsilon))
        yield dict(enumerate(made.values()))


def closest(output: Array, others: Sequence[Array]) -> Array | None:
    """Of every element what one of `others` gives that is nearest to the output's.

    `output` itself where it is a selection that they explain; None where no shape fits.
    """
    fitting = [other for other in others if other.shape == output.shape]
    if is_discrete(output) and len(fitting) < len(others) and _selected(output, others):
        return output
    if not fitting:
        return None
    nearest = np.array(fitting[0])
    for other in fitting[1:]:
        if is_discrete(output):
            nearer = (other == output) & (nearest != output)
        else:
            nearer = np.abs(other - output) < np.abs(nearest - output)
        nearest[nearer] = other[nearer]
    if output.dtype.kind in "iu" and (open_ := _open(fitting, output)).any():
        nearest[open_] = output[open_]
    return nearest


def _open(others: Sequence[Array], output: Array) -> NDArray[np.bool_]:
    """Where the others give many integers, and the output one that lies between them."""
    stacked = np.sort(np.stack([np.asarray(other) for other in others]), axis=0)
    different = (stacked[1:] != stacked[:-1]).sum(0) + 1
    found: NDArray[np.bool_] = (
        (different >= MANY) & (output >= stacked[0]) & (output <= stacked[-1])
    )
    return found


def _selected(output: Array, others: Iterable[Array]) -> bool:
    """Whether what was selected, each along the axis that is of no fixed size, is what others have:
    all that every one of them selects, in the order of one, and nothing that none does."""
    same = [other for other in others if other.ndim == output.ndim]
    sizes = {other.shape for other in same} | {output.shape}
    axes = [a for a in range(output.ndim) if len({shape[a] for shape in sizes}) > 1]
    if len(axes) != 1 or not same:
        return False
    own, rows = _entries(output, axes[0]), [_entries(other, axes[0]) for other in same]
    certain, possible = set(rows[0]).intersection(*rows[1:]), set(rows[0]).union(*rows[1:])
    if not certain <= set(own) <= possible or len(set(own)) < len(own):
        return False
    ordered = [entry for entry in own if entry in certain]
    return any(ordered == [entry for entry in other if entry in certain] for other in rows)


def _entries(array: Array, axis: int) -> list[tuple[Any, ...]]:
    moved = np.moveaxis(array, axis, 0)
    return list(map(tuple, moved.reshape(len(moved), -1).tolist()))
