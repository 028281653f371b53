"""Each rendering of one document, and what hostile names cannot do to it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from xml.etree import ElementTree

import pytest

from bnfold.errors import Failure, ModelError, UsageError
from bnfold.protocol import DEFAULT
from bnfold.report import github, junit, markdown, text
from bnfold.report.document import Check, Document, Section, Table, failed
from bnfold.report.rendering import STYLES, SUFFIXES, check_report, render_document
from bnfold.verbs.results import Artefact
from bnfold.verification import Verification

NASTY = 'a|b\n::stop-commands::x %0A <b>&amp;\x00\x1b[31m\ud800 ]]> "quoted", it\'s: 100%'
ARTEFACT = Artefact(None, "onnx", None)

PARTS: Mapping[str, tuple[set[str], set[str], set[str]]] = {
    "testsuites": ({"name", "time", "tests", "failures", "errors"}, set(), {"testsuite"}),
    "testsuite": (
        {"name", "tests", "failures", "errors", "skipped"},
        {"name", "tests", "failures", "errors"},
        {"testcase"},
    ),
    "testcase": (
        {"name", "classname"},
        {"name", "classname"},
        {"failure", "error", "system-out"},
    ),
    "failure": ({"message", "type"}, {"message", "type"}, set()),
    "error": ({"message", "type"}, {"message", "type"}, set()),
    "system-out": (set(), set(), set()),
}
"""Element -> attributes, required ones, children: the part of the common schema that is used."""


def document(*checks: Check, name: str = "part", title: str = "bnfold verify") -> Document:
    table = Table(("what", "how many"), (("things", "3"),), numeric=frozenset({"how many"}))
    section = Section(
        name, checks=checks, tables=(table,), notes=("noted",), artefact=ARTEFACT, lines=("first",)
    )
    return Document(title, "net.onnx", (section,), {"verdict": "fail"}, (("open", 0.25),))


def mixed() -> Document:
    return document(
        Check("cpu", "y: noise", detail="ratio 1.2"),
        Check("cpu", "y: ones", "its error is 9 times the floor", "ratio 9"),
        Check("cpu", "y: zeros", "its error is 10 times the floor"),
        Check("cuda", "y: ones", "it has NaN"),
    )


def parsed(rendered: str) -> ElementTree.Element:
    """The root of valid JUnit XML, held against the schema and its own sums."""
    root = ElementTree.fromstring(rendered)
    assert root.tag == "testsuites"
    for element in root.iter():
        allowed, required, children = PARTS[element.tag]
        assert required <= set(element.attrib) <= allowed
        assert {child.tag for child in element} <= children
    for part in (root, *root.iter("testsuite")):
        counts = [len(list(part.iter(tag))) for tag in ("testcase", "failure", "error")]
        assert [int(part.attrib[key]) for key in ("tests", "failures", "errors")] == counts
    assert re.fullmatch(r"\d+\.\d{3}", root.attrib["time"])
    return root


def test_junit_has_a_case_for_each_check() -> None:
    root = parsed(junit.render(mixed()))
    cases = [(case.attrib["name"], case.find("failure") is None) for case in root.iter("testcase")]
    assert cases == [
        ("y: noise", True),
        ("y: ones", False),
        ("y: zeros", False),
        ("y: ones", False),
    ]
    failure = next(root.iter("failure"))
    assert failure.attrib["message"] == "its error is 9 times the floor"
    assert failure.text == "its error is 9 times the floor\nratio 9"
    assert root.attrib["time"] == "0.250"


def test_junit_of_anything_is_xml() -> None:
    root = parsed(junit.render(document(Check(NASTY, NASTY, NASTY, NASTY), name=NASTY)))
    name = next(root.iter("testcase")).attrib["name"]
    assert "\\x00" in name
    assert "<b>&amp;" in name
    assert parsed(junit.render(failed(NASTY, Failure(3, "ModelError", NASTY, NASTY))))


def test_nothing_compared_is_a_failure_everywhere() -> None:
    empty = Document("bnfold verify", "m", (Section(verification=Verification(DEFAULT, ())),))
    assert (empty.passed, empty.verdict) == (False, "fail")
    assert len(list(parsed(junit.render(empty)).iter("failure"))) == 1
    assert github.render(empty).startswith("::error ")
    assert markdown.render(empty).startswith("## bnfold verify m: fail")


def test_an_error_is_no_pass_anywhere() -> None:
    told = failed("bnfold fold", Failure.of(ModelError("no such file", "look elsewhere")))
    assert (told.passed, told.verdict) == (False, "error")
    assert told.data["error"] == {
        "code": 3,
        "kind": "ModelError",
        "message": "no such file",
        "hint": "look elsewhere",
    }
    (error,) = parsed(junit.render(told)).iter("error")
    assert (error.attrib["message"], error.text) == ("no such file", "no such file\nlook elsewhere")
    assert github.render(told) == "::error title=bnfold fold::no such file%0Alook elsewhere"
    assert markdown.render(told) == (
        "## bnfold fold: error\n\n**error** no such file\n\nhint: look elsewhere"
    )
    assert text.render(told) == "error: no such file\nhint: look elsewhere"


def test_what_bnfold_did_not_raise_is_internal() -> None:
    failure = Failure.of(ValueError("first\nsecond"))
    assert failure.code == 5
    assert failure.message == "bnfold itself failed: ValueError: first"
    assert "--debug" in str(failure.hint)


def test_github_has_one_error_for_each_place_and_sums_up() -> None:
    lines = github.render(mixed()).splitlines()
    assert lines == [
        "::error title=bnfold verify net.onnx::part: cpu, y: ones: "
        "its error is 9 times the floor (and 1 more on cpu)",
        "::error title=bnfold verify net.onnx::part: cuda, y: ones: it has NaN",
        "::notice title=bnfold verify net.onnx::part; not written",
    ]


def test_github_escapes_what_would_be_a_command() -> None:
    title = "a,b:c%\n::d"
    (error, notice) = github.render(document(Check("p", "n", NASTY), title=title)).splitlines()
    assert error.startswith("::error title=a%2Cb%3Ac%25%0A%3A%3Ad net.onnx::part: p, n: a|b%0A")
    assert "%250A" in error
    assert error.endswith("100%25")
    assert notice.startswith("::notice title=a%2Cb%3Ac%25%0A%3A%3Ad net.onnx::")


def test_github_keeps_to_ten_errors() -> None:
    checks = [Check(f"place {i}", "y", "wrong") for i in range(25)]
    assert github.render(document(*checks)).count("::error") == 10


def test_markdown_shows_names_as_they_are() -> None:
    table = Table(("a|b",), ((NASTY,),))
    shown = markdown.render(Document("t", sections=(Section(tables=(table,)),)))
    lines = shown.splitlines()
    assert len(lines) == 5
    assert lines[-1].startswith(r"| a\|b ::stop-commands::x %0A \<b>&amp;")


def test_markdown_aligns_numbers_and_says_what_became_of_it() -> None:
    shown = markdown.render(mixed())
    assert "| what | how many |\n| --- | ---: |\n| things | 3 |" in shown
    assert shown.startswith("## bnfold verify net.onnx: fail\n\n### part\n\nfirst\n\n")
    assert shown.endswith("- note: noted\n\nnot written")


def test_text_has_all_parts_in_order() -> None:
    told = text.render(mixed()).split("\n")
    table = ["what    how many", "things         3"]
    assert told == ["part", "first", "note: noted", "", *table, "not written"]


@pytest.mark.parametrize("style", sorted({*STYLES, *SUFFIXES.values()}))
def test_every_rendering_takes_every_document(style: str) -> None:
    for each in (mixed(), document(), failed("t", Failure(2, "UsageError", "no"))):
        assert render_document(each, style)


def test_a_report_is_checked_before_any_work(tmp_path: Path) -> None:
    check_report(tmp_path / "r.xml")
    with pytest.raises(UsageError, match=r"no report ends in '\.doc'"):
        check_report(tmp_path / "r.doc")
    check_report(tmp_path / "new" / "r.xml")
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="file is no folder"):
        check_report(tmp_path / "file" / "r.xml")


@pytest.mark.parametrize("style", ["text", "markdown", "github"])
def test_no_name_can_move_the_cursor(style: str) -> None:
    shown = render_document(document(Check("cpu", NASTY, NASTY), name=NASTY, title=NASTY), style)
    assert not set(shown) & {"\x00", "\x1b", "\r", "\b", "\x9b"}
