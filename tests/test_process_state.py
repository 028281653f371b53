"""What a process has one of: changed by one thread at a time, and put back.

Threads meet at events, so that they overlap in the same way on every run.
"""

from __future__ import annotations

import logging
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import bnfold
from bnfold import Opening, process_state
from bnfold.errors import UntrustedError
from bnfold.formats.conversion import _LOGGERS
from bnfold.formats.opening import open_model
from bnfold.formats.pytorch.pickles import unpickle
from bnfold.process_state import alone, changed, in_turn, quiet
from bnfold.runtimes.torch_eager import full_float32, in_float64
from tests.formats.networks import trained

PATIENCE = 60
"""Seconds after which a test that waits has failed."""


class Watched:
    """The lock of the module, which tells when a thread comes to wait for it."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self.waiting = threading.Event()

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            self.waiting.set()
            assert self._lock.acquire(timeout=PATIENCE)

    def __exit__(self, *error: object) -> None:
        self._lock.release()


@pytest.fixture
def lock(monkeypatch: pytest.MonkeyPatch) -> Watched:
    watched = Watched()
    monkeypatch.setattr(process_state, "_TURN", watched)
    return watched


def state() -> dict[str, Any]:
    """What bnfold changes of a process."""
    return {
        "filters": list(warnings.filters),
        "levels": [logging.getLogger(name).level for name in _LOGGERS],
        "default type": torch.get_default_dtype(),
        "fast path": torch.backends.mha.get_fastpath_enabled(),
        "tf32": (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32),
        "safe globals": set(torch.serialization.get_safe_globals()),
        "recursion limit": sys.getrecursionlimit(),
        "streams": (sys.stdout, sys.stderr),
    }


def net() -> nn.Module:
    return trained(nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU()))


class TestOneAtATime:
    @pytest.mark.parametrize("change", [in_float64, full_float32, quiet, alone])
    def test_another_thread_waits_and_sees_what_was_before(
        self, change: Callable[[], AbstractContextManager[None]], lock: Watched
    ) -> None:
        before = state()
        seen: list[dict[str, Any]] = []

        def other() -> None:
            with alone():
                seen.append(state())

        with change():
            thread = threading.Thread(target=other)
            thread.start()
            assert lock.waiting.wait(PATIENCE)
            assert seen == []
        thread.join(PATIENCE)
        assert seen == [before]

    def test_verbs_wait(self, lock: Watched) -> None:
        """While one thread computes in float64, another must not make its model."""
        module = net()
        with ThreadPoolExecutor(1) as pool, in_float64():
            folding = pool.submit(bnfold.fold, module, "2x3x7x9")
            assert lock.waiting.wait(PATIENCE)
            assert not folding.done()
        result = folding.result(PATIENCE)
        assert result.passed
        types = {parameter.dtype for parameter in result.model.parameters()}
        assert types == {torch.float32}

    def test_every_verb_waits(self, lock: Watched) -> None:
        for verb in ("fold", "inspect", "export", "verify", "golden", "bench"):
            lock.waiting.clear()
            with ThreadPoolExecutor(1) as pool, alone():
                waiting = pool.submit(getattr(bnfold, verb))
                waits = lock.waiting.wait(PATIENCE)
            assert waits, verb
            with pytest.raises(TypeError, match="missing"):
                waiting.result(PATIENCE)


class TestPutBack:
    def test_nested(self) -> None:
        before = state()
        with quiet("torch"), in_float64(), full_float32(), in_float64(), quiet(*_LOGGERS):
            assert torch.get_default_dtype() is torch.float64
        assert state() == before

    @pytest.mark.parametrize("change", [in_float64, full_float32, quiet])
    def test_after_an_error(self, change: Callable[[], AbstractContextManager[None]]) -> None:
        before = state()
        with pytest.raises(ZeroDivisionError), change():
            raise ZeroDivisionError
        assert state() == before
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(state).result(PATIENCE) == before

    def test_what_was_changed_is_what_was_read(self) -> None:
        box = {"value": 1}
        with changed(lambda: box["value"], lambda value: box.update(value=value), 2):
            assert box == {"value": 2}
        assert box == {"value": 1}

    def test_a_function_in_turn_may_call_another(self) -> None:
        @in_turn
        def inner(x: int) -> int:
            return x + 1

        @in_turn
        def outer(x: int) -> int:
            return inner(x) * 2

        assert outer(1) == 4

    def test_after_every_verb(self, tmp_path: Path) -> None:
        before = state()
        module = net()
        bnfold.inspect(module, "2x3x7x9")
        bnfold.fold(module, "2x3x7x9", form="graph").save(tmp_path / "m.pt2")
        bnfold.export(module, "2x3x7x9", to=("onnx", "torchscript"))
        bnfold.fold(tmp_path / "m.pt2")
        torch.save(module, tmp_path / "m.pt")
        bnfold.fold(tmp_path / "m.pt", "2x3x7x9").save(tmp_path / "folded.pt")
        assert state() == before


class Slow(nn.Module):
    """A class that the user has to allow; making one waits until it may go on."""

    made = threading.Event()
    go_on = threading.Event()

    def __init__(self) -> None:
        super().__init__()
        self.c = nn.Conv2d(3, 2, 1)

    def __setstate__(self, given: dict[str, Any]) -> None:
        super().__setstate__(given)
        Slow.made.set()
        assert Slow.go_on.wait(PATIENCE)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c(x)


@contextmanager
def told(kind: Any) -> Iterator[None]:
    """The caller has told torch itself that a class is safe."""
    torch.serialization.add_safe_globals([kind])
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()


class TestWhatIsAllowed:
    ALLOWED = Opening(allow=(f"{__name__}.Slow",))

    def test_it_is_allowed_to_one_caller(self, tmp_path: Path, lock: Watched) -> None:
        torch.save(Slow(), tmp_path / "m.pt")
        Slow.made.clear()
        Slow.go_on.clear()
        with ThreadPoolExecutor(2) as pool:
            allowed = pool.submit(open_model, tmp_path / "m.pt", self.ALLOWED)
            assert Slow.made.wait(PATIENCE)  # it is being built, and allowed
            refused = pool.submit(open_model, tmp_path / "m.pt")
            other = pool.submit(unpickle, _weights(tmp_path))
            assert lock.waiting.wait(PATIENCE)
            assert not other.done()
            Slow.go_on.set()
            assert isinstance(allowed.result(PATIENCE).native, Slow)
            assert isinstance(other.result(PATIENCE), dict)
            with pytest.raises(UntrustedError):
                refused.result(PATIENCE)

    def test_nothing_stays_allowed(self, tmp_path: Path) -> None:
        torch.save(Slow(), tmp_path / "m.pt")
        Slow.go_on.set()
        before = state()
        open_model(tmp_path / "m.pt", self.ALLOWED)
        assert state() == before

    def test_what_the_caller_has_told_torch_stays(self, tmp_path: Path) -> None:
        torch.save(Slow(), tmp_path / "m.pt")
        Slow.go_on.set()
        with told((Slow, f"{__name__}.Slow")):
            before = state()
            open_model(tmp_path / "m.pt", self.ALLOWED)
            assert state() == before


def _weights(folder: Path) -> Path:
    torch.save({"w": torch.ones(2)}, folder / "weights.pt")
    return folder / "weights.pt"


def test_modules_fold_in_several_threads(tmp_path: Path) -> None:
    """All at once: two of the same module, one of a file, one to a graph."""
    module, other = net(), net()
    bnfold.fold(other, "2x3x7x9", form="graph").save(tmp_path / "m.pt2")
    before = {name: value.clone() for name, value in module.state_dict().items()}
    given = state()
    start = threading.Barrier(4)

    def folding(source: Any, form: Any) -> Any:
        start.wait(PATIENCE)
        return bnfold.fold(source, "2x3x7x9", form=form)

    sources = [
        (module, "module"),
        (module, "graph"),
        (other, "module"),
        (tmp_path / "m.pt2", "auto"),
    ]
    with ThreadPoolExecutor(4) as pool:
        results = [each.result(240) for each in [pool.submit(folding, *s) for s in sources]]
    assert all(result.passed for result in results)
    assert state() == given
    for name, value in module.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), before[name].numpy())
