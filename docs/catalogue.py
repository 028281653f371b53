"""Writes docs/rules.md from the docstrings of the rules and the reasons for keeping an affine.

python -m docs.catalogue
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent, fill
from types import ModuleType

from bnfold.algebra import (
    branches,
    chains,
    merge,
    permuted,
    placing,
    planner,
    pointwise,
    rounding,
    rules,
    sharing,
    split,
    sums,
    together,
)
from bnfold.algebra.refusal import Reason
from bnfold.algebra.rules import RULES, move

WIDTH = 100
PAGE = Path(__file__).parent / "rules.md"

INTRODUCTION = """\
# The rules

<!-- Written by `python -m docs.catalogue` from the docstrings; change those. -->

An affine is `y = s * x + b` with one scale and one shift per channel. Every BatchNorm in
inference is one, with `s = gamma / sqrt(var + eps)` and `b = beta - mean * s`; so is a
multiplication or an addition with a constant. To fold it is to ask the ops around it to take it, in
two directions:

- **up**: an affine follows the op. Can it give `s * f(x) + b` instead of `f(x)`?
- **down**: an affine comes before the op. Can it read `x` where it has read `s * x + b`?

An op absorbs the affine, or passes the question on to its inputs (up) or readers (down), or
refuses. A question is granted in all its branches or not at all. What follows is, for every kind of
op, the formula, the conditions under which it is exact, and the [reasons](#why-an-affine-stays) for
which it refuses.
"""

REST = """\
Nothing passes: bnfold knows no affine that does. Refuses with [`not-linear`](#not-linear).
"""

STAYS = """\
## Why an affine stays

Every affine that is kept is reported with one of these codes for each side of it, a sentence that
names the node or tensor concerned, and what would make it foldable. `NODE` stands for the node that
refuses.
"""


def page() -> str:
    """The catalogue as Markdown."""
    families = _families()
    rest = families.pop(rules)
    parts = [INTRODUCTION, "## For every edit", _body(planner), "## In two parts", _body(split)]
    parts += ["## Several at once", *map(_body, (together, sharing))]
    for module, ops in families.items():
        parts += [f"## {', '.join(ops)}", _body(module), _refusals(module)]
    parts += [f"## {', '.join(rest)}", REST]
    parts += ["## Merging", *map(_body, (merge, branches, chains, sums, permuted))]
    parts += ["## Moving", *map(_body, (placing, pointwise))]
    parts += ["## Rounding", _body(rounding), _refusals(rounding), STAYS]
    parts += [_explained(reason) for reason in Reason]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _families() -> dict[ModuleType, list[str]]:
    """The modules of the rules with the ops that they answer for, in the order of the table."""
    families: dict[ModuleType, list[str]] = {}
    for op, each in RULES.items():
        module = inspect.getmodule(each.up)
        assert module is not None
        families.setdefault(module, []).append(op.__name__)
    return families


def paragraphs(docstring: str) -> Iterator[tuple[str, bool]]:
    """The paragraphs of a docstring, and whether each is aligned in columns rather than prose."""
    together: list[str] = []
    for paragraph in docstring.split("\n\n"):
        if re.search(r"\S  +\S|^ ", paragraph, re.MULTILINE):
            together.append(dedent(paragraph))
            continue
        if together:
            yield "\n\n".join(together), True
            together = []
        yield paragraph, False
    if together:
        yield "\n\n".join(together), True


def _body(module: ModuleType) -> str:
    """A docstring as Markdown: what is aligned in columns stays as it is, the rest is prose."""
    parts = paragraphs(inspect.cleandoc(module.__doc__ or ""))
    return "\n\n".join(f"```text\n{text}\n```" if aligned else text for text, aligned in parts)


def _refusals(module: ModuleType) -> str:
    codes = ", ".join(f"[`{code}`](#{code})" for code in _reasons(module))
    return _filled(f"Refuses with {codes}.") if codes else "Never refuses by itself."


def _reasons(module: ModuleType) -> Iterator[Reason]:
    """The reasons that a module names, itself or through what the rules share."""
    source = inspect.getsource(module)
    shared = {name: each for name, each in vars(move).items() if inspect.isfunction(each)}
    called: set[str] = set()
    while more := {n for n in shared if n not in called and re.search(rf"\b{n}\(", source)}:
        called |= more
        source += "".join(inspect.getsource(shared[name]) for name in more)
    yield from (reason for reason in Reason if f"Reason.{reason.name}" in source)


def _explained(reason: Reason) -> str:
    remedy = reason.remedy.format(node="`NODE`")
    told = (reason.meaning, f"Example: {reason.example}.", f"To fold it: {remedy}.")
    return "\n\n".join((f"### {reason}", *(_filled(text) for text in told)))


def _filled(text: str) -> str:
    return fill(text, WIDTH, break_long_words=False, break_on_hyphens=False)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
