"""How a candidate is judged: by which rule, on which inputs, and where it runs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from bnfold.errors import UsageError

Policy = Literal["floor", "assert-close", "fixed"]
Level = Literal["unoptimised", "optimised"]

DEFAULT_K = 8.0
LEVELS: tuple[Level, ...] = ("unoptimised", "optimised")


@dataclass(frozen=True, slots=True)
class Protocol:
    """The protocol of a verification; every field has a default that suits a release.

    policy     "floor": an error may be `k` noise floors; "assert-close": the defaults of
               torch.testing.assert_close; "fixed": the given `rtol` and `atol`
    rtol atol  output name -> tolerance, "" for every other output; for the policy "fixed"
    seeds      one set of probes is made of each
    shapes     free size by name -> the values that it takes, all combinations of them
    providers  execution providers by short name ("cpu", "cuda", ...); None: all that load
    options    provider -> options of ONNX Runtime for it
    levels     optimisation levels of ONNX Runtime: by itself it would hide its own fusions

    Raises UsageError for what contradicts itself.
    """

    policy: Policy = "floor"
    k: float = DEFAULT_K
    rtol: Mapping[str, float] = field(default_factory=dict)
    atol: Mapping[str, float] = field(default_factory=dict)
    seeds: tuple[int, ...] = (0,)
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    providers: tuple[str, ...] | None = None
    options: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    levels: tuple[Level, ...] = LEVELS

    def __post_init__(self) -> None:
        if not (math.isfinite(self.k) and self.k > 0):
            raise UsageError(f"k = {self.k} is no factor", "give a finite number above 0")
        for what in ("seeds", "levels"):
            if not getattr(self, what):
                raise UsageError(f"a protocol without {what} compares nothing", f"give some {what}")

    @property
    def places(self) -> tuple[str, ...]:
        """The providers to run on; the CPU unless any are named."""
        return ("cpu",) if self.providers is None else self.providers


DEFAULT = Protocol()
