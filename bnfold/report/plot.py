"""Plots of what was measured, as PNG or SVG: latencies if there are any, else errors.

They need matplotlib, which nothing else does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnfold.errors import EnvironmentLacksError, UsageError

if TYPE_CHECKING:
    from bnfold.report.document import Document
    from bnfold.verbs.benching import Measurement
    from bnfold.verification import Row

SUFFIXES = (".png", ".svg")
_BEFORE, _AFTER, _LIMIT = "#5a6678", "#2f6fde", "#c4314b"


def check_plots() -> None:
    """Raise EnvironmentLacksError unless there is a matplotlib."""
    from importlib.util import find_spec

    if find_spec("matplotlib") is None:
        raise EnvironmentLacksError("a plot needs matplotlib", "pip install 'bnfold[plot]'")


def save(document: Document, path: Path) -> None:
    """Draw `document` into the file; the same one gives the same bytes. Raises UsageError."""
    import matplotlib

    settings: Any = {
        "svg.hashsalt": "bnfold",
        "text.parse_math": False,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "font.size": 9,
    }
    with matplotlib.rc_context(settings):
        figure = _figure(document)
        metadata = {"Date": None} if path.suffix == ".svg" else {}
        figure.savefig(path, dpi=160, metadata=metadata)


def _figure(document: Document) -> Any:
    from matplotlib.figure import Figure

    draw, groups = _panels(document)
    heights = [len(rows) + 1.5 for rows in groups.values()]
    figure = Figure(figsize=(8, 0.8 + 0.3 * sum(heights)), layout="constrained")
    panels = figure.subplots(len(groups), squeeze=False, height_ratios=heights)[:, 0]
    for panel, (title, rows) in zip(panels, groups.items(), strict=True):
        panel.set_title(title, loc="left")
        draw(panel, rows)
        panel.invert_yaxis()
    return figure


def _panels(document: Document) -> tuple[Callable[..., None], dict[str, list[Any]]]:
    """What draws a panel, and by its title what is drawn in it."""
    groups: dict[str, list[Any]] = {}
    if document.speed is not None:
        for each in document.speed.measurements:
            place = each.provider if each.batch is None else f"{each.provider}, batch {each.batch}"
            groups.setdefault(place, []).append(each)
        return _latencies, groups
    for section in document.sections:
        for row in section.verification.rows if section.verification else ():
            title = f"{section.name} {row.place.output} on {row.place.provider}".strip()
            groups.setdefault(title, []).append(row)
    if not groups:
        hint = "use --report out.html"
        raise UsageError(f"{document.title} measured nothing that could be plotted", hint)
    return _errors, groups


def _latencies(panel: Any, rows: Sequence[Measurement]) -> None:
    """Boxes of the middle half, whiskers from p10 to p90, the other rounds as dots."""
    panel.boxplot(
        [[1e3 * value for value in each.seconds] for each in rows],
        whis=(10, 90),
        orientation="horizontal",
        widths=0.6,
        tick_labels=[each.model for each in rows],
        medianprops={"color": _AFTER, "linewidth": 2},
        flierprops={"marker": ".", "markersize": 3, "markeredgecolor": _BEFORE},
    )
    panel.set_xlim(left=0)
    panel.set_xlabel("latency in ms: median, quartiles, p10 to p90")


def _errors(panel: Any, rows: Sequence[Row]) -> None:
    """Floor and error of each case; what is zero or infinite has no place on the axis."""
    places = range(len(rows))
    for label, values, style in (
        (
            "floor",
            [row.floor for row in rows],
            {"marker": "o", "color": _BEFORE, "fillstyle": "none", "ms": 9},
        ),
        ("error", [row.error for row in rows], {"marker": "o", "color": _AFTER, "ms": 5}),
    ):
        drawn = [(v, at) for v, at in zip(values, places, strict=True) if 0 < v < math.inf]
        panel.plot([v for v, _ in drawn], [at for _, at in drawn], label=label, ls="", **style)
    panel.set_xscale("log")
    panel.xaxis.set_major_formatter("{x:.0e}")
    panel.grid(axis="x", alpha=0.3)
    panel.set_yticks(places, [row.place.case for row in rows])
    for tick, row in zip(panel.get_yticklabels(), rows, strict=True):
        tick.set_color("black" if row.passed else _LIMIT)
    panel.legend(loc="upper right", frameon=False)
