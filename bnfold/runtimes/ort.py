"""Run an ONNX model in ONNX Runtime, on one execution provider, at one optimisation level.

A session counts only if it really runs on the provider that was asked for: ONNX Runtime lists what
it was built with, not what loads, and falls back to the CPU without an error. TF32 is off unless it
is asked for: it is a thousand times coarser than float32.
"""

from __future__ import annotations

import ctypes
import io
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as states

from bnfold.algebra.rounding import numpy_dtype
from bnfold.errors import EnvironmentLacksError, ModelError, shortened
from bnfold.files import spelled
from bnfold.process_state import alone
from bnfold.processes.supervision import watched
from bnfold.protocol import Level, Protocol
from bnfold.runtimes import Outputs, Sample, TensorSpec
from bnfold.runtimes.providers import CPU, assigned, built_in, elsewhere, find, why_not
from bnfold.runtimes.samples import check_sample

_DATA_FOLDER = "session.model_external_initializers_file_folder_path"
_FATAL_ONLY = 4  # a severity: what ONNX Runtime would say comes as an exception
onnxruntime.set_default_logger_severity(_FATAL_ONLY)
_CODES = re.compile(r"(.*\[ONNXRuntimeError\] : \d+ : \w+ : )?(/\S+\.(cc|h):\d+ .*\)(?= [A-Z]) )?")
_SCALARS = {"float": "float32", "double": "float64", "string": "str"}

TINY = (
    b'\x08\x08:3\n\x0c\n\x01x\x12\x01y"\x04Relu\x12\x01gZ\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01'
    b"b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01B\x04\n\x00\x10\x11"
)
"""What a provider must be able to load: an ONNX file of one Relu, float32[1], IR 8, opset 17."""


class OrtRunner:
    """A session over `source`: a serialised model, or the path of one with external data."""

    def __init__(
        self,
        source: bytes | Path,
        provider: str = "cpu",
        level: Level = "optimised",
        options: Mapping[str, str] | None = None,
        threads: int | None = None,
    ) -> None:
        self.name = provider if level == "optimised" else f"{provider} unoptimised"
        self._session = _session(source, provider, level, options or {}, threads)
        self.inputs = tuple(_spec(entry) for entry in self._session.get_inputs())
        self.outputs = tuple(_spec(entry) for entry in self._session.get_outputs())
        name = self._session.get_providers()[0]
        fallen = None if name == CPU else elsewhere(self.name, name, assigned(self._session))
        self.notes = (fallen,) if fallen else ()

    @property
    def input_names(self) -> tuple[str, ...]:
        return tuple(spec.name for spec in self.inputs)

    def bound(self, sample: Sample) -> Callable[[], object]:
        """A run on `sample` that neither checks nor copies it: what a benchmark times."""
        check_sample(self.inputs, sample)
        device = "cuda" if self._session.get_providers()[0] == "CUDAExecutionProvider" else "cpu"
        binding = self._session.io_binding()
        for spec in self.inputs:
            value = _ort_value(np.asarray(sample[spec.name]), spec.dtype, device)
            binding.bind_ortvalue_input(spec.name, value)
        for spec in self.outputs:
            binding.bind_output(spec.name, device)
        return partial(self._session.run_with_iobinding, binding)

    @watched
    def __call__(self, sample: Sample) -> Outputs:
        check_sample(self.inputs, sample)
        binding = [spec.dtype for spec in (*self.inputs, *self.outputs)]
        feeds = {spec.name: np.asarray(sample[spec.name]) for spec in self.inputs}
        names = [spec.name for spec in self.outputs]
        try:
            if "bfloat16" in binding:
                return dict(zip(names, self._run_values(names, feeds), strict=True))
            return dict(zip(names, self._session.run(names, feeds), strict=True))
        except Exception as error:  # onnxruntime's exceptions have no common base
            raise ModelError(f"ONNX Runtime ({self.name}) failed: {_sentence(error)}") from error

    def _run_values(
        self, names: Sequence[str], feeds: dict[str, NDArray[Any]]
    ) -> list[NDArray[Any]]:
        """Run with OrtValues, which carry bfloat16 as its bits."""
        values = {spec.name: _ort_value(feeds[spec.name], spec.dtype) for spec in self.inputs}
        made = self._session.run_with_ort_values(list(names), values)
        pairs = zip(made, self.outputs, strict=True)
        return [_array(value, spec.dtype) for value, spec in pairs]


def sessions(source: bytes | Path, protocol: Protocol) -> list[OrtRunner]:
    """The model in every place and at every optimisation level of the protocol."""
    return [
        OrtRunner(source, place, level, protocol.options.get(place.split()[0]))
        for place in protocol.places
        for level in protocol.levels
    ]


@cache
def lacking(provider: str) -> EnvironmentLacksError | None:
    """Why a provider does not load on this machine, found out by trying; None if it does."""
    try:
        _session(TINY, provider, "unoptimised", {})
    except EnvironmentLacksError as error:
        return error
    return None


def available_providers() -> dict[str, str | None]:
    """Why each provider of this build, and CUDA, does not load; None if it does."""
    found = {name: lacking(name) for name in dict.fromkeys((*built_in(), "cuda"))}
    return {name: None if error is None else str(error) for name, error in found.items()}


def _session(
    source: bytes | Path,
    provider: str,
    level: Level,
    given: Mapping[str, str],
    threads: int | None = None,
) -> Any:
    found = find(provider)
    if found.name != CPU:
        _preload()
    settings = onnxruntime.SessionOptions()
    if threads is not None:
        settings.intra_op_num_threads = threads
        settings.add_session_config_entry("session.force_spinning_stop", "1")
    settings.log_severity_level = _FATAL_ONLY
    levels = onnxruntime.GraphOptimizationLevel
    settings.graph_optimization_level = (
        levels.ORT_ENABLE_ALL if level == "optimised" else levels.ORT_DISABLE_ALL
    )
    settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    chain: list[Any] = [(found.name, {**found.options, **given})]
    if found.name != CPU:
        chain.append(CPU)
    model = source if isinstance(source, bytes) else os.fspath(source)
    if isinstance(source, Path) and spelled(source) != source:
        folder = spelled(source.absolute().parent)  # the weights lie there, not beside the link
        settings.add_session_config_entry(_DATA_FOLDER, os.fspath(folder))
        model = source.read_bytes()
    try:
        with alone(), redirect_stdout(io.StringIO()):  # it prints that it falls back
            session = onnxruntime.InferenceSession(model, settings, providers=chain)
    except states.NotImplemented as error:
        why = f"ONNX Runtime ({provider}) lacks an operator in the type of the model"
        hint = "fold it with --no-verify, or verify with --providers where it runs"
        raise EnvironmentLacksError(f"{why}: {_sentence(error)}", hint) from error
    except Exception as error:  # onnxruntime's exceptions have no common base
        why = f"ONNX Runtime ({provider}) does not load the model: {_sentence(error)}"
        raise ModelError(why, "check it with onnx.checker.check_model") from error
    if session.get_providers()[0] != found.name:
        raise why_not(found.name)
    return session


@cache
def _preload() -> None:
    """Load CUDA and cuDNN from the packages that brought them, where there are any."""
    if hasattr(onnxruntime, "preload_dlls"):
        with alone(), redirect_stdout(io.StringIO()):  # it prints what it does not find
            onnxruntime.preload_dlls()


def _spec(entry: Any) -> TensorSpec:
    kind: str = entry.type
    if not kind.startswith("tensor("):
        return TensorSpec(entry.name, "object", None)
    scalar = kind[len("tensor(") : -1]
    shape = tuple(entry.shape) if isinstance(entry.shape, list | tuple) else None
    return TensorSpec(entry.name, _SCALARS.get(scalar, scalar), shape)


def _ort_value(array: NDArray[Any], dtype: str, device: str = "cpu") -> Any:
    if dtype != "bfloat16":
        return onnxruntime.OrtValue.ortvalue_from_numpy(array, device)
    bits = np.ascontiguousarray(array).view(np.uint16)
    return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, 16)


def _array(value: Any, dtype: str) -> NDArray[Any]:
    if dtype != "bfloat16":
        return np.asarray(value.numpy())
    shape = tuple(value.shape())
    size = 2 * math.prod(shape)
    bits = (ctypes.c_char * size).from_address(value.data_ptr()) if size else b""
    return np.frombuffer(bytes(bits), numpy_dtype(dtype)).reshape(shape)


def _sentence(error: Exception) -> str:
    """What ONNX Runtime says, without its codes and without the place in its own source."""
    text = _CODES.sub("", shortened(str(error).strip().partition("\n")[0])).strip()
    return text or type(error).__name__
