"""Annotations of GitHub Actions: workflow commands on stdout, which the runner shows as notes.

`::error title=T::message`; see "Workflow commands for GitHub Actions" in GitHub's documentation.
Nothing is printed that is not escaped: a line of a model's own text could be a command.
"""

from __future__ import annotations

from collections.abc import Iterator

from bnfold.algebra.plan import Outcome, Plan
from bnfold.report.document import Check, Document, Section, visible

MOST = 10
"""Annotations of one kind that GitHub keeps of a step."""


def render(document: Document) -> str:
    """An error for each place that failed, warnings for kept BatchNorms, a notice to sum up."""
    title = f"{document.title} {document.source}".strip()
    lines = [_command("error", title, told) for told in _errors(document)][:MOST]
    for section in document.sections:
        if section.plan is not None and not section.require_folded:
            lines += [_command("warning", title, told) for told in _kept(section.plan)]
        ends = filter(None, (section.name, *_summary(section), section.ending))
        lines.append(_command("notice", title, "; ".join(ends) or "done"))
    return "\n".join(lines)


def _errors(document: Document) -> Iterator[str]:
    """The failure, and of each place its first failed check with the number of the others."""
    if document.failure is not None:
        yield "\n".join(filter(None, (document.failure.message, document.failure.hint)))
    for section in document.sections:
        prefix = f"{section.name}: " if section.name else ""
        failed: dict[str, list[Check]] = {}
        for check in section.all_checks():
            if not check.passed:
                failed.setdefault(check.place, []).append(check)
        for place, (first, *others) in failed.items():
            more = f" (and {len(others)} more on {place})" if others else ""
            yield f"{prefix}{place}, {first.name}: {first.why}{more}"


def _kept(plan: Plan) -> list[str]:
    sites = [site for site in plan.sites if site.batchnorm and site.outcome is Outcome.KEPT]
    return [f"{site.name} is kept: {site.why}" for site in sites][:MOST]


def _summary(section: Section) -> Iterator[str]:
    if section.plan is not None:
        count = section.plan.batchnorms
        yield f"BatchNorms: {count.found} found, {count.folded} folded, {count.kept} kept"
    if section.verification is not None:
        yield section.verification.summary


def _command(kind: str, title: str, message: str) -> str:
    return f"::{kind} title={_property(title)}::{_data(message)}"


def _data(text: str) -> str:
    return visible(text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A"))


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
