"""Work in a process that its parent watches: what happens to it is a sentence, or one lost run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

START = """
import ctypes, os, signal, sys, tempfile, time
import numpy as np
from bnfold.cli.session import Stop
from bnfold.errors import BnfoldError
from bnfold.processes import supervision, watch
from bnfold.processes.child import RunLostError
from bnfold.processes.supervision import finish, running, step
from bnfold.processes.watch import supervised

class Net:
    name = "cpu"

    @supervision.watched
    def __call__(self, sample):
        act(sample)
        return dict(sample)

def act(sample):
    pass

def say(*words):
    print(*words, flush=True)

for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, Stop())
try:
    supervised("net.onnx", float(sys.argv[1]) or None)
except watch.Finished as finished:
    sys.exit(finished.code)
except KeyboardInterrupt:
    sys.exit(130)
except BnfoldError as error:
    say(f"lost: {error}; {error.hint}")
    sys.exit(error.exit_code)
"""

SAMPLES = """
net = Net()
for value in range(4):
    try:
        net({"x": np.full(2, value)})
        say("ran", value)
    except RunLostError as error:
        say(value, error)
finish(0)
"""


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    seconds: float


def started(work: str, timeout: float = 0, folder: Path | None = None) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-c", START + work, str(timeout)],
        stdout=subprocess.PIPE,
        text=True,
        env=environment | ({} if folder is None else {"TMPDIR": str(folder)}),
    )


def ended(work: str, timeout: float = 0, folder: Path | None = None) -> Ended:
    start = time.monotonic()
    process = started(work, timeout, folder)
    out, _ = process.communicate(timeout=120)
    return Ended(process.returncode, out, time.monotonic() - start)


def gone(pid: int) -> bool:
    """Whether the process has ended, soon."""
    for _ in range(200):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.05)
    return False


def test_a_run_that_crashes_is_lost_and_the_others_are_not() -> None:
    """Each child begins again; the last of them gets to the end."""
    act = """
def act(sample):
    if sample["x"][0] in (1, 3):
        os.kill(os.getpid(), signal.SIGFPE)
"""
    found = ended(act + SAMPLES)
    assert found.code == 0
    last = found.out.splitlines()[-4:]
    assert [last[0], last[2]] == ["ran 0", "ran 2"]
    assert last[1] == "1 its process ended by signal 8 (SIGFPE)"
    assert last[3] == "3 its process ended by signal 8 (SIGFPE)"


def test_a_second_model_on_the_same_input_is_not_taken_for_the_first() -> None:
    """Else a candidate that crashes would look like an original that does, and be left out."""
    work = """
class Crashes(Net):
    @supervision.watched
    def __call__(self, sample):
        ctypes.string_at(0)

for net in (Net(), Crashes()):
    try:
        net({"x": np.zeros(2)})
        say("ran")
    except RunLostError as error:
        say(error)
finish(7)
"""
    found = ended(work)
    assert found.code == 7
    assert found.out.splitlines()[-2:] == ["ran", "its process ended by signal 11 (SIGSEGV)"]


def test_nor_is_one_that_comes_after_others_have_gone() -> None:
    work = """
class Crashes(Net):
    @supervision.watched
    def __call__(self, sample):
        ctypes.string_at(0)

first, original = Net(), Net()
first({"x": np.ones(2)})
original({"x": np.ones(2)})
del first
for net in (original, Crashes()):
    try:
        net({"x": np.zeros(2)})
        say("ran")
    except RunLostError as error:
        say(error)
finish(0)
"""
    found = ended(work)
    assert found.out.splitlines()[-2:] == ["ran", "its process ended by signal 11 (SIGSEGV)"]


def test_a_run_inside_of_another_is_a_part_of_it() -> None:
    work = """
outer, inner = Net(), Net()

def act(sample):
    if "y" in sample:
        os.abort()
    inner({"y": sample["x"]})

try:
    outer({"x": np.zeros(2)})
except RunLostError as error:
    say("the outer one is lost")
finish(0)
"""
    found = ended(work)
    assert (found.code, found.out) == (0, "the outer one is lost\n")


@pytest.mark.parametrize(
    ("work", "said"),
    [
        (
            "step('read'); ctypes.string_at(0)",
            "net.onnx: its process ended by signal 11 (SIGSEGV) at 'read'; None",
        ),
        ("os._exit(0)", "net.onnx: its process ended with exit code 0; None"),
        ("sys.exit(0)", "net.onnx: its process ended with exit code 0; None"),
        (
            "os.kill(os.getpid(), signal.SIGKILL)",
            "ended by signal 9 (SIGKILL); it may have run out of memory",
        ),
    ],
    ids=["crashes outside of a run", "leaves", "exits", "is killed"],
)
def test_what_else_becomes_of_it_is_told(work: str, said: str) -> None:
    found = ended(work)
    assert found.code == 3
    assert said in found.out


def test_a_kill_in_a_run_is_not_tried_again() -> None:
    act = """
def act(sample):
    say("here")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    found = ended(act + SAMPLES)
    assert found.code == 3
    assert found.out.count("here") == 1


@pytest.mark.parametrize(("harmless", "begun"), [(0, 5), (1, 25)])
def test_a_model_that_always_crashes_is_given_up(harmless: int, begun: int) -> None:
    """The sooner if not one run of it has come to its end."""
    work = f"""
net = Net()

def act(sample):
    if sample["x"][0] >= {harmless}:
        os.abort()

say("begun")
for value in range(1000):
    try:
        net({{"x": np.full(2, value)}})
    except RunLostError:
        pass
finish(0)
"""
    found = ended(work)
    assert found.code == 3
    assert "again and again" in found.out
    assert found.out.count("begun") == begun


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits memory alone")
def test_to_open_a_file_takes_no_more_memory_than_it_explains() -> None:
    work = """
def load(size):
    try:
        with supervision.loading(size):
            np.ones(1 << 30, np.uint8)
        say(size, "opened")
    except MemoryError:
        say(size, "no memory")

load(1 << 10)
load(1 << 24)
np.ones(1 << 30, np.uint8)
finish(0)
"""
    found = ended(work)
    assert (found.code, found.out) == (0, "1024 no memory\n16777216 opened\n")


def test_who_keeps_the_time_may_change() -> None:
    work = "supervision.unlimited(); time.sleep(3); finish(0)"
    assert ended(work, timeout=1).code == 0


def test_what_is_held_together_is_waited_for() -> None:
    """Another interrupt reaches the child, which may be waiting for others to end."""
    work = """
supervision.hold(True)
try:
    say(os.getpid())
    time.sleep(600)
except KeyboardInterrupt:
    pass
try:
    time.sleep(3)
    say("whole")
    time.sleep(600)
except KeyboardInterrupt:
    say("asked again")
supervision.hold(False)
finish(130)
sys.exit(130)
"""
    process = started(work)
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "whole\n"
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "asked again\n")


APART = """
def work():
    {0}
    return [1, 2]

try:
    say(watch.apart(work, "m.onnx", 1))
except BnfoldError as error:
    say(error)
except KeyboardInterrupt:
    say("stopped")
finish(0)
"""


@pytest.mark.parametrize(
    ("done", "said"),
    [
        ("pass", "[1, 2]"),
        ("os.abort()", "m.onnx: its process ended by signal 6 (SIGABRT)"),
        ("os._exit(7)", "m.onnx: its process ended with exit code 7"),
        ("time.sleep(600)", "m.onnx did not get anywhere within 1 s"),
        ("raise KeyboardInterrupt", "stopped"),
    ],
)
def test_work_that_is_done_apart(done: str, said: str) -> None:
    found = ended(APART.format(done))
    assert (found.code, found.out) == (0, f"{said}\n")


@pytest.mark.parametrize(
    "work",
    ["step('plan'); time.sleep(600)", "def act(sample): time.sleep(600)\n" + SAMPLES],
    ids=["step", "run"],
)
def test_what_takes_too_long_is_ended(work: str) -> None:
    found = ended(work, timeout=1)
    assert found.code == 3
    assert "within 1 s" in found.out
    assert "--timeout" in found.out
    assert found.seconds < 60


def test_steps_have_the_time_each() -> None:
    """Three seconds of work, of which no step takes two."""
    work = "for name in 'abc': step(name); time.sleep(1)\nfinish(0)"
    assert ended(work, timeout=2).code == 0


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits memory alone")
@pytest.mark.parametrize(("name", "ran"), [("cpu", False), ("cuda", True)])
def test_a_run_takes_no_more_memory_than_its_model_explains(name: str, ran: bool) -> None:
    """What a device's driver sets apart is not counted."""
    work = f"""
Net.name = "{name}"

def act(sample):
    np.ones(1 << 30, np.uint8)

try:
    Net()({{"x": np.zeros(2)}})
    say("ran")
except MemoryError:
    say("no memory")
np.ones(1 << 30, np.uint8)
supervision.opened(1 << 20)
Net()({{"x": np.zeros(2)}})
finish(0)
"""
    found = ended(work)
    assert (found.code, found.out) == (0, "ran\n" if ran else "no memory\n")


def test_nothing_is_left_of_a_child(tmp_path: Path) -> None:
    work = """
open(tempfile.mkstemp()[0], "w").write("left")
os.kill(os.getpid(), signal.SIGSEGV)
"""
    assert ended(work, folder=tmp_path).code == 3
    assert list(tmp_path.iterdir()) == []


CHILD = """
try:
    say(os.getpid())
    time.sleep(600)
except KeyboardInterrupt:
    say("cleared up")
    finish(130)
    sys.exit(130)
"""
STUBBORN = """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
say(os.getpid())
time.sleep(600)
"""


SLOW = CHILD.replace("KeyboardInterrupt:", "KeyboardInterrupt:\n    time.sleep(3)")
ENDLESS = CHILD.replace("KeyboardInterrupt:", "KeyboardInterrupt:\n    time.sleep(600)")


@pytest.mark.parametrize(
    ("work", "told"),
    [(CHILD, "cleared up\n"), (SLOW, "cleared up\n"), (ENDLESS, ""), (STUBBORN, "")],
    ids=["clears up", "takes its time for that", "takes all time", "says nothing"],
)
def test_an_interrupt_takes_effect_at_once(work: str, told: str) -> None:
    process = started(work)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    start = time.monotonic()
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert time.monotonic() - start < 30  # a second, on a machine that is idle
    assert (process.returncode, out) == (130, told)
    assert gone(child)


def test_what_an_interrupt_cuts_short_is_passed_over() -> None:
    work = """
os.write(supervision._channel.pipe, b'["result", "6')
finish(7)
"""
    assert ended(work).code == 7


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a child with its parent")
def test_a_child_ends_with_its_parent() -> None:
    process = started(STUBBORN)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    process.kill()
    process.communicate(timeout=60)
    assert gone(child)
