"""Runners in a process of their own: what a candidate does to it is a failure of the candidate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bnfold.formats.model import Format, Model
from bnfold.formats.opening import Opening, open_model
from bnfold.protocol import Protocol
from bnfold.run import Outputs, Runner, Sample, TensorSpec, notes_of
from bnfold.run.process import Process, ProcessLostError


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
        from bnfold.run.ort import sessions

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


class IsolatedRunner:
    """A runner of a model that `process` serves, by its number there."""

    def __init__(self, process: Process, number: int, described: Described) -> None:
        self.name = described.name
        self.input_names = described.input_names
        self.inputs = described.inputs
        self.notes = described.notes
        self._process = process
        self._number = number

    def __call__(self, sample: Sample) -> Outputs:
        outputs: Outputs = self._process.ask("run", self._number, dict(sample))
        return outputs


def isolated_sessions(path: Path, protocol: Protocol) -> list[IsolatedRunner]:
    """The sessions of an ONNX file, as `bnfold.run.ort.sessions`, in one process."""
    return _isolated(str(path), protocol, "open_sessions", path, protocol)


def runners_of(model: Model, protocol: Protocol) -> list[Runner]:
    """The runners of a model; if wanted, in a process, which opens a file of torch itself."""
    if not protocol.isolate or model.origin is None or model.format is Format.ONNX:
        return model.runners(protocol)
    path, opening = model.origin
    return [*_isolated(str(path), protocol, "open_model", path, opening, protocol)]


def _isolated(what: str, protocol: Protocol, method: str, *arguments: Any) -> list[IsolatedRunner]:
    process = Process(Served, what, timeout=protocol.timeout)
    try:
        described: list[Described] = process.ask(method, *arguments)
    except ProcessLostError:  # which every run will raise again
        described = [Described(protocol.places[0], (), (), ())]
    return [IsolatedRunner(process, number, each) for number, each in enumerate(described)]
