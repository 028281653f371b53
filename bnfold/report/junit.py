"""JUnit XML, as CI systems read it: a suite for each section, a test case for each check."""

from __future__ import annotations

import re
from collections.abc import Sequence
from xml.etree import ElementTree

from bnfold.report.document import Check, Document, visible

_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML 1.0 cannot hold, not even escaped."""


def render(document: Document) -> str:
    """`testsuites`, which sums up, and in it one `testsuite` for each section."""
    seconds = sum(duration for _, duration in document.stages)
    suites = [
        (section.name or document.source or document.title, list(section.all_checks()))
        for section in document.sections
    ]
    root = ElementTree.Element("testsuites", name=_clean(document.title), time=f"{seconds:.3f}")
    for name, checks in suites:
        root.append(_suite(f"{document.title} {name}", checks))
    if document.failure is not None:
        root.append(_error(document))
    for key in ("tests", "failures", "errors"):
        root.set(key, str(sum(int(suite.attrib[key]) for suite in root)))
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True)


def _suite(name: str, checks: Sequence[Check], errors: int = 0) -> ElementTree.Element:
    failures = sum(not check.passed for check in checks)
    suite = ElementTree.Element(
        "testsuite",
        name=_clean(name),
        tests=str(len(checks) + errors),
        failures=str(failures),
        errors=str(errors),
        skipped="0",
    )
    for check in checks:
        case = ElementTree.SubElement(
            suite, "testcase", classname=_clean(f"{name} {check.place}"), name=_clean(check.name)
        )
        if check.why is not None:
            said = f"{check.why}\n{check.detail}" if check.detail else check.why
            failure = ElementTree.SubElement(
                case, "failure", message=_clean(check.why), type="gate"
            )
            failure.text = _clean(said)
        elif check.detail:
            ElementTree.SubElement(case, "system-out").text = _clean(check.detail)
    return suite


def _error(document: Document) -> ElementTree.Element:
    assert document.failure is not None
    failure = document.failure
    suite = _suite(document.title, (), errors=1)
    case = ElementTree.SubElement(
        suite, "testcase", classname=_clean(document.title), name=f"exit code {failure.code}"
    )
    error = ElementTree.SubElement(
        case, "error", message=_clean(failure.message), type=failure.kind
    )
    error.text = _clean("\n".join(filter(None, (failure.message, failure.hint))))
    return suite


def _clean(text: str) -> str:
    return _NOT_XML.sub(lambda found: f"\\x{ord(found[0]):02x}", visible(text))
