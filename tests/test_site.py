"""The site builds without a warning, has an entry for everything, and no link of it is broken."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from click import Context

import bnfold
from bnfold.cli import COMMANDS, commands
from tests.conftest import ROOT

for package in ("sphinx", "furo", "myst_parser", "sphinx_click"):
    pytest.importorskip(package, reason="pip install 'bnfold[docs]' brings what builds the site")


class Page(HTMLParser):
    """The links of a page, and the places in it that links can lead to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.anchors: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.anchors.add(given.get("id") or "")
        self.links.update(value for key in ("href", "src") if (value := given.get(key)))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Page]:
    """Every page of the site, built as `make docs` does."""
    (recipe,) = [
        line.split()[1:]
        for line in (ROOT / "Makefile").read_text().splitlines()
        if "sphinx-build" in line
    ]
    *options, folder = recipe
    assert folder == "build/site"
    place = tmp_path_factory.mktemp("site")
    ended = subprocess.run(
        [sys.executable, "-m", "sphinx", *options, str(place)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    return {path: Page(path) for path in place.rglob("*.html")}


def _broken(site: dict[Path, Page]) -> Iterator[str]:
    for path, page in site.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.is_file() or (
                parts.fragment and target in site and parts.fragment not in site[target].anchors
            ):
                yield f"{path.name}: {link}"


def test_no_link_is_broken(site: dict[Path, Page]) -> None:
    assert len(site) > 10
    assert sorted(_broken(site)) == []


def test_a_broken_link_would_be_seen(site: dict[Path, Page], tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text('<a href="b.html"></a><a href="#there"></a><a href="#here">')
    (tmp_path / "a.html").open("a").write('<p id="here">')
    path = tmp_path / "a.html"
    assert sorted(_broken({path: Page(path)})) == ["a.html: #there", "a.html: b.html"]


def test_every_command_option_and_public_name_has_an_entry(site: dict[Path, Page]) -> None:
    pages = {path.name: page for path, page in site.items()}
    assert {f"bnfold.{name}" for name in bnfold.__all__} <= pages["python.html"].anchors
    for name in COMMANDS:
        command = commands.get_command(Context(commands), name)
        assert command is not None
        options = [o for p in command.params for o in p.opts if o.startswith("--")]
        assert {f"cmdoption-bnfold-{name}-{o.lstrip('-')}" for o in options} <= pages[
            "commands.html"
        ].anchors


def test_every_page_is_in_the_menu(site: dict[Path, Page]) -> None:
    (index,) = [page for path, page in site.items() if path.name == "index.html"]
    written = {f"{path.stem}.html" for path in (ROOT / "docs").glob("*.md")}
    assert written - {"index.html"} <= index.links
