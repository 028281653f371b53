"""The verb `bench`: how fast and how large models are, measured side by side.

Every model runs in a process of its own (`run/timed.py`) and has its turn in every round
(`run/turns.py`).
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

from bnfold.algebra.plan import kinds
from bnfold.environment import Machine, machine
from bnfold.errors import BnfoldError, UsageError
from bnfold.formats.model import Model
from bnfold.formats.opening import Opening, open_model
from bnfold.inputs import Inputs
from bnfold.isolation.timed import Job, TimedProcess
from bnfold.process_state import in_turn
from bnfold.protocol import Protocol
from bnfold.runtimes import Sample, TensorSpec
from bnfold.runtimes.samples import matched
from bnfold.verbs.common_inputs import at_batch, common_inputs, has_free_batch
from bnfold.verbs.folding import FoldResult, fold
from bnfold.verbs.places import loadable
from bnfold.verbs.results import SCHEMA_VERSION, Progress
from bnfold.verbs.rounds import Spread, speedup, take_turns


@dataclass(frozen=True, slots=True)
class Timing:
    """How to measure: `threads` for each model, rounds that count, rounds before them that do not.

    `batches` are the sizes that a free batch takes; None: 1, or the size that the model has.
    """

    rounds: int = 30
    warmup: int = 3
    threads: int = field(default_factory=lambda: cores())
    batches: tuple[int, ...] | None = None
    providers: tuple[str, ...] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        batches = [("batch", size) for size in self.batches or ()]
        for what, count in (("rounds", self.rounds), ("threads", self.threads), *batches):
            if count < 1:
                raise UsageError(f"{what}: {count} is less than 1", "give a number of 1 or more")
        if self.warmup < 0:
            raise UsageError(f"warmup: {self.warmup} is less than 0", "give a number of 0 or more")


@dataclass(frozen=True, slots=True)
class Subject:
    """A model that is measured: bytes of its files, and ops by kind (None if it is not read)."""

    name: str
    format: str
    stored: int
    ops: Mapping[str, int] | None

    def to_json(self) -> dict[str, Any]:
        ops = None if self.ops is None else {"total": sum(self.ops.values()), "kinds": self.ops}
        return {
            "name": self.name,
            "format": self.format,
            "bytes": self.stored,
            "ops": ops,
        }


@dataclass(frozen=True, slots=True)
class Measurement:
    """A model on one provider at one batch size.

    `seconds` has one run's time in every round. `load_seconds` is how long a session takes to be
    ready, `peak_memory` the most bytes its process ever held, the runtime's own included.
    """

    model: str
    provider: str
    batch: int | None
    seconds: tuple[float, ...]
    load_seconds: float
    peak_memory: int | None

    @property
    def latency(self) -> Spread:
        return Spread.of(self.seconds)

    def to_json(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "provider": self.provider,
            "batch": self.batch,
            "latency_seconds": asdict(self.latency),
            "load_seconds": self.load_seconds,
            "peak_memory_bytes": self.peak_memory,
            "round_seconds": list(self.seconds),
        }


@dataclass(frozen=True, slots=True)
class Comparison:
    """How many times as fast as `baseline` a model is, round by round: above 1 is faster."""

    model: str
    baseline: str
    provider: str
    batch: int | None
    speedup: Spread

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, eq=False, slots=True)
class BenchResult:
    subjects: tuple[Subject, ...]
    measurements: tuple[Measurement, ...]
    timing: Timing
    machine: Machine
    inputs: tuple[TensorSpec, ...]
    folded: FoldResult | None = None

    @property
    def comparisons(self) -> list[Comparison]:
        """Every two models in the same place, the earlier one as baseline."""
        return [
            Comparison(b.model, a.model, a.provider, a.batch, speedup(a.seconds, b.seconds))
            for a, b in combinations(self.measurements, 2)
            if (a.provider, a.batch) == (b.provider, b.batch)
        ]

    def to_json(self) -> dict[str, Any]:
        return {
            "schema_version": SCHEMA_VERSION,
            "models": [subject.to_json() for subject in self.subjects],
            "measurements": [each.to_json() for each in self.measurements],
            "comparisons": [each.to_json() for each in self.comparisons],
            "timing": {
                "rounds": self.timing.rounds,
                "warmup": self.timing.warmup,
                "threads": self.timing.threads,
                "seed": self.timing.seed,
            },
            "machine": asdict(self.machine),
            "inputs": [str(spec) for spec in self.inputs],
            "fold": None if self.folded is None else self.folded.to_json(),
        }

    def __str__(self) -> str:
        """A line for each measurement; `bnfold.render` has the report."""
        return "\n".join(
            f"{each.model} on {each.provider}: {each.latency.median:.4g} s a run"
            for each in self.measurements
        )


@in_turn
def bench(
    models: Sequence[str | Path],
    inputs: Any = None,
    *,
    folded: bool = False,
    timing: Timing | None = None,
    opening: Opening | None = None,
    progress: Progress = lambda step: None,
) -> BenchResult:
    """Measure model files side by side; they may differ in format, not in their inputs.

    `inputs` is what `bnfold.inputs` describes, by the names of the first model. With `folded` there
    is one model, which is folded, verified, and measured before and after; the result is not kept.
    Raises BnfoldError: VerificationError if the folded model is not equivalent.
    """
    paths = [Path(model) for model in models]
    run = _Bench(timing or Timing(), opening or Opening(), progress)
    if not paths:
        raise UsageError("there is no model to measure")
    if not folded:
        return run.measure(_named(paths), inputs)
    if len(paths) > 1:
        raise UsageError("only one model can be folded and measured", "fold the others first")
    return run.before_and_after(paths[0], inputs)


@dataclass(frozen=True, slots=True)
class _Bench:
    timing: Timing
    opening: Opening
    progress: Progress

    def before_and_after(self, path: Path, given: Any) -> BenchResult:
        folded = fold(
            path,
            given,
            protocol=Protocol(providers=self.timing.providers),
            opening=self.opening,
            progress=self.progress,
        )
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            after = Path(folder) / f"folded{path.suffix}"
            folded.save(after)
            found = self.measure({path.name: path, "folded": after}, given)
        folded.result = None
        return replace(found, folded=folded)

    def measure(self, files: Mapping[str, Path], given: Any) -> BenchResult:
        self.progress("open")
        models = {name: open_model(path, self.opening) for name, path in files.items()}
        for model in models.values():
            model.require_small()
        found = common_inputs(models, given)
        samples = {batch: at_batch(found, batch) for batch in self._batches(found)}
        subjects = tuple(
            Subject(
                name,
                str(model.format),
                model.stored or files[name].stat().st_size,
                _ops(model, samples),
            )
            for name, model in models.items()
        )
        measured: list[Measurement] = []
        for provider in self.timing.providers or tuple(
            loadable([model.format for model in models.values()])
        ):
            jobs = {
                subject.name: Job(
                    files[subject.name],
                    models[subject.name].format,
                    self.opening,
                    provider,
                    self.timing.threads,
                    subject.stored,
                )
                for subject in subjects
            }
            measured += self._measured(jobs, samples)
        return BenchResult(subjects, tuple(measured), self.timing, machine(), found.specs)

    def _batches(self, inputs: Inputs) -> tuple[int | None, ...]:
        """The batches to measure, smallest first: a process remembers its peak of memory."""
        asked = tuple(sorted(set(self.timing.batches or ())))
        first = inputs.specs[0].shape[0] if inputs.specs and inputs.specs[0].shape else None
        if inputs.given or not has_free_batch(inputs.specs):
            if wrong := [size for size in asked if size != first]:
                raise UsageError(
                    f"--batch {wrong[0]}: the batch of {inputs.specs[0]} is fixed"
                    if inputs.specs
                    else f"--batch {wrong[0]}: the model has no inputs",
                    "leave its size free: --input Nx3x224x224, if the model allows it",
                )
            return (first if isinstance(first, int) else None,)
        return asked or (1,)

    def _tell_round(self, where: str, done: str) -> None:
        self.progress(f"{where}: {done}")

    def _measured(
        self, jobs: Mapping[str, Job], samples: Mapping[int | None, Sample]
    ) -> Iterator[Measurement]:
        """All models on one provider, each in its own process, one batch after the other."""
        with ExitStack() as stack:
            running: dict[str, TimedProcess] = {}
            for name, job in jobs.items():
                self.progress(f"{job.provider}: load {name}")
                running[name] = stack.enter_context(TimedProcess(job))
            for batch, sample in samples.items():
                for process in running.values():
                    process.bind(sample)
                times = take_turns(
                    [process.run for process in running.values()],
                    self.timing.rounds,
                    self.timing.warmup,
                    self.timing.seed,
                    partial(self._tell_round, f"{job.provider}, batch {batch}"),
                )
                for (name, process), seconds in zip(running.items(), times, strict=True):
                    yield Measurement(
                        name,
                        job.provider,
                        batch,
                        seconds,
                        process.load_seconds,
                        process.peak_memory(),
                    )


def _named(paths: Sequence[Path]) -> dict[str, Path]:
    """Each path by the end of it that tells it from the others; by a number if nothing does."""
    named: dict[str, Path] = {}
    for path in paths:
        alike = [other for other in paths if other.name == path.name and other != path]
        name = str(path) if alike else path.name
        again = sum(path == other for other in named.values())
        named[f"{name} ({again + 1})" if again else name] = path
    return named


def _ops(model: Model, samples: Mapping[int | None, Sample]) -> Mapping[str, int] | None:
    """Ops by kind; None where the model cannot be read, which does not stop it from running."""
    try:
        sample = matched(next(iter(samples.values())), [spec.name for spec in model.inputs])
        return kinds(model.read(sample))
    except BnfoldError:
        return None


def cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
