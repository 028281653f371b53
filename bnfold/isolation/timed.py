"""A model in a process of its own, which loads it, runs it on request, and tells time and memory.

The peak of memory is then the model's own, and models take turns without sharing threads or caches
of a runtime. Threads that wait sleep: if they spun, they would slow the model whose turn it is; and
their own a hundred times on a busy machine, where a thread waits for one that does not run.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from bnfold.formats.model import OF_TORCH, Format
from bnfold.formats.opening import Opening, open_model
from bnfold.processes.child import Process
from bnfold.processes.memory import limit_growth
from bnfold.processes.supervision import memory_of_run
from bnfold.runtimes import RunnerOf, Sample, TimedRunner
from bnfold.runtimes.samples import matched


@dataclass(frozen=True, slots=True)
class Job:
    """What to load, and where it runs with how many threads."""

    path: Path
    format: Format
    opening: Opening
    provider: str
    threads: int
    stored: int = 0
    """Bytes of its files."""


class TimedProcess:
    """The parent's side. `load_seconds` is how long the model took to be ready to run."""

    def __init__(self, job: Job) -> None:
        settings = {
            "OMP_NUM_THREADS": str(job.threads),
            "MKL_NUM_THREADS": str(job.threads),
            "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE"),
        }
        self._process = Process(Timed, str(job.path), settings)
        self.load_seconds: float = self._process.ask("load", job)

    def bind(self, sample: Sample) -> None:
        """Take `sample` for the runs to come."""
        self._process.ask("bind", dict(sample))

    def run(self, times: int) -> float:
        """The seconds of `times` runs in a row."""
        seconds: float = self._process.ask("run", times)
        return seconds

    def peak_memory(self) -> int | None:
        """The most bytes that the process ever held, runtime included; None if nothing tells."""
        peak: int | None = self._process.ask("peak_memory")
        return peak

    def __enter__(self) -> TimedProcess:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._process.close()


class Timed:
    """The child's side: one model, and the run that was bound last."""

    def __init__(self) -> None:
        self._runner: TimedRunner | None = None
        self._run: Callable[[], object] | None = None

    def load(self, job: Job) -> float:
        self._job = job
        ready = _prepared(job)
        start = time.perf_counter()
        self._runner = ready()
        return time.perf_counter() - start

    def bind(self, sample: Sample) -> None:
        assert self._runner is not None
        if self._job.provider == "cpu":  # a device's driver takes what it likes
            given = sum(array.nbytes for array in sample.values())
            limit_growth(memory_of_run(self._job.stored + given))
        self._run = self._runner.bound(matched(sample, self._runner.input_names))
        self._run()

    def run(self, times: int) -> float:
        assert self._run is not None
        start = time.perf_counter()
        for _ in range(times):
            self._run()
        return time.perf_counter() - start

    def peak_memory(self) -> int | None:
        try:
            status = Path("/proc/self/status").read_text()
        except OSError:
            return _peak_by_resource()
        (line,) = (line for line in status.splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024


def _prepared(job: Job) -> Callable[[], Any]:
    """What loads the model; the runtime is imported already."""
    if job.format is Format.ONNX:
        from bnfold.runtimes.ort import OrtRunner

        return lambda: OrtRunner(job.path, job.provider, threads=job.threads)
    if job.format in OF_TORCH:
        import torch

        from bnfold.formats.pytorch import nn_module  # noqa: F401
        from bnfold.formats.torchscript import model  # noqa: F401

        torch.set_num_threads(job.threads)
    return lambda: _timed(open_model(job.path, job.opening).deployed(job.provider))


def _timed(runner: Any) -> TimedRunner:
    return runner if hasattr(runner, "bound") else _Called(runner)


class _Called(RunnerOf):
    """A runner whose whole call is timed, as it tells of nothing that need not be."""

    def bound(self, sample: Sample) -> Callable[[], object]:
        return partial(self.runner, sample)


def _peak_by_resource() -> int | None:
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
