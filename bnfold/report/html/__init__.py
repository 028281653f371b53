"""The report as one page that needs nothing beside itself.

Everything that a model says, such as the names of its nodes, is escaped; the page's policy admits
its own script by its hash and no other, and no address.
"""

from __future__ import annotations

import base64
import hashlib
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnfold.algebra.cost import cost
from bnfold.algebra.plan import Count
from bnfold.environment import machine
from bnfold.report.document import Document, Section, Table, visible
from bnfold.report.html.charts import (
    BINS,
    ErrorChart,
    Histogram,
    error_charts,
    histograms,
    in_floors,
    latency_charts,
)
from bnfold.report.html.drawing import drawing
from bnfold.report.ops import ops_table
from bnfold.report.speed import meaning
from bnfold.report.units import bytes_of, short, size
from bnfold.verification import Verification
from bnfold.verification.gate import HEADINGS, NUMERIC

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup


@dataclass(frozen=True, slots=True)
class Tile:
    """A figure that is seen at once."""

    value: str
    label: str
    style: str = ""


@dataclass(frozen=True, eq=False, slots=True)
class View:
    """A section with what the template draws of it; `key` tells its graph from the others."""

    key: str
    section: Section
    drawing: dict[str, Any] = field(default_factory=dict)
    ops: Table | None = None
    histograms: Sequence[Histogram] = ()
    more_histograms: int = 0
    errors: Sequence[ErrorChart] = ()
    outputs: Table | None = None


def render(document: Document) -> str:
    """The page as text."""
    from markupsafe import Markup

    script, style = _asset("page.js"), _asset("page.css")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return visible(
        _environment()
        .get_template("page.html.j2")
        .render(
            document=document,
            views=[_view(f"graph{i}", section) for i, section in enumerate(document.sections)],
            tiles=list(_tiles(document)),
            latencies=[] if document.speed is None else latency_charts(document.speed),
            machine=machine() if document.speed is None else document.speed.machine,
            commands="\n".join(_commands(document)),
            netron=[f"netron {shlex.quote(path)}" for path in _in_netron(document)],
            bins=BINS,
            script=Markup(script),
            style=Markup(style),
            script_hash=f"sha256-{digest}",
        )
        .strip()
    )


def _view(key: str, section: Section) -> View:
    errors = [] if section.verification is None else error_charts(section.verification)
    outputs = None if section.verification is None else outputs_table(section.verification)
    if section.plan is None:
        return View(key, section, errors=errors, outputs=outputs)
    shown, more = histograms(section.plan)
    drawn = _visible(drawing(section.plan))
    return View(key, section, drawn, ops_table(section.plan), shown, more, errors, outputs)


def outputs_table(verification: Verification) -> Table:
    """The worst case of every output in every place, as the terminal shows it."""
    rows = verification.worst_rows()
    wanting = frozenset(i for i, row in enumerate(rows) if not row.passed)
    return Table(HEADINGS, tuple(row.cells() for row in rows), frozenset(NUMERIC), wanting)


def _visible(data: Any) -> Any:
    """JSON with its texts as they may be seen: an escape in the page would be undone in it."""
    if isinstance(data, dict):
        return {visible(key): _visible(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_visible(value) for value in data]
    return visible(data) if isinstance(data, str) else data


def _tiles(document: Document) -> Iterator[Tile]:
    several = len(document.sections) > 1
    for section in document.sections:
        of = f", {section.name}" if several and section.name else ""
        if section.plan is not None:
            yield from _counted(section, document, of)
        if section.verification is not None and section.verification.rows:
            yield from _judged(section.verification, of)
    if document.speed is not None:
        for each in document.speed.comparisons[:4]:
            place = each.provider if each.batch is None else f"{each.provider}, batch {each.batch}"
            label = f"as fast as {each.baseline}, {place}: {meaning(each.speedup)}"
            yield Tile(f"{each.speedup.median:.2f}x", label)


def _counted(section: Section, document: Document, of: str) -> Iterator[Tile]:
    """What folding did to the model, in numbers."""
    assert section.plan is not None
    count, ops = section.plan.batchnorms, section.plan.ops
    yield Tile(_folded(count), f"BatchNorms folded{of}", "warned" if count.kept else "")
    yield Tile(f"{ops.before} → {ops.after}", f"ops{of}")
    before, after = (bytes_of(path) for path in (document.source, _path(section)))
    if before is not None and after is not None:
        yield Tile(_change(size(before), size(after)), f"size{of}")
    was, now = (cost(graph).multiply_adds for graph in (section.plan.before, section.plan.after))
    if was is not None and now is not None:
        yield Tile(_change(short(was), short(now)), f"multiply-adds{of}")


def _judged(verification: Verification, of: str) -> Iterator[Tile]:
    """How far the result is from its original, and what is known of that."""
    style = "passed" if verification.passed else "failed"
    floors = f"{in_floors(verification.smallest_k)} floors ({verification.protocol.rule})"
    if (off := verification.relative_error) is not None:
        yield Tile(f"{off:.1e}", f"largest error beside its output, {floors}{of}", style)
    else:
        yield Tile(floors, f"largest error{of}", style)
    if not verification.passed:
        yield Tile("fail", f"verdict, measured{of}", style)
    elif verification.proof is not None and verification.proof.proved:
        yield Tile("proved", f"verdict: the same for every input, and measured{of}", style)
    else:
        yield Tile(
            "measured", f"verdict: the same on {len(verification.rows)} comparisons{of}", style
        )


def _change(before: str, after: str) -> str:
    """Two sizes, with their unit once where it is the same."""
    unit = after.partition(" ")[2]
    return f"{before.removesuffix(f' {unit}') if unit else before} → {after}"


def _path(section: Section) -> str | None:
    return None if section.artefact is None else section.artefact.path


def _folded(count: Count) -> str:
    return f"{count.folded} of {count.found}" if count.found else "none"


def _commands(document: Document) -> Iterator[str]:
    source = document.data.get("source")
    if isinstance(source, dict) and source.get("path"):
        yield f"sha256sum {shlex.quote(source['path'])}  # {source['sha256']}"
    if document.command:
        yield shlex.join(document.command)


def _in_netron(document: Document) -> list[str]:
    """The files that were written, and can be looked at there."""
    paths = (_path(section) for section in document.sections)
    return [path for path in paths if path is not None and Path(path).is_file()]


def steps(heights: Sequence[float]) -> str:
    """An SVG path over bars of width 1 and the given heights, in a picture that is 30 high."""
    path = "M0 30"
    for i, height in enumerate(heights):
        path += f"L{i} {30 - 29 * height:.2f}H{i + 1}"
    return path + f"L{len(heights)} 30Z"


def breakable(name: str) -> Markup:
    """A name that may go on in the next line after a dot, a slash or an underscore."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"([./_])(?=\w)", r"\1<wbr>", str(escape(name))))


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    made = Environment(
        loader=PackageLoader("bnfold.report.html", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"steps": steps, "breakable": breakable}
    return made


def _asset(name: str) -> str:
    return files("bnfold.report.html").joinpath(name).read_text(encoding="utf-8")
