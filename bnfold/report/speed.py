"""How fast and how large models are, as a document; numbers in the units that people read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from bnfold.report.document import Document, Section, Table
from bnfold.report.folding import fold_document
from bnfold.report.units import seconds, size

if TYPE_CHECKING:
    from bnfold.verbs.benching import BenchResult, Comparison
    from bnfold.verbs.rounds import Spread


def bench_document(result: BenchResult) -> Document:
    """The fold if there was one, the models, the measurements, and how they were made."""
    section = Section(tables=(_models(result), _measurements(result)), lines=(conditions(result),))
    folded = fold_document(result.folded).sections if result.folded else ()
    sections = (*(replace(each, artefact=None) for each in folded), section)
    source = ", ".join(subject.name for subject in result.subjects)
    return Document("bnfold bench", source, sections, result.to_json(), speed=result)


def conditions(result: BenchResult) -> str:
    """How it was measured, in a sentence."""
    timing, machine = result.timing, result.machine
    runtimes = [
        f"{name} {machine.versions[name]}" for name in _runtimes(result) if name in machine.versions
    ]
    return (
        f"{_many(timing.threads, 'thread')} of {machine.processor}, {', '.join(runtimes)}; "
        f"{_many(timing.rounds, 'round')} after {timing.warmup} to warm up, "
        "in each a turn of every model in a new order"
    )


def ratio(spread: Spread) -> str:
    """With what it says: nothing, where 1 lies within the spread."""
    return f"{spread.median:.2f} ({spread.p10:.2f} - {spread.p90:.2f}), {meaning(spread)}"


def meaning(spread: Spread) -> str:
    if spread.p10 <= 1 <= spread.p90:
        return "no difference shown"
    return "faster" if spread.p10 > 1 else "slower"


def against_first(result: BenchResult) -> dict[int, Comparison]:
    """By the position of a measurement: how it compares with the first model in its place."""
    first = result.subjects[0].name
    found = {(c.model, c.provider, c.batch): c for c in result.comparisons if c.baseline == first}
    keys = [(m.model, m.provider, m.batch) for m in result.measurements]
    return {i: found[key] for i, key in enumerate(keys) if key in found}


def _models(result: BenchResult) -> Table:
    """A row for each model and provider; memory is that of the largest batch."""
    subjects = {subject.name: subject for subject in result.subjects}
    last = {(each.model, each.provider): each for each in result.measurements}
    rows = []
    for (name, provider), each in last.items():
        subject = subjects[name]
        ops = "?" if subject.ops is None else str(sum(subject.ops.values()))
        memory = "?" if each.peak_memory is None else size(each.peak_memory)
        file = (name, subject.format, size(subject.stored), ops)
        rows.append((*file, provider, seconds(each.load_seconds), memory))
    headings = ("model", "format", "size", "ops", "on", "load", "memory")
    return Table(headings, tuple(rows), frozenset(("size", "ops", "load", "memory")))


def _measurements(result: BenchResult) -> Table:
    headings = ("on", "batch", "model", "latency", "p10 - p90", "speed-up")
    compared = against_first(result)
    rows = [
        (
            each.provider,
            "-" if each.batch is None else str(each.batch),
            each.model,
            seconds(each.latency.median),
            _range(each.latency),
            ratio(compared[position].speedup) if position in compared else "1",
        )
        for position, each in enumerate(result.measurements)
    ]
    return Table(headings, tuple(rows), frozenset(headings) - {"on", "model"})


def _range(spread: Spread) -> str:
    low, high = seconds(spread.p10), seconds(spread.p90)
    unit = high[high.index(" ") :]
    return f"{low.removesuffix(unit)} - {high}"


def _runtimes(result: BenchResult) -> Iterator[str]:
    formats = {subject.format for subject in result.subjects}
    if "onnx" in formats:
        yield from ("onnxruntime-gpu", "onnxruntime")
    if formats - {"onnx"}:
        yield "torch"


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
