"""What a command line that needs no model costs: nothing but click."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import click
import pytest

import bnfold.cli
from bnfold.cli import COMMANDS, commands
from tests.conftest import ROOT

HEAVY = {"numpy", "rich", "torch", "onnx", "onnxruntime", "jinja2", "matplotlib"}


@pytest.mark.parametrize("argument", ["--version", "--help"])
def test_it_imports_neither_numbers_nor_colours(argument: str) -> None:
    code = (
        "import sys; from bnfold.cli import main; import atexit\n"
        "atexit.register(lambda: print(*sys.modules, file=sys.stderr))\n"
        f"sys.argv = ['bnfold', {argument!r}]; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0
    loaded = {name.partition(".")[0] for name in done.stderr.split()}
    assert "click" in loaded
    assert loaded & HEAVY == set()


def test_every_module_of_a_command_is_listed() -> None:
    found = set()
    for path in Path(bnfold.cli.__file__).parent.glob("*.py"):
        module = import_module(f"bnfold.cli.{path.stem}")
        if isinstance(getattr(module, path.stem, None), click.Command):
            found.add(path.stem)
    assert set(COMMANDS) == found


def test_the_help_has_every_command_on_one_line() -> None:
    with click.Context(commands, terminal_width=80) as context:
        lines = commands.get_help(context).splitlines()
    for name, line in COMMANDS.items():
        assert [each for each in lines if each.split()[:1] == [name]] == [f"  {name:<9}{line}"]


def test_a_command_that_does_not_exist_is_none() -> None:
    with click.Context(commands) as context:
        assert commands.get_command(context, "session") is None
