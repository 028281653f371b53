"""A process of its own: whatever its object does, the caller gets a sentence, and never a pass."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import parser
from torch import nn

import bnfold as package
from bnfold.errors import ModelError, UsageError
from bnfold.formats.opening import Opening
from bnfold.processes.child import Process, ProcessLostError
from bnfold.protocol import Protocol
from bnfold.runtimes import Outputs, Sample
from bnfold.verification import Case, measure
from tests.conftest import CHECKPOINTS, Ended
from tests.processes.served import Object

ONNX = CHECKPOINTS / "placement.onnx"
ISOLATED = Protocol(isolate=True)


def lost(process: Process, method: str, *arguments: object) -> ProcessLostError:
    """The error of a request that loses the process, and of every other after it."""
    with pytest.raises(ProcessLostError) as caught:
        process.ask(method, *arguments)
    with pytest.raises(ProcessLostError) as again:
        process.ask("add", 1, 2)
    assert again.value is caught.value
    return caught.value


def test_it_answers_and_keeps_its_stdout_to_itself(capfd: pytest.CaptureFixture[str]) -> None:
    process = Process(Object, "net.onnx")
    assert process.ask("add", 1, 2) == 3
    assert process.ask("talk") == "done"
    assert process.ask("add", 3, 4) == 7
    process.close()
    assert capfd.readouterr().out == ""


def test_what_it_raises_is_told() -> None:
    process = Process(Object, "net.onnx")
    with pytest.raises(UsageError, match="not like this") as caught:
        process.ask("refuse")
    assert caught.value.hint == "like that"
    with pytest.raises(ModelError, match=r"^net\.onnx does not run: last$"):
        process.ask("fail")
    assert process.ask("add", 1, 1) == 2


@pytest.mark.parametrize(
    ("method", "arguments", "said", "hint"),
    [
        ("crash", [signal.SIGSEGV], r"signal 11 \(SIGSEGV\)", None),
        ("crash", [signal.SIGABRT], r"signal 6 \(SIGABRT\)", None),
        ("crash", [signal.SIGKILL], r"signal 9 \(SIGKILL\)", "it may have run out of memory"),
        ("read_nowhere", [], r"signal 11 \(SIGSEGV\)", None),
        ("end", [0], "exit code 0", None),
        ("end", [3], "exit code 3", None),
    ],
)
def test_a_lost_process_is_told(
    method: str, arguments: list[int], said: str, hint: str | None
) -> None:
    error = lost(Process(Object, "net.onnx"), method, *arguments)
    assert error.hint == hint
    with pytest.raises(ProcessLostError, match=rf"that runs net\.onnx ended (by|with) {said}"):
        raise error


def test_a_process_that_takes_too_long_is_ended() -> None:
    process = Process(Object, "net.onnx", timeout=5.0)
    assert process.ask("add", 1, 2) == 3
    child = process._child
    start = time.monotonic()
    error = lost(process, "hang")
    assert time.monotonic() - start < 60
    assert "net.onnx did not answer within 5 s" in str(error)
    assert child.poll() is not None


def test_it_ends_with_the_last_reference() -> None:
    process = Process(Object, "net.onnx")
    child = process._child
    assert child.poll() is None
    del process
    assert child.poll() is not None


class Ends(nn.Module):
    """Ends its process in the middle of a verification, as a crash of a runtime does."""

    def __init__(self, how: int, after: int = 3) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.how = how
        self.after = after

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.after -= 1
        if not self.after:
            os.kill(os.getpid(), self.how)
        return x * self.weight


class Same(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 1.0


@pytest.mark.parametrize(
    ("how", "passed"),
    [
        (signal.SIGSEGV, [True, True, False] * 3),  # it counts anew in a new process
        (signal.SIGKILL, [True, True] + [False] * 7),
    ],
)
def test_a_candidate_that_kills_its_process_fails(
    tmp_path: Path, how: int, passed: list[bool]
) -> None:
    """A crash ends that run; a kill, of which the next run may be as good a cause, all of them."""
    torch.save(Ends(how).eval(), tmp_path / "ends.pt")
    verdict = package.verify(
        Same().eval(),
        tmp_path / "ends.pt",
        "2x3",
        protocol=ISOLATED,
        opening=Opening(trust=True),
    )
    assert [row.passed for row in verdict.rows] == passed
    assert not verdict.passed
    whys = [row.why for row in verdict.rows if row.why]
    assert all(f"ended by signal {how:d}" in why for why in whys)


def test_a_candidate_that_crashes_while_it_is_opened_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The parent reads the file as well, so only its process is made to crash."""
    from bnfold.isolation import runners as isolated

    monkeypatch.setattr(isolated, "Served", Object)
    runners = isolated._isolated("net.onnx", ISOLATED, ("crash", signal.SIGSEGV))
    with pytest.raises(ProcessLostError, match="SIGSEGV"):
        runners[0]({"x": np.zeros(1)})


FOREVER = """
<ir_version: 8, opset_import: ["": 17]>
g (float[3, 4] x) => (float[3, 4] y)
<int64 most = {4611686018427387904}, bool go = {1}, int64 zero = {0}>
{
    y = Loop (most, go, x) <body = b (int64 i, bool c, float[3, 4] v) => (bool d, float[3, 4] w) {
        d = GreaterOrEqual(i, zero)
        w = Identity(v)
    }>
}
"""
VAST = """
<ir_version: 8, opset_import: ["": 17]>
g (float[3, 4] x) => (float[3, 4] y)
<float[1] large = {1.0e12}>
{
    some = ReduceMax <keepdims = 0> (x)
    size = Abs(some)
    more = Add(size, large)
    shape = Cast <to = 7> (more)
    many = ConstantOfShape(shape)
    sum = ReduceSum(many)
    y = Add(x, sum)
}
"""
PLAIN = """
<ir_version: 8, opset_import: ["": 17]>
g (float[3, 4] x) => (float[3, 4] y) { y = Identity(x) }
"""


def saved(text: str, path: Path) -> Path:
    path.write_bytes(parser.parse_model(text).SerializeToString())
    return path


@pytest.mark.parametrize(
    ("text", "said"),
    [(FOREVER, "did not answer within 4 s"), (VAST, "does not run")],
    ids=["hangs", "takes too much memory"],
)
def test_a_candidate_that_never_ends_or_takes_all_memory_fails(
    bnfold: object, tmp_path: Path, text: str, said: str
) -> None:
    assert callable(bnfold)
    reference, candidate = (
        saved(PLAIN, tmp_path / "plain.onnx"),
        saved(text, tmp_path / "candidate.onnx"),
    )
    ended: Ended = bnfold("verify", reference, candidate, "--timeout", 4, "--format", "json")
    assert ended.code == 1, ended
    assert ended.json["verdict"] == "fail"
    assert all(said in case["why"] for case in ended.json["verification"]["cases"])


def test_an_original_that_is_lost_is_no_verdict(tmp_path: Path) -> None:
    with pytest.raises(ProcessLostError, match="did not answer within 2 s"):
        package.verify(
            saved(FOREVER, tmp_path / "f.onnx"),
            saved(PLAIN, tmp_path / "p.onnx"),
            protocol=Protocol(isolate=True, timeout=2.0),
        )


def test_an_original_that_is_lost_on_a_later_case_is_no_verdict() -> None:
    """What was measured until then must not pass for the whole."""

    class Lost:
        name, input_names = "cpu", ("x",)

        def __call__(self, sample: Sample) -> Outputs:
            if sample["x"].any():
                raise ProcessLostError("the process ended")
            return dict(sample)

    cases = [
        Case(name, {"x": np.full(2, value)}) for name, value in (("zeros", 0.0), ("ones", 1.0))
    ]
    with pytest.raises(ProcessLostError):
        measure(None, [Lost()], cases, Protocol())


def test_isolated_runs_are_the_same_as_others() -> None:
    apart, here = (
        package.verify(ONNX, ONNX, protocol=Protocol(isolate=isolate)) for isolate in (True, False)
    )
    assert [row.cells() for row in apart.rows] == [row.cells() for row in here.rows]


def test_a_timeout_needs_a_process() -> None:
    with pytest.raises(UsageError, match="cannot be kept"):
        Protocol(timeout=3.0)
    with pytest.raises(UsageError, match="cannot be kept"):
        Protocol(isolate=True, timeout=0.0)
