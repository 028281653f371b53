"""Run a model, whatever it is made of, through one interface.

A Sample maps input names to arrays, in the order of the model's inputs; what a Runner returns maps
output names to arrays, in the order of the outputs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import NDArray

from bnfold.algebra.graph import Size

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # it reports to its makers, and leaves a file

Sample = Mapping[str, NDArray[Any]]
Outputs = dict[str, NDArray[Any]]


class Overwriting(Outputs):
    """The outputs of a run that changed its caller's inputs, and the names of these."""

    def __init__(self, outputs: Outputs, inputs: tuple[str, ...]) -> None:
        super().__init__(outputs)
        self.inputs = inputs

    def __reduce__(self) -> tuple[Any, ...]:
        return Overwriting, (dict(self), self.inputs)


def overwritten(outputs: Outputs) -> tuple[str, ...]:
    """The inputs that the run which gave `outputs` changed."""
    return outputs.inputs if isinstance(outputs, Overwriting) else ()


@dataclass(frozen=True, slots=True)
class Integers:
    """What a model does with an input of integers.

    `limit`: it picks rows of a table with that many; `marks`: it is compared with these.
    """

    limit: int | None = None
    marks: tuple[int, ...] = ()


NOTHING_KNOWN = Integers()


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """An input or output: `shape` has a name or None where a size is free; None: unknown rank.

    `integers` is what is known of the integers that it takes.
    `value` is what an input without axes always has, such as a sampling rate; None: it may vary.
    """

    name: str
    dtype: str
    shape: tuple[Size, ...] | None
    integers: Integers = NOTHING_KNOWN
    value: int | float | bool | None = None

    def __str__(self) -> str:
        sizes = "?" if self.shape is None else "x".join(str(s or "?") for s in self.shape)
        value = "" if self.value is None else f"={self.value}"
        return f"{self.name}={sizes}:{self.dtype}{value}"


class NotComputableError(ValueError):
    """A model cannot be computed in float64 here; the message names the operator."""


class Runner(Protocol):
    """A model ready to run. `name` says where: "torch", "cpu", "cpu unoptimised", "float64"."""

    @property
    def name(self) -> str: ...

    @property
    def input_names(self) -> tuple[str, ...]: ...

    def __call__(self, sample: Sample) -> Outputs: ...


@dataclass(eq=False)
class RunnerOf:
    """A runner made of another, which it is called like; a subclass says what else it does."""

    runner: Runner

    @property
    def name(self) -> str:
        return self.runner.name

    @property
    def input_names(self) -> tuple[str, ...]:
        return self.runner.input_names

    def __call__(self, sample: Sample) -> Outputs:
        return self.runner(sample)


class TimedRunner(Runner, Protocol):
    """A runner whose runs can be timed: `bound` does once what does not belong to a run."""

    def bound(self, sample: Sample) -> Callable[[], object]: ...


def notes_of(runner: Runner) -> tuple[str, ...]:
    """What a runner has to say of where it really runs; most have nothing."""
    notes: tuple[str, ...] = getattr(runner, "notes", ())
    return notes
