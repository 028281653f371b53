"""What this machine has: versions of the packages, execution providers that really load."""

from __future__ import annotations

import os
import platform
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path

from bnfold.errors import EnvironmentLacksError, UsageError

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

TASKS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "onnx": (
        "fold, inspect, verify, prove and bench ONNX files",
        ("onnx", "onnx-ir", "numpy", "ml_dtypes"),
    ),
    "torch": ("the same with modules, weights, TorchScript and .pt2", ("torch", "safetensors")),
    "export": ("export of PyTorch models to ONNX", ("torch", "onnxscript", "onnxsim")),
    "simplify": ("simplification of what export writes", ("onnxsim",)),
}
"""What a host can be for, in words, and the packages that it needs; the first also a runtime."""


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


def examine(wanted: Collection[str] = ("onnx",)) -> list[Finding]:
    """What is here, and whether it does for the tasks that are `wanted`.

    Raises UsageError for what is none of TASKS.
    """
    if unknown := [task for task in wanted if task not in TASKS]:
        raise UsageError(f"{unknown[0]!r} is no task", f"choose from {', '.join(TASKS)}")
    needed = {package for task in wanted for package in TASKS[task][1]}
    return [
        Finding("bnfold", _version("bnfold") or "not installed", True),
        Finding("Python", platform.python_version(), True),
        *(_package(name, needed) for name in PACKAGES),
        *_runtimes("onnx" in wanted),
        *_providers(),
        *(_ability(task) for task in TASKS),
    ]


def _package(name: str, needed: Collection[str]) -> Finding:
    version = _version(name)
    if version:
        return Finding(name, version, True)
    return Finding(name, "not installed", False, f"pip install {name}", needed=name in needed)


def _ability(task: str) -> Finding:
    """Whether all is here that a task needs."""
    what, packages = TASKS[task]
    missing = [name for name in packages if not _version(name)]
    if task == "onnx" and not any(_version(name) for name in RUNTIMES):
        missing.append("onnxruntime")
    if not missing:
        return Finding(f"can {task}", what, True)
    return Finding(f"can {task}", f"no: {what}", False, f"pip install {' '.join(missing)}")


def _runtimes(needed: bool) -> Iterator[Finding]:
    found = {name: version for name in RUNTIMES if (version := _version(name))}
    if not found:
        mend = "pip install onnxruntime-gpu (or onnxruntime, without CUDA)"
        yield Finding("ONNX Runtime", "not installed", False, mend, needed=needed)
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
