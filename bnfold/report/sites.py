"""The fate of every affine as lines for a terminal. Sentences wrap; names are never broken.

What was folded is a table. What was kept follows, in groups of like obstacles, of which the first
is told in full.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from textwrap import wrap

from rich.console import Console, ConsoleOptions
from rich.text import Text

from bnfold.algebra.obstacle import Side
from bnfold.algebra.plan import Outcome, Plan, Site
from bnfold.algebra.refusal import listed

MOST_ROWS = 20
"""The longest table that is printed whole; of a longer one, half as many rows."""

LIKEWISE = 2
"""How many sites of a group are named beside the first."""

LOUD = 100.0
"""An amplification worth a word: rounding errors take two of float32's seven digits."""

WIDEST = 120
"""Columns of a sentence, however wide the terminal is."""

HEADINGS = ("affine", "op", "outcome", "into")
LABELS = {Side.BEFORE: "before it", Side.AFTER: "after it", Side.ITSELF: "because"}
REMEDY = "to fold it"
GAP = "  "


@dataclass(frozen=True, slots=True)
class SiteList:
    """Prints the sites of a plan; with `everything`, each of them in full."""

    plan: Plan
    everything: bool = False

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        kept = [site for site in self.plan.sites if site.outcome is Outcome.KEPT]
        gone = [site for site in self.plan.sites if site.outcome is not Outcome.KEPT]
        if gone:
            yield from _table(gone, options.max_width, self.everything)
            yield from _loud(gone, options.max_width)
        for position, group in enumerate(_groups(kept)):
            if gone or position:
                yield Text()
            yield from _group(group, options.max_width, self.everything)


def _table(sites: Sequence[Site], width: int, everything: bool) -> Iterator[Text]:
    """Where four columns do not fit, what took an affine stands below its row."""
    shown = sites if everything or len(sites) <= MOST_ROWS else sites[: MOST_ROWS // 2]
    rows = [(site.name, site.op, str(site.outcome), _taken(site)) for site in shown]
    name, op, outcome, into = (
        max(map(len, column)) for column in zip(HEADINGS, *rows, strict=True)
    )
    fits = name + op + outcome + into + 3 * len(GAP) <= width
    headings = HEADINGS if fits else HEADINGS[:3]
    widths = (name, op, outcome, 0)
    padded = [title.ljust(size) for title, size in zip(headings, widths, strict=False)]
    yield _line((GAP.join(padded).rstrip(), "bold"))
    for first, kind, fate, taken in rows:
        start = f"{first:{name}}{GAP}{kind:{op}}{GAP}"
        yield _line(
            start, (fate, "green"), f"{'':{outcome - len(fate)}}{GAP}{taken}" if fits else ""
        )
        if not fits:
            yield _line(f"{GAP}into {taken}")
    if rest := len(sites) - len(shown):
        yield _line(f"and {rest} more: --all lists them")


def _taken(site: Site) -> str:
    loud = f" (x{site.amplification:.3g})" if _is_loud(site) else ""
    return (listed(site.into) or "nothing, being the identity") + loud


def _is_loud(site: Site) -> bool:
    return site.amplification is not None and site.amplification >= LOUD


def _loud(sites: Sequence[Site], width: int) -> Iterator[Text]:
    """What large amplifications mean."""
    loud = sorted((s.amplification or 0.0, s.name) for s in sites if _is_loud(s))
    if not loud:
        return
    most, name = loud[-1]
    many = f"{_many(len(loud), 'affine')} scale{'s' if len(loud) == 1 else ''}"
    text = (
        f"{many} a channel by {LOUD:g} or more, {name} by {most:.3g}: rounding errors before it "
        "grow as much. A BatchNorm does so where a variance is small beside gamma"
    )
    yield Text()
    yield from _wrapped("", text, width)


def _groups(sites: Sequence[Site]) -> list[list[Site]]:
    """Sites with like obstacles, in the order of the first of each."""
    groups: dict[Hashable, list[Site]] = {}
    for site in sites:
        obstacles = tuple((each.side, each.reason) for each in site.obstacles)
        further = site.graph_form and site.graph_form.outcome
        groups.setdefault((site.batchnorm, site.op, obstacles, further), []).append(site)
    return list(groups.values())


def _group(sites: Sequence[Site], width: int, everything: bool) -> Iterator[Text]:
    first = sites[0]
    kind = "" if first.batchnorm else f" ({first.op})"
    what = f"{_many(len(sites), 'BatchNorm' if first.batchnorm else 'affine')}{kind}"
    yield _line(("kept", "bold yellow"), f"{GAP}{what} [{first.reason}]")
    for position, site in enumerate(sites):
        if everything or position == 0:
            yield _line(f"{GAP}{site.name}")
            yield from _told(site, width)
        elif position <= LIKEWISE:
            yield _line(f"{GAP}{site.name}, likewise")
    rest = len(sites) - 1 - LIKEWISE
    if rest > 0 and not everything:
        yield _line(f"{GAP}and {rest} more, likewise: --all tells of each")


def _told(site: Site, width: int) -> Iterator[Text]:
    """Why a site was kept, and what would help."""
    own = f"{site.name}: "
    told = [(LABELS[each.side], each.why.removeprefix(own)) for each in site.obstacles]
    for label, text in (*told, (REMEDY, site.remedy or "")):
        yield from _wrapped(f"{GAP}{GAP}{label:{len(REMEDY)}}{GAP}", text, width)


def _wrapped(label: str, text: str, width: int) -> Iterator[Text]:
    """`text` beside `label`, its further lines below its first."""
    room = max(min(width, WIDEST) - len(label), 24)
    lines = wrap(text, room, break_long_words=False, break_on_hyphens=False)
    for position, line in enumerate(lines):
        yield _line((label if position == 0 else " " * len(label), "dim"), line)


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _line(*parts: str | tuple[str, str]) -> Text:
    return Text.assemble(*parts, no_wrap=True, overflow="ignore")
