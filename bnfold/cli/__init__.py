"""The command line: parse, call, report, exit. No model is touched here, no number computed."""

from __future__ import annotations

import signal
import sys

import click

from bnfold.cli import bench, build, doctor, export, fold, golden, inspect, verify
from bnfold.cli.session import Stop, run_guarded

EPILOG = """\b
Exit codes: 0 passed, 1 a gate failed, 2 usage, 3 model refused or unreadable,
4 the environment lacks something, 5 export or internal failure, 130 interrupted.
"""


@click.group(epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="bnfold")
def commands() -> None:
    """Turn a trained PyTorch or ONNX model into the one that should be deployed.

    Folds every BatchNorm and other affine that algebra allows into the weights around it, exports,
    and proves by measurement that nothing changed.

    \b
    bnfold fold model.pt --input 1x3x224x224
    bnfold export model.pt --to onnx --input 1x3x224x224
    bnfold verify model.pt model.onnx --input 1x3x224x224
    """


for command in (
    fold.fold,
    export.export,
    verify.verify,
    golden.golden,
    bench.bench,
    build.build,
    inspect.inspect,
    doctor.doctor,
):
    commands.add_command(command)


def main() -> None:
    """Entry point of the `bnfold` command."""
    stop = Stop()
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name):  # not every system has each
            signal.signal(getattr(signal, name), stop)
    code = run_guarded(commands, stop)
    stop.finish(code)
    sys.exit(code)
