"""The verb `build`: bring every model of a pipeline up to date, side by side.

A model is up to date if what it was made of has the hash that was written down beside it: the file
and what it depends on, its settings, the versions of bnfold and of what bnfold uses. Each is built
by itself: one that fails, or takes its process with it, leaves the others alone.
"""

from __future__ import annotations

import glob
import hashlib
import importlib
import importlib.util
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, Executor, ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnfold.environment import versions
from bnfold.errors import BnfoldError, EnvironmentLacksError, UsageError
from bnfold.files import sha256, write_atomically
from bnfold.formats.model import Format
from bnfold.formats.opening import recognise
from bnfold.report.rendering import write_report
from bnfold.run import supervision
from bnfold.run.process import ProcessLostError
from bnfold.verbs.exporting import ExportResult, export
from bnfold.verbs.folding import FoldResult, fold
from bnfold.verbs.pipeline import Entry

if TYPE_CHECKING:
    from bnfold.report.document import Document

GATE_FAILED = 1
PATIENCE = 10
"""Seconds that a Dask scheduler has to answer."""
SCHEMA_VERSION = 1

Progress = Callable[[str], None]


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

    def document(self) -> Document:
        """This result for the renderings of `bnfold.report`."""
        from bnfold.report.building import build_document

        return build_document(self)

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
        from bnfold.report.text import render

        return render(self.document())


def build(
    entries: Mapping[str, Entry],
    names: Sequence[str] = (),
    *,
    source: str = "",
    jobs: int = 1,
    force: bool = False,
    dask: str | None = None,
    timeout: float | None = None,
    apart: bool = True,
    progress: Progress = lambda step: None,
) -> BuildResult:
    """Build the models called `names` (all by default), `jobs` at a time.

    `force` builds also what is up to date. `dask` is the address of a Dask scheduler to build on,
    whose workers see the same files, or "local" for one of its own. A model is built `apart`, in a
    process of its own, where each step and run of it has `timeout` seconds. Raises UsageError for a
    name that is not there, EnvironmentLacksError if Dask is missing or cannot be reached.
    """
    if unknown := [name for name in names if name not in entries]:
        raise UsageError(f"{unknown[0]!r} is no model here", f"there are {', '.join(entries)}")
    chosen = {name: entries[name] for name in (names or entries)}
    done: dict[str, Built] = {}
    for name, entry in chosen.items():
        found = None if force else up_to_date(entry)
        if found is not None:
            done[name] = found
    waiting = [entry for name, entry in chosen.items() if name not in done]
    making = partial(make_apart, make, timeout) if apart else make
    for built in _built(waiting, jobs, dask, making):
        done[built.name] = built
        progress(f"{len(done)} of {len(chosen)} models: {built.name} {built.state}")
    return BuildResult(source, tuple(done[name] for name in chosen))


Make = Callable[[Entry], Built]


def _built(entries: Sequence[Entry], jobs: int, dask: str | None, making: Make) -> Iterator[Built]:
    if not entries:
        return
    if dask is not None:
        with _cluster(dask, jobs) as executor:
            yield from _submitted(executor, entries, making)
        return
    left = {entry.name: entry for entry in entries}
    with _pool(min(jobs, len(entries))) as executor:
        for built in _submitted(executor, entries, making):
            if not built.data.get("died"):
                del left[built.name]
                yield built
    for entry in left.values():  # one of them took the pool with it: each again, by itself
        with _pool(1) as executor:
            yield from _submitted(executor, [entry], making)


def _pool(jobs: int) -> ProcessPoolExecutor:
    threads = max(1, (os.cpu_count() or 1) // jobs)
    return ProcessPoolExecutor(jobs, get_context("spawn"), _prepare, (threads,))


def _prepare(threads: int) -> None:
    """A worker keeps to its share of the cores, and leaves stdout to the report."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    os.dup2(2, 1)


def _cluster(address: str, jobs: int) -> Executor:
    """An executor on a Dask cluster."""
    try:
        distributed: Any = importlib.import_module("distributed")
    except ImportError as error:
        raise EnvironmentLacksError(
            "Dask is not installed", "pip install 'bnfold[cluster]'"
        ) from error
    try:
        where = address
        if address == "local":
            where = distributed.LocalCluster(n_workers=jobs, threads_per_worker=1)
        executor: Executor = distributed.Client(where, timeout=PATIENCE).get_executor()
    except (OSError, ValueError) as error:
        raise EnvironmentLacksError(
            f"no Dask scheduler answers at {address}", "start one: dask scheduler"
        ) from error
    return executor


def _submitted(executor: Executor, entries: Sequence[Entry], making: Make) -> Iterator[Built]:
    futures = {executor.submit(making, entry): entry for entry in entries}
    try:
        for future in as_completed(futures):
            try:
                yield future.result()
            except BrokenExecutor:
                why = "its process died, of too little memory or a crash in a library"
                yield Built(futures[future].name, BnfoldError.exit_code, {"died": True}, why=why)
    finally:
        for future in futures:
            future.cancel()


def make_apart(making: Make, timeout: float | None, entry: Entry) -> Built:
    """What `making` makes of one model, in a process of its own.

    A step, or a run of a model, may take `timeout` seconds.
    """
    try:
        return supervision.apart(partial(making, entry), str(entry.source), timeout)
    except ProcessLostError as error:
        return Built(entry.name, error.exit_code, {}, why=str(error), hint=error.hint)


def make(entry: Entry) -> Built:
    """Build one model, whatever its state; every way to fail is told in the result."""
    try:
        entry.output.mkdir(parents=True, exist_ok=True)
        key = _key(entry)
        result = _result(entry)
        data = result.to_json()
        if why := _shortcoming(entry, result):
            return Built(entry.name, GATE_FAILED, data, why=why)
        return _written(entry, result, key)
    except BnfoldError as error:
        return Built(entry.name, error.exit_code, {}, why=str(error), hint=error.hint)
    except Exception as error:
        why = f"bnfold itself failed: {type(error).__name__}: {error}"
        return Built(entry.name, BnfoldError.exit_code, {}, why=why)


def _result(entry: Entry) -> FoldResult | ExportResult:
    inputs, how = entry.inputs or None, entry.conversion
    if entry.to:
        return export(
            entry.source,
            inputs,
            to=entry.to,
            how=how,
            protocol=entry.gate,
            opening=entry.opening,
            progress=supervision.step,
        )
    return fold(
        entry.source,
        inputs,
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


def _written(entry: Entry, result: FoldResult | ExportResult, key: str) -> Built:
    """Write every artefact, then what it was made of, so that a stop in between builds again."""
    for target, place in entry.places.items():
        (result[target] if isinstance(result, ExportResult) else result).save(place)
    for suffix in entry.reports:
        write_report(result.document(), entry.output / f"{entry.name}.{suffix}")
    data = result.to_json()
    hashes = {str(place.name): sha256(place) for place in entry.places.values()}
    record = {"key": key, "artefacts": hashes, "report": data}

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
        if record["artefacts"] == hashes and record["key"] == _key(entry):
            return Built(entry.name, 0, record["report"], _paths(entry), fresh=True)
    except (OSError, ValueError, KeyError, TypeError, BnfoldError):
        return None  # whatever is not as it was left is built again
    return None


def _paths(entry: Entry) -> tuple[str, ...]:
    return tuple(map(str, entry.places.values()))


def _key(entry: Entry) -> str:
    """A hash of everything that the artefacts of a model depend on."""
    content = {str(path): sha256(path) for path in sorted(_read(entry))}
    facts = {"versions": versions(), "settings": repr(entry), "content": content}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _read(entry: Entry) -> set[Path]:
    """The files that a model is made of."""
    found = {entry.source, *entry.gate.recorded}
    if recognise(entry.source) is Format.ONNX:
        from bnfold.formats.onnx.files import data_files

        found.update(data_files(entry.source))
    if entry.opening.factory is not None:
        spec = importlib.util.find_spec(entry.opening.factory.partition(":")[0].partition(".")[0])
        origin = spec.origin if spec is not None else None
        found.update([Path(origin)] if origin else [])
    for pattern in entry.depends:
        found.update(Path(name) for name in glob.glob(pattern, recursive=True))
    return {path for path in found if path.is_file()}
