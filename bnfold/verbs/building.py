"""The verb `build`: bring every model of a pipeline up to date, side by side.

A model is up to date if what it was made of has the hash that was written down beside it. Each is
built by itself: one that fails, or takes its process with it, leaves the others alone. An interrupt
ends the workers before it goes on: then each model is written as a whole, or not at all.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, as_completed
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from bnfold.errors import BnfoldError, EnvironmentLacksError, Failure, ModelError, UsageError
from bnfold.files import check_target, sha256, write_atomically
from bnfold.formats.opening import recognise
from bnfold.processes import supervision, watch
from bnfold.processes.child import ProcessLostError
from bnfold.verbs.exporting import ExportResult, export
from bnfold.verbs.folding import FoldResult, fold
from bnfold.verbs.ingredients import key
from bnfold.verbs.pipeline import Entry
from bnfold.verbs.workers import STOPPED, StoppedError, uninterrupted, work, workers

GATE_FAILED = 1
PATIENCE = 10
"""Seconds that a Dask scheduler has to answer."""
SCHEMA_VERSION = 1

Progress = Callable[[str], None]
Making = Callable[[Entry], "Built"]


@dataclass(frozen=True, slots=True)
class Built:
    """What became of one model: its report as JSON, or why there is none.

    `code` is the exit code that it would have had alone; `artefacts` are the files that are there.
    """

    name: str
    code: int
    data: Mapping[str, Any]
    artefacts: tuple[str, ...] = ()
    fresh: bool = False
    why: str | None = None
    hint: str | None = None

    @property
    def state(self) -> str:
        """ "built", "up to date", or "failed"."""
        return "failed" if self.code else "up to date" if self.fresh else "built"


@dataclass(frozen=True, slots=True)
class BuildResult:
    """Every model of a pipeline, in its order. The exit code is that of the worst."""

    source: str
    models: tuple[Built, ...]

    @property
    def code(self) -> int:
        return max((built.code for built in self.models), default=0)

    @property
    def passed(self) -> bool:
        return self.code == 0

    def to_json(self) -> dict[str, Any]:
        return {
            "schema_version": SCHEMA_VERSION,
            "verdict": "pass" if self.passed else "fail",
            "models": [
                {"state": built.state, **{k: v for k, v in asdict(built).items() if k != "fresh"}}
                for built in self.models
            ],
        }

    def __str__(self) -> str:
        """A line for each model; `bnfold.render` has the report."""
        return "\n".join(
            f"{built.name} {built.state}" + (f": {built.why}" if built.why else "")
            for built in self.models
        )


class Reports(Protocol):
    """Writes the reports that a pipeline asks for, each named by its suffix; it can be pickled."""

    def check(self, path: Path) -> None:
        """Raise BnfoldError, before any work is done, if no report can be written to `path`."""

    def write(self, result: FoldResult | ExportResult, path: Path) -> None: ...


def build(
    entries: Mapping[str, Entry],
    names: Sequence[str] = (),
    *,
    source: str = "",
    jobs: int = 1,
    force: bool = False,
    dask: str | None = None,
    reports: Reports | None = None,
    apart: bool = True,
    timeout: float | None = None,
    progress: Progress = lambda step: None,
) -> BuildResult:
    """Build the models called `names` (all by default), `jobs` at a time.

    `force` builds also what is up to date. `dask` is the address of a Dask scheduler to build on,
    whose workers see the same files, or "local" for one of its own. `reports` writes those that
    the models ask for, None of them without it. Each model is built `apart`, in a watched process,
    where a step and a run of it have `timeout` seconds (None: any time). Raises UsageError for a
    name that is not there, EnvironmentLacksError if Dask is missing or cannot be reached. An
    interrupt ends the workers; what was begun on a cluster of others, that may still write.
    """
    if unknown := [name for name in names if name not in entries]:
        raise UsageError(f"{unknown[0]!r} is no model here", f"there are {', '.join(entries)}")
    chosen = {name: entries[name] for name in (names or entries)}
    done: dict[str, Built] = {}
    for name, entry in chosen.items():
        found = None if force else up_to_date(entry)
        found = found or _without_model(entry)
        if found is not None:
            done[name] = found
    waiting = [entry for name, entry in chosen.items() if name not in done]
    supervision.unlimited()
    making: Making = partial(make, reports=reports)
    if apart:
        making = partial(make_apart, making, timeout)
    with closing(_built(waiting, jobs, dask, making)) as coming:
        for built in coming:
            done[built.name] = built
            progress(f"{len(done)} of {len(chosen)} models: {built.name} {built.state}")
    return BuildResult(source, tuple(done[name] for name in chosen))


def _built(
    entries: Sequence[Entry], jobs: int, dask: str | None, making: Making
) -> Generator[Built, None, None]:
    if not entries:
        return
    if dask is not None:
        with _cluster(dask, jobs) as executor:
            yield from _results({executor.submit(making, entry): entry for entry in entries})
        return
    left = {entry.name: entry for entry in entries}
    with workers(min(jobs, len(entries))) as executor:
        for built in _results({executor.submit(work, making, entry): entry for entry in entries}):
            if not built.data.get("died"):
                del left[built.name]
                yield built
    for entry in left.values():  # one of them took the pool with it: each again, by itself
        with workers(1) as executor:
            yield from _results({executor.submit(work, making, entry): entry})


def _results(futures: Mapping[Future[Built], Entry]) -> Iterator[Built]:
    for future in as_completed(futures):
        name = futures[future].name
        try:
            yield future.result()
        except BrokenExecutor:
            why = "its process died, of too little memory or a crash in a library"
            yield Built(name, BnfoldError.exit_code, {"died": True}, why=why)
        except StoppedError:
            yield Built(name, STOPPED, {}, why="its process was told to stop")


@contextmanager
def _cluster(address: str, jobs: int) -> Iterator[Executor]:
    """An executor on a Dask cluster; one of its own has ended with it."""
    try:
        distributed: Any = importlib.import_module("distributed")
    except ImportError as error:
        raise EnvironmentLacksError(
            "Dask is not installed", "pip install 'bnfold[cluster]'"
        ) from error
    own = None
    try:
        if address == "local":
            own = distributed.LocalCluster(n_workers=jobs, threads_per_worker=1)
        client = distributed.Client(own or address, timeout=PATIENCE)
    except (OSError, ValueError) as error:
        raise EnvironmentLacksError(
            f"no Dask scheduler answers at {address}", "start one: dask scheduler"
        ) from error
    try:
        yield client.get_executor()
    except KeyboardInterrupt as error:
        if own is None:
            raise KeyboardInterrupt("what the cluster has begun, it may still write") from error
        raise
    finally:
        client.close()
        if own is not None:
            own.close()


def make_apart(making: Making, timeout: float | None, entry: Entry) -> Built:
    """Build one model in a process of its own, which it may crash, hang or fill."""
    try:
        return watch.apart(partial(making, entry), str(entry.source), timeout)
    except ProcessLostError as error:
        return Built(entry.name, error.exit_code, {}, why=str(error), hint=error.hint)


def make(entry: Entry, reports: Reports | None = None) -> Built:
    """Build one model, whatever its state; every way to fail is told in the result."""
    try:
        _check_places(entry, reports)
        made_of = key(entry)
        result = _result(entry)
        data = result.to_json()
        if why := _shortcoming(entry, result):
            return Built(entry.name, GATE_FAILED, data, why=why)
        with uninterrupted():
            return _written(entry, result, made_of, reports)
    except Exception as error:
        failure = Failure.of(error)
        return Built(entry.name, failure.code, {}, why=failure.message, hint=failure.hint)


def _check_places(entry: Entry, reports: Reports | None) -> None:
    """Raise UsageError, before any work is done, if something could not be written."""
    try:
        entry.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"the folder {entry.output} cannot be made: {error.strerror}", "set output to another"
        ) from error
    for place in (*entry.places.values(), entry.record):
        check_target(place, overwrite=True)
    if reports is not None:
        for place in _reports(entry):
            reports.check(place)


def _reports(entry: Entry) -> list[Path]:
    return [entry.output / f"{entry.name}.{suffix}" for suffix in entry.reports]


def _result(entry: Entry) -> FoldResult | ExportResult:
    inputs, how = entry.inputs or None, entry.conversion
    if entry.to:
        return export(
            entry.source,
            inputs,
            to=entry.to,
            how=how,
            outputs=entry.outputs,
            preprocessing=entry.preprocessing,
            move=entry.move,
            protocol=entry.gate,
            opening=entry.opening,
            progress=supervision.step,
        )
    return fold(
        entry.source,
        inputs,
        outputs=entry.outputs,
        preprocessing=entry.preprocessing,
        move=entry.move,
        protocol=entry.gate,
        opening=entry.opening,
        progress=supervision.step,
    )


def _shortcoming(entry: Entry, result: FoldResult | ExportResult) -> str | None:
    """Why the result is not written."""
    if not result.passed:
        return "the result differs from its original"
    made = list(result.exports.values()) if isinstance(result, ExportResult) else [result]
    kept = max(each.plan.batchnorms.kept for each in made)
    return f"{kept} BatchNorms are kept" if entry.require_folded and kept else None


def _written(
    entry: Entry, result: FoldResult | ExportResult, made_of: str, reports: Reports | None
) -> Built:
    """Write every artefact, then what it was made of, so that a stop in between builds again."""
    for target, place in entry.places.items():
        (result[target] if isinstance(result, ExportResult) else result).save(place)
    if reports is not None:
        for place in _reports(entry):
            reports.write(result, place)
    data = result.to_json()
    hashes = {str(place.name): sha256(place) for place in entry.places.values()}
    record = {"key": made_of, "artefacts": hashes, "report": data}

    def save(path: Path) -> None:
        path.write_text(json.dumps(record, indent=1))

    write_atomically(entry.record, save)
    return Built(entry.name, 0, data, _paths(entry))


def up_to_date(entry: Entry) -> Built | None:
    """What was written down of a model that need not be built again."""
    try:
        record = json.loads(entry.record.read_text())
        places = {place.name: place for place in entry.places.values()}
        hashes = {name: sha256(place) for name, place in places.items()}
        if record["artefacts"] == hashes and record["key"] == key(entry):
            return Built(entry.name, 0, record["report"], _paths(entry), fresh=True)
    except (OSError, ValueError, KeyError, TypeError, BnfoldError):
        return None  # whatever is not as it was left is built again
    return None


def _without_model(entry: Entry) -> Built | None:
    """What is told of a model whose file shows at once that it is none."""
    try:
        recognise(entry.source)
    except ModelError as error:
        return Built(entry.name, error.exit_code, {}, why=str(error), hint=error.hint)
    return None


def _paths(entry: Entry) -> tuple[str, ...]:
    return tuple(map(str, entry.places.values()))
