"""docs/rules.md is what the docstrings and reasons say; docs/architecture.md lists the tree."""

from __future__ import annotations

import re

import pytest

from bnfold.algebra.refusal import Reason
from bnfold.algebra.rules import RULES
from docs.catalogue import PAGE, page
from tests.conftest import ROOT

WRITTEN = PAGE.read_text(encoding="utf-8")


def test_the_page_is_up_to_date() -> None:
    assert page() == WRITTEN, "python -m docs.catalogue writes it anew"


def test_every_kind_of_op_has_a_chapter() -> None:
    chapters = re.findall(r"^## (.+)$", WRITTEN, re.MULTILINE)
    assert {op.__name__ for op in RULES} <= {name for each in chapters for name in each.split(", ")}
    assert {"Merging", "Rounding"} <= set(chapters)


@pytest.mark.parametrize("reason", Reason, ids=str)
def test_a_reason_is_explained_once(reason: Reason) -> None:
    assert WRITTEN.count(f"\n### {reason}\n") == 1
    flat = " ".join(WRITTEN.split())
    remedy = reason.remedy.format(node="`NODE`")
    assert f"{reason.meaning} Example: {reason.example}. To fold it: {remedy}." in flat


def test_every_link_within_the_page_leads_somewhere() -> None:
    headings = re.findall(r"^#+ (.+)$", WRITTEN, re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}
    links = set(re.findall(r"\]\(#([^)]+)\)", WRITTEN))
    assert links
    assert links <= anchors


def test_a_chapter_names_the_reasons_that_its_rules_give() -> None:
    (conv,) = re.findall(r"^## Conv\n(.+?)^## ", WRITTEN, re.MULTILINE | re.DOTALL)
    reasons = set(re.findall(r"\(#([^)]+)\)", conv))
    assert {"unknown-shape", "wrong-axis", "zero-padding", "partial-taps"} <= reasons
    assert not {"negative-scale", "other-operand", "not-linear"} & reasons


def test_the_listing_of_the_architecture_is_the_tree() -> None:
    """Every module and folder of bnfold, and every module of the algebra; nothing that is gone."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    (listing,) = re.findall(r"^```text\nbnfold/\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    listed = set(re.findall(r"[\w]+(?:\.py|/)(?=\s)", listing))
    package = ROOT / "bnfold"
    modules = {path.name for path in (*package.glob("*.py"), *package.glob("algebra/*.py"))}
    folders = {f"{path.parent.name}/" for path in package.glob("*/__init__.py")}
    within = {path.name for path in package.rglob("*.py")}
    assert (modules | folders) - listed == {"__init__.py", "__main__.py"}
    assert {name for name in listed if name.endswith(".py")} <= within
    assert {name for name in listed if name.endswith("/")} <= folders | {"rules/", "meaning/"}
