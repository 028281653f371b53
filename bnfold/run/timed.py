"""A model in a process of its own, which loads it, runs it on request, and tells time and memory.

The peak of memory is then the model's own, and models take turns without sharing threads or caches
of a runtime. Parent and child speak in pickles over the child's stdin and stdout.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from bnfold.errors import BnfoldError, ModelError
from bnfold.formats.model import Format
from bnfold.formats.opening import Opening, open_model
from bnfold.run import Sample, TimedRunner
from bnfold.run.samples import matched

_SERVE = "from bnfold.run.timed import serve; serve()"


@dataclass(frozen=True, slots=True)
class Job:
    """What to load, and where it runs with how many threads."""

    path: Path
    format: Format
    opening: Opening
    provider: str
    threads: int


@dataclass(frozen=True, slots=True)
class _Failure:
    kind: type[BnfoldError]
    message: str
    hint: str | None


class TimedProcess:
    """The parent's side. `load_seconds` is how long the model took to be ready to run."""

    def __init__(self, job: Job) -> None:
        self._job = job
        paths = [os.path.abspath(path) for path in sys.path]
        threads = {name: str(job.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        self._child = subprocess.Popen(
            [sys.executable, "-c", _SERVE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **threads, "PYTHONPATH": os.pathsep.join(paths)},
            start_new_session=True,  # an interrupt is for the parent, which ends the child
        )
        self.load_seconds: float = self._ask("load", job)

    def bind(self, sample: Sample) -> None:
        """Take `sample` for the runs to come."""
        self._ask("bind", dict(sample))

    def run(self, times: int) -> float:
        """The seconds of `times` runs in a row."""
        seconds: float = self._ask("run", times)
        return seconds

    def peak_memory(self) -> int | None:
        """The most bytes that the process ever held, runtime included; None if nothing tells."""
        peak: int | None = self._ask("peak_memory")
        return peak

    def __enter__(self) -> TimedProcess:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._child.kill()
        self._child.communicate()

    def _ask(self, what: str, *arguments: Any) -> Any:
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        try:
            pickle.dump((what, arguments), self._child.stdin)
            self._child.stdin.flush()
            answer = pickle.load(self._child.stdout)
        except (EOFError, BrokenPipeError, pickle.UnpicklingError) as error:
            code = self._child.wait()
            how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
            raise BnfoldError(
                f"the process that runs {self._job.path} ended {how}",
                "it may have run out of memory: try a smaller --batch",
            ) from error
        if isinstance(answer, _Failure):
            raise answer.kind(answer.message, answer.hint)
        return answer


class _Served:
    """The child's side: one model, and the run that was bound last."""

    def __init__(self) -> None:
        self._path = Path()
        self._runner: TimedRunner | None = None
        self._run: Callable[[], object] | None = None

    def load(self, job: Job) -> float:
        self._path = job.path
        ready = _prepared(job)
        start = time.perf_counter()
        self._runner = ready()
        return time.perf_counter() - start

    def bind(self, sample: Sample) -> None:
        assert self._runner is not None
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

    def answer(self, what: str, arguments: tuple[Any, ...]) -> Any:
        try:
            return getattr(self, what)(*arguments)
        except BnfoldError as error:
            return _Failure(type(error), str(error), error.hint)
        except Exception as error:  # whatever a runtime raises
            lines = str(error).strip().splitlines() or [type(error).__name__]
            return _Failure(ModelError, f"{self._path} does not run: {lines[-1]}", None)


def serve() -> None:
    """Answer requests until stdin ends. What libraries print goes to stderr."""
    requests, answers = sys.stdin.buffer, _own_stdout()
    served = _Served()
    while True:
        try:
            what, arguments = pickle.load(requests)
        except (EOFError, KeyboardInterrupt):
            return
        pickle.dump(served.answer(what, arguments), answers)
        answers.flush()


def _own_stdout() -> BinaryIO:
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return answers


def _prepared(job: Job) -> Callable[[], Any]:
    """What loads the model; the runtime is imported already."""
    if job.format is Format.ONNX:
        from bnfold.run.ort import OrtRunner

        return lambda: OrtRunner(job.path, job.provider, threads=job.threads)
    import torch

    from bnfold.formats.pytorch import nn_module  # noqa: F401
    from bnfold.formats.torchscript import model  # noqa: F401

    torch.set_num_threads(job.threads)
    return lambda: open_model(job.path, job.opening).deployed(job.provider)


def _peak_by_resource() -> int | None:
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
