"""How a candidate is judged: by which rule, on which inputs, and where it runs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from bnfold.errors import UsageError

Policy = Literal["floor", "assert-close", "fixed"]
Level = Literal["unoptimised", "optimised"]

DEFAULT_K = 8.0
MOST_SIZES, MOST_SEEDS = 64, 1000
LEVELS: tuple[Level, ...] = ("unoptimised", "optimised")


@dataclass(frozen=True, slots=True)
class Protocol:
    """The protocol of a verification; every field has a default that suits a release.

    policy     "floor": an error may be `k` noise floors; "assert-close": the defaults of
               torch.testing.assert_close; "fixed": the given `rtol` and `atol`
    rtol atol  output name -> tolerance, "" for every other output; for the policy "fixed"
    seeds      one set of probes is made of each
    shapes     free size by name -> the values that it takes, all combinations of them
    recorded   files of inputs to compare on besides the probes, as
               `bnfold.verification.input_files` reads them
    providers  execution providers by short name ("cpu", "cuda", ...); None: all that load
    options    provider -> options of ONNX Runtime for it
    levels     optimisation levels of ONNX Runtime: by itself it would hide its own fusions
    isolate    run ONNX Runtime, and candidates given as files, in processes of their own, so that
               a crash is a failure
    timeout    seconds for one run (or for opening) in such a process; None: any time

    Raises UsageError for what contradicts itself.
    """

    policy: Policy = "floor"
    k: float = DEFAULT_K
    rtol: Mapping[str, float] = field(default_factory=dict)
    atol: Mapping[str, float] = field(default_factory=dict)
    seeds: tuple[int, ...] = (0,)
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    recorded: tuple[Path, ...] = ()
    providers: tuple[str, ...] | None = None
    options: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    levels: tuple[Level, ...] = LEVELS
    isolate: bool = False
    timeout: float | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.k) and self.k > 0):
            raise UsageError(f"k = {self.k} is no factor", "give a finite number above 0")
        given = {**self.rtol, **self.atol}
        for value in (*self.rtol.values(), *self.atol.values()):
            if not (math.isfinite(value) and value >= 0):
                raise UsageError(f"{value} is no tolerance", "give a finite number, 0 or more")
        if self.policy == "fixed" and not given:
            raise UsageError("the policy fixed has no tolerance", "give rtol, atol or both")
        if self.policy != "fixed" and given:
            raise UsageError(
                f"rtol and atol are for the policy fixed, not for {self.policy}",
                "leave them out, or choose the policy fixed",
            )
        if wrong := [size for sizes in self.shapes.values() for size in sizes if size < 1]:
            raise UsageError(f"{wrong[0]} is no size", "every size must be at least 1")
        if math.prod(len(sizes) for sizes in self.shapes.values()) > MOST_SIZES:
            raise UsageError(
                f"these sizes make more than {MOST_SIZES} combinations", "give fewer of them"
            )
        if wrong := [seed for seed in self.seeds if not 0 <= seed < 1 << 63]:
            raise UsageError(f"{wrong[0]} is no seed", "give a number from 0 to 2^63 - 1")
        if len(self.seeds) > MOST_SEEDS:
            raise UsageError(f"{len(self.seeds)} seeds", f"give at most {MOST_SEEDS}")
        self._check_places()
        for what in ("seeds", "levels"):
            if not getattr(self, what):
                raise UsageError(f"a protocol without {what} compares nothing", f"give some {what}")

    def _check_places(self) -> None:
        if self.timeout is not None and not (self.isolate and self.timeout > 0):
            raise UsageError(
                f"a timeout of {self.timeout} s cannot be kept",
                "give seconds above 0, and isolate=True",
            )
        if self.providers is not None and not self.providers:
            raise UsageError("no provider is named", "name some, such as cpu, or leave them out")
        named = None if self.providers is None else {place.split()[0] for place in self.providers}
        if named is not None and (lost := [name for name in self.options if name not in named]):
            raise UsageError(
                f"there are options for {lost[0]}, on which nothing runs",
                f"add {lost[0]} to the providers",
            )

    @property
    def rule(self) -> str:
        """The policy with what it takes."""
        if self.policy == "floor":
            return f"policy floor, k = {self.k:g}"
        tolerances = [
            f"{what} {f'{output}:' if output else ''}{value:g}"
            for what, given in (("rtol", self.rtol), ("atol", self.atol))
            for output, value in given.items()
        ]
        return ", ".join([f"policy {self.policy}", *tolerances])

    @property
    def places(self) -> tuple[str, ...]:
        """The providers to run on; the CPU unless any are named."""
        return ("cpu",) if self.providers is None else self.providers


DEFAULT = Protocol()
