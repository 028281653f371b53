"""What this machine has: versions of the packages, execution providers that really load."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path

from bnfold.errors import EnvironmentLacksError

LACKING = EnvironmentLacksError.exit_code

PACKAGES = (
    "torch",
    "onnx",
    "onnx-ir",
    "onnxscript",
    "onnxsim",
    "numpy",
    "ml_dtypes",
    "safetensors",
)
RUNTIMES = ("onnxruntime-gpu", "onnxruntime")


@dataclass(frozen=True, slots=True)
class Finding:
    """`state` in words; `mend` is what to type if it is not fine; `needed`: it must be there."""

    what: str
    state: str
    fine: bool
    mend: str | None = None
    needed: bool = False


@dataclass(frozen=True, slots=True)
class Machine:
    """Where numbers were measured: what to know of it to judge and repeat them."""

    processor: str
    cores: int
    system: str
    versions: Mapping[str, str]


def machine() -> Machine:
    found = {**versions(), "python": platform.python_version()}
    return Machine(_processor(), os.cpu_count() or 1, platform.platform(), found)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())


def examine() -> list[Finding]:
    return [
        Finding("bnfold", _version("bnfold") or "not installed", True),
        Finding("Python", platform.python_version(), True),
        *(_package(name) for name in PACKAGES),
        *_runtimes(),
        *_providers(),
    ]


def _package(name: str) -> Finding:
    version = _version(name)
    if version:
        return Finding(name, version, True)
    return Finding(name, "not installed", False, f"pip install {name}", needed=True)


def _runtimes() -> Iterator[Finding]:
    found = {name: version for name in RUNTIMES if (version := _version(name))}
    if not found:
        mend = "pip install onnxruntime-gpu (or onnxruntime, without CUDA)"
        yield Finding("ONNX Runtime", "not installed", False, mend, needed=True)
    for name, version in found.items():
        yield Finding(name, version, True)
    if len(found) == 2:
        mend = "pip uninstall -y onnxruntime onnxruntime-gpu; pip install onnxruntime-gpu"
        state = "both are installed, into one folder: whichever came last works"
        yield Finding("ONNX Runtime", state, False, mend)


def _providers() -> Iterator[Finding]:
    try:
        from bnfold.runtimes.ort import available_providers, lacking
    except ImportError:
        return
    for name in available_providers():
        error = lacking(name)
        if error is None:
            yield Finding(f"provider {name}", "loads", True)
        else:
            yield Finding(f"provider {name}", str(error), False, error.hint)


def versions() -> dict[str, str]:
    """Of every package above that is installed, its version; bnfold's own first."""
    found = {name: _version(name) for name in ("bnfold", *PACKAGES, *RUNTIMES)}
    return {name: version for name, version in found.items() if version}


@cache  # to look for it takes milliseconds, and each model of a pipeline asks
def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
