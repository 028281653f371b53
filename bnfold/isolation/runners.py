"""Runners in a process of their own: what a candidate does to it is a failure of the candidate."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bnfold.formats.model import Format, Model
from bnfold.formats.opening import Opening, open_model
from bnfold.processes.child import Process, ProcessLostError, RunLostError
from bnfold.protocol import Protocol
from bnfold.runtimes import Outputs, Runner, Sample, TensorSpec, notes_of

MOST_CRASHES = 24
"""How many runs may take their process with them before the model is taken to do so on anything."""


@dataclass(frozen=True, slots=True)
class Described:
    """What the parent knows of a runner; `inputs` are those that an ONNX session declares."""

    name: str
    input_names: tuple[str, ...]
    inputs: tuple[TensorSpec, ...]
    notes: tuple[str, ...]


class Served:
    """The child's side: the runners of one model."""

    def __init__(self) -> None:
        self._runners: Sequence[Runner] = ()

    def open_sessions(self, path: Path, protocol: Protocol) -> list[Described]:
        from bnfold.runtimes.ort import sessions

        return self._loaded(sessions(path, protocol))

    def open_model(
        self, path: Path, opening: Opening | None, protocol: Protocol
    ) -> list[Described]:
        return self._loaded(
            open_model(path, opening).runners(replace(protocol, isolate=False, timeout=None))
        )

    def run(self, number: int, sample: Sample) -> Outputs:
        return self._runners[number](sample)

    def _loaded(self, runners: Sequence[Runner]) -> list[Described]:
        self._runners = runners
        return [
            Described(
                each.name,
                each.input_names,
                getattr(each, "inputs", ()),
                notes_of(each),
            )
            for each in runners
        ]


class _Service:
    """A process that serves a model; one that crashed in a run is followed by another.

    `keep` is what the model needs as long as it may be opened again.
    """

    def __init__(
        self, what: str, timeout: float | None, opening: tuple[Any, ...], keep: object
    ) -> None:
        self._what, self._timeout, self._opening, self._keep = what, timeout, opening, keep
        self._crashes = 0
        self._process = Process(Served, what, timeout=timeout)

    def open(self) -> list[Described]:
        described: list[Described] = self._process.ask(*self._opening)
        return described

    def run(self, number: int, sample: Sample) -> Outputs:
        """Raises RunLostError if the run took the process with it, but another may go better."""
        try:
            outputs: Outputs = self._process.ask("run", number, dict(sample))
        except ProcessLostError as error:
            if not self._process.crashed or self._crashes == MOST_CRASHES:
                raise
            self._crashes += 1
            self._process = Process(Served, self._what, timeout=self._timeout)
            self.open()
            raise RunLostError(str(error), error.hint) from error
        return outputs


class IsolatedRunner:
    """A runner of a model that `service` runs, by its number there."""

    def __init__(self, service: _Service, number: int, described: Described) -> None:
        self.name = described.name
        self.input_names = described.input_names
        self.inputs = described.inputs
        self.notes = described.notes
        self._service = service
        self._number = number

    def __call__(self, sample: Sample) -> Outputs:
        return self._service.run(self._number, sample)


def isolated_sessions(path: Path, protocol: Protocol, keep: object = None) -> list[IsolatedRunner]:
    """The sessions of an ONNX file, as `bnfold.runtimes.ort.sessions`, in one process.

    `keep` is what has to live as long as the file.
    """
    return _isolated(str(path), protocol, ("open_sessions", path, protocol), keep)


def runners_of(model: Model, protocol: Protocol) -> list[Runner]:
    """The runners of a model; those of ONNX Runtime in a process of their own, if wanted."""
    if not protocol.isolate or model.format is not Format.ONNX:
        return model.runners(protocol)
    model.require_small()
    kept = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    path = Path(kept.name) / "model.onnx"
    model.save(path)
    return [*isolated_sessions(path, protocol, kept)]


def candidate_runners(model: Model, protocol: Protocol) -> list[Runner]:
    """The runners of a candidate; if wanted, in a process, which opens a file of torch itself."""
    if not protocol.isolate or model.origin is None or model.format is Format.ONNX:
        return runners_of(model, protocol)
    path, opening = model.origin
    return [*_isolated(str(path), protocol, ("open_model", path, opening, protocol))]


def _isolated(
    what: str, protocol: Protocol, opening: tuple[Any, ...], keep: object = None
) -> list[IsolatedRunner]:
    service = _Service(what, protocol.timeout, opening, keep)
    try:
        described = service.open()
    except ProcessLostError:  # which every run will raise again
        described = [Described(protocol.places[0], (), (), ())]
    return [IsolatedRunner(service, number, each) for number, each in enumerate(described)]
