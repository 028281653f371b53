"""The command as users start it, on models that crash, hang or take all memory where they run.

Each ends with a sentence, and neither its time nor its memory grows with what the model asks for.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from tests.conftest import CHECKPOINTS, ROOT
from tests.formats.networks import trained
from tests.formats.onnx_nets import Net
from tests.formats.test_onnx_bounds import GIGABYTES, LARGE, after_conv, node
from tests.processes.test_child import FOREVER, VAST, saved

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="measures as Linux does")

SECONDS, MEGABYTES = 60, 1300
"""Ten seconds and 1 GB on an idle machine, with room for a busy one."""


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str
    seconds: float
    megabytes: float


MEASURED = """
import os, subprocess, sys
process = subprocess.Popen(sys.argv[2:])
_, status, usage = os.wait4(process.pid, 0)
with open(sys.argv[1], "w") as told:
    told.write(f"{os.waitstatus_to_exitcode(status)} {usage.ru_maxrss}")
"""
"""Linux counts what the process that starts another held as the other's: so a small one does."""


def run(*arguments: object, folder: Path) -> Ended:
    """`python -m bnfold`, with the most memory that any process of it held."""
    start = time.monotonic()
    command = [sys.executable, "-m", "bnfold", *map(str, arguments)]
    with (folder / "out").open("w+") as out, (folder / "err").open("w+") as err:
        subprocess.run(
            [sys.executable, "-I", "-S", "-c", MEASURED, folder / "usage", *command],
            stdout=out,
            stderr=err,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            check=True,
        )
        told = [file.seek(0) or file.read() for file in (out, err)]
    seconds = time.monotonic() - start
    code, kilobytes = map(int, (folder / "usage").read_text().split())
    return Ended(code, told[0], told[1], seconds, kilobytes / 1024)


def written(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.name not in ("out", "err", "usage"))


class Rated(nn.Module):
    """What its number divides by may not be 0: that is a signal, not an exception."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor, rate: torch.Tensor) -> torch.Tensor:
        if 16000 % int(rate[0]) != 0:
            raise ValueError("only divisors of 16000")
        return self.bn(self.conv(x))


@pytest.fixture(scope="module")
def rated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with such a module, and an input of it."""
    folder = tmp_path_factory.mktemp("rated")
    torch.jit.script(trained(Rated())).save(folder / "rated.pt")
    x = np.random.default_rng(0).standard_normal((1, 3, 9, 7)).astype(np.float32)
    np.savez(folder / "rate.npz", x=x, rate=np.array([16000]))
    return folder


def test_an_original_that_crashes_on_a_probe_folds(rated: Path, tmp_path: Path) -> None:
    made = tmp_path / "made.pt"
    found = run(
        *("fold", rated / "rated.pt", "--inputs", rated / "rate.npz", "-o", made, "--format"),
        *("markdown",),
        folder=tmp_path,
    )
    assert found.code == 0, found.err
    assert "is left out: the original does not run on it: its process ended by" in found.out
    assert made.exists()


COMMANDS: dict[str, Sequence[str]] = {
    "fold": ("-o", "r.onnx", "--verify-anyway"),
    "export": ("-o", "r.onnx"),
    "golden": ("-o", "r.npz"),
    "bench": ("--rounds", "1", "--warmup", "0"),
    "inspect": (),
    "verify": (),
}


def command(name: str, model: Path, *more: object) -> list[object]:
    options = [model.parent / each if each[:2] == "r." else each for each in COMMANDS[name]]
    return [name, model, *([model] if name == "verify" else ()), *options, *more]


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("text", [FOREVER, VAST], ids=["hangs", "takes all memory"])
def test_what_only_running_tells(name: str, text: str, tmp_path: Path) -> None:
    """Nothing in the file gives it away, so time and memory have to."""
    model = saved(text, tmp_path / "model.onnx")
    found = run(*command(name, model, "--timeout", 3), folder=tmp_path)
    assert found.code == (0 if name == "inspect" else 3), found
    assert found.seconds < SECONDS, found
    assert found.megabytes < MEGABYTES, found
    assert written(tmp_path) == ["model.onnx"]
    assert "Traceback" not in found.err


@pytest.mark.parametrize("name", COMMANDS)
def test_what_the_file_tells(name: str, tmp_path: Path) -> None:
    onnx.save(GIGABYTES["Expand"], tmp_path / "model.onnx")
    found = run(*command(name, tmp_path / "model.onnx"), folder=tmp_path)
    assert found.code == 3, found
    assert "its values take 12.0 GB" in found.err
    assert found.seconds < SECONDS, found
    assert found.megabytes < MEGABYTES, found


def test_an_input_of_terabytes_is_refused(tmp_path: Path) -> None:
    net = Net()
    net.output(net.bn(net.input("x", 1 << 20, 3, 1 << 10, 1 << 10), 3))
    onnx.save(net.proto(), tmp_path / "model.onnx")
    found = run("fold", tmp_path / "model.onnx", "--verify-anyway", folder=tmp_path)
    assert found.code == 3, found
    assert "the input 'x' of 1048576x3x1024x1024 takes 13,194 GB" in found.err


class Hangs(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time.sleep(600)
        return x


class Vast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.bn(x) + torch.ones([3000000000]).sum()


class Leaves(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        sys.exit(0)


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (Hangs, "did not get past 'read' within 20 s"),
        (Vast, "you tried to allocate 12000000000 bytes"),
        (Leaves, "ends the program"),
    ],
)
def test_a_module_while_it_is_read(made: type[nn.Module], said: str, tmp_path: Path) -> None:
    torch.save(made().eval(), tmp_path / "m.pt")
    found = run(
        *("fold", tmp_path / "m.pt", "--trust", "--input", "2x3x5x7", "--timeout", 20),
        folder=tmp_path,
    )
    assert found.code in (2, 3), found
    assert said in found.err
    assert found.megabytes < MEGABYTES
    assert written(tmp_path) == ["m.pt"]


def test_without_isolation_it_is_the_command_that_crashes(rated: Path, tmp_path: Path) -> None:
    found = run(
        *("fold", rated / "rated.pt", "--inputs", rated / "rate.npz", "--no-isolation"),
        *("-o", tmp_path / "made.pt"),
        folder=tmp_path,
    )
    assert found.code == -signal.SIGFPE


def test_a_timeout_needs_isolation(tmp_path: Path) -> None:
    model = CHECKPOINTS / "placement.onnx"
    found = run("fold", model, "--no-isolation", "--timeout", 3, folder=tmp_path)
    assert found.code == 2
    assert "leave --no-isolation out" in found.err


def test_an_interrupt_is_told_once(tmp_path: Path) -> None:
    """By the process that was at work; its parent keeps quiet, and both are gone."""
    saved(FOREVER, tmp_path / "model.onnx")
    process = subprocess.Popen(
        [sys.executable, "-m", "bnfold", *command("fold", Path("model.onnx"), "--format", "json")],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )
    time.sleep(4)
    start = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert time.monotonic() - start < 30
    assert process.returncode == 130
    assert err.count("interrupted; nothing was written") == 1
    assert out.count('"Interrupted"') == 1
    assert os.listdir(tmp_path) == ["model.onnx"]


def test_geometry_that_no_runtime_takes(tmp_path: Path) -> None:
    model = after_conv(node("MaxPool", "z", kernel_shape=[LARGE, LARGE], pads=[LARGE - 1] * 4))
    onnx.save(model, tmp_path / "model.onnx")
    found = run("fold", tmp_path / "model.onnx", folder=tmp_path)
    assert found.code == 3, found
