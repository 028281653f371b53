"""ONNX Runtime's execution providers: their short names, their options, and why one does not load.

ONNX Runtime lists what it was built with, not what loads, and falls back to the CPU without an
error; what is missing is found by loading the provider's library as ONNX Runtime does.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import onnxruntime

from bnfold.errors import EnvironmentLacksError, UsageError

CPU = "CPUExecutionProvider"
_SUFFIX = "ExecutionProvider"
_TF32 = " tf32"

_BUILDS = {
    "cuda": "onnxruntime-gpu",
    "tensorrt": "onnxruntime-gpu",
    "openvino": "onnxruntime-openvino",
    "dml": "onnxruntime-directml",
    "qnn": "onnxruntime-qnn",
}
"""The package on PyPI whose ONNX Runtime has a provider."""

_CUDA = 'pip install "onnxruntime-gpu[cuda,cudnn]"'

_LIBRARIES = {
    "libcublas": "nvidia-cublas",
    "libcudnn": "nvidia-cudnn-cu13",
    "libcufft": "nvidia-cufft",
    "libcurand": "nvidia-curand",
    "libcudart": "nvidia-cuda-runtime",
    "libnvrtc": "nvidia-cuda-nvrtc",
    "libnvinfer": "tensorrt",
}
"""How the name of a library begins -> the package on PyPI that has it."""


@dataclass(frozen=True, slots=True)
class Provider:
    """`name` is ONNX Runtime's; `options` are those that go with the short name."""

    name: str
    options: Mapping[str, str]


def short_names() -> dict[str, str]:
    """Short name -> ONNX Runtime's, of every provider that it knows, be it built in or not."""
    return {name.removesuffix(_SUFFIX).lower(): name for name in onnxruntime.get_all_providers()}


def built_in() -> list[str]:
    """The short names of the providers that this build has; the CPU first."""
    built = onnxruntime.get_available_providers()
    return sorted(
        (s for s, name in short_names().items() if name in built), key=lambda s: s != "cpu"
    )


def find(short: str) -> Provider:
    """The provider called "cpu", "cuda", ...; "cuda tf32" is CUDA with TF32 on.

    Raises UsageError for what is none, and EnvironmentLacksError for what this build has not.
    """
    known = short_names()
    base = short.removesuffix(_TF32)
    if base not in known or (short != base and base != "cuda"):
        names = ", ".join(built_in())
        raise UsageError(f"{short!r} is no execution provider", f"this build has {names}")
    if base not in built_in():
        build = _BUILDS.get(base)
        hint = f"pip uninstall -y onnxruntime; pip install {build}" if build else None
        raise EnvironmentLacksError(f"this build of onnxruntime has no {known[base]}", hint)
    tf32 = {"use_tf32": "1" if short != base else "0"} if base == "cuda" else {}
    return Provider(known[base], tf32)


def why_not(name: str) -> EnvironmentLacksError:
    """Why the provider `name` does not load here, and what to type to mend it."""
    problem = _dlopen_error(name)
    if problem is None:
        return _without_device(name)
    library, _, reason = problem.partition(": ")
    package = next((p for start, p in _LIBRARIES.items() if library.startswith(start)), None)
    if "cannot open shared object" not in reason:
        return EnvironmentLacksError(f"{name} does not load: {problem}", _mend(name, package))
    origin = f" (of {package})" if package else ""
    why = f"{name} does not load: {library}{origin} is missing"
    return EnvironmentLacksError(why, _mend(name, package))


def _mend(name: str, package: str | None) -> str | None:
    if name.startswith("Tensorrt"):
        return f"{_CUDA} tensorrt"
    return _CUDA if package else None


def _without_device(name: str) -> EnvironmentLacksError:
    """Its library loads, or has another name on this system: then the device is the matter."""
    fell_back = f"{name} does not load: ONNX Runtime fell back to {CPU}"
    if not name.startswith(("CUDA", "Tensorrt")):
        return EnvironmentLacksError(fell_back)
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        why = f"{name} does not load: NVIDIA's driver (libcuda.so.1) is missing"
        return EnvironmentLacksError(why, "install the driver; start a container with --gpus all")
    return EnvironmentLacksError(fell_back, "nvidia-smi says whether a GPU is there")


def _dlopen_error(name: str) -> str | None:
    """What the loader says of the provider's own library; None if it loads, or is not there."""
    folder = Path(onnxruntime.__file__).parent / "capi"
    short = name.removesuffix(_SUFFIX).lower()
    library = folder / f"libonnxruntime_providers_{short}.so"
    if not library.is_file():
        return None
    with suppress(OSError):
        ctypes.CDLL(str(folder / "libonnxruntime_providers_shared.so"), ctypes.RTLD_GLOBAL)
    try:
        ctypes.CDLL(str(library))
    except OSError as error:
        return re.sub(r"\s+", " ", str(error))
    return None


def assigned(session: onnxruntime.InferenceSession) -> dict[str, list[str]]:
    """Provider -> the kinds of the nodes that run on it, of a session that recorded this."""
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return {}
    found: dict[str, list[str]] = {}
    for part in session.get_provider_graph_assignment_info():
        found.setdefault(part.ep_name, []).extend(node.op_type for node in part.get_nodes())
    return found


def elsewhere(place: str, name: str, nodes: Mapping[str, Sequence[str]]) -> str | None:
    """Which nodes of a session for `name` run on another provider.

    Raises EnvironmentLacksError if all of them do: then nothing ran where it was asked for.
    """
    total = sum(map(len, nodes.values()))
    if total and not nodes.get(name):
        raise EnvironmentLacksError(
            f"no node of the model runs on {name}", "verify it with --providers cpu"
        )
    others = [kind for other, kinds in nodes.items() if other != name for kind in kinds]
    if not others:
        return None
    counted = ", ".join(f"{kind} x{others.count(kind)}" for kind in dict.fromkeys(others))
    return f"{place}: {len(others)} of {total} nodes run elsewhere ({counted})"
