"""The command line: parse, call, report, exit. No model is touched here, no number computed."""

from __future__ import annotations

import signal
import sys
from importlib import import_module

import click

from bnfold import __version__
from bnfold.cli.session import Stop, run_guarded

EPILOG = """\b
Exit codes: 0 passed, 1 a gate failed, 2 usage, 3 model refused or unreadable,
4 the environment lacks something, 5 export or internal failure, 130 interrupted.
"""


COMMANDS = {
    "fold": "Fold every affine of a model into its weights, and verify it.",
    "export": "Convert, fold and simplify a model, and verify each result.",
    "verify": "Is one model the same function as another? Exit 1 if not.",
    "prove": "Is one ONNX model the same function for every input? Nothing runs.",
    "inspect": "Say what fold would do with every affine, and why.",
    "bench": "Measure latency, load time, memory and size, side by side.",
    "golden": "Record what a model computes, to verify others where it is not.",
    "build": "Bring the models of a pipeline file up to date.",
    "doctor": "Show versions, which providers load, and how to mend the rest.",
}
"""Every command with its line in the help; it lies in the module of its name."""


class _OnDemand(click.Group):
    """Imports the module of a command when the command is used, not to list it."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command: click.Command = getattr(import_module(f"bnfold.cli.{name}"), name)
        return command

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=_OnDemand, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="bnfold")
def commands() -> None:
    """Turn a trained PyTorch or ONNX model into the one that should be deployed.

    Folds every BatchNorm and other affine that algebra allows into the weights around it, exports,
    and proves by measurement that nothing changed.

    \b
    bnfold fold model.pt --input 1x3x224x224
    bnfold export model.pt --to onnx --input 1x3x224x224
    bnfold verify model.pt model.onnx --input 1x3x224x224
    """


def main() -> None:
    """Entry point of the `bnfold` command."""
    stop = Stop()
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name):  # not every system has each
            signal.signal(getattr(signal, name), stop)
    code = run_guarded(commands, stop)
    stop.finish(code)
    sys.exit(code)
