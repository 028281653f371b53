"""How fast and how large models are, as a document; numbers in the units that people read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from bnfold.report.document import Document, Section, Table
from bnfold.report.folding import fold_document

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


def ratio(spread: Spread) -> str:
    return f"{spread.median:.2f} ({spread.p10:.2f} - {spread.p90:.2f})"


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


def _three(value: float) -> str:
    """Three digits that count: 0.123, 1.23, 12.3, 123, 1234."""
    for limit, digits in ((0.9995, 3), (9.995, 2), (99.95, 1)):
        if value < limit:
            return f"{value:.{digits}f}"
    return f"{value:.0f}"


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
