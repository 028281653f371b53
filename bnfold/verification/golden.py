"""What an original computes, recorded: enough to judge a candidate where the original is not.

A Golden holds the inputs of every case, the outputs in float64, and those of the original as it is
in each place where it ran, from which the noise floors follow. Its runners give what was recorded,
so that a candidate is judged by the same rules as beside the original itself.

As a file it is an .npz that numpy alone can read, the same bytes for the same content.

golden.json      what it is, and of every array the member, the type and the SHA-256
0/input/0.npy    the first input of the first case
0/float64/0.npy  its first output in float64; 0/run0/0.npy in the first place, and so on

Members are stored as they are: a file never unpacks to more than its own size. Nothing is pickled.
bfloat16 is stored as its bits. `digest` is the SHA-256 of golden.json without it: it finds
accidents and edits; it is no signature.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnfold.algebra.rounding import numpy_dtype
from bnfold.errors import ModelError, UsageError
from bnfold.files import special, write_atomically
from bnfold.runtimes import Outputs, Runner
from bnfold.verification.cases import Case
from bnfold.verification.gate import Distance
from bnfold.verification.recorder import Recorded
from bnfold.verification.verdict import FLOAT64

Free = Mapping[str, Mapping[int, str]]

SCHEMA_VERSION = 1
MANIFEST = "golden.json"
_AGAIN = "record it again: bnfold golden MODEL -o FILE.npz"
_EPOCH = (1980, 1, 1, 0, 0, 0)
_HEADER = 1024
"""The most bytes before the numbers of an array: version, type and shape."""


@dataclass(frozen=True, eq=False, slots=True)
class Golden:
    """Recorded cases. `runs`: place -> the outputs of each case, in the order of `cases`.

    `free`: input -> axis -> name, for every input in order and each of its free sizes.

    `truth` is the same in float64, or None, and `inexact` why it could not be had. `scatter` has
    the largest errors of nudged inputs: place -> of each case, of each output. `bounds` has of
    every output the size of what bounds it last, 0 for nothing. `source` names the original: its
    file name, format and SHA-256, None for what it does not have.
    """

    source: Mapping[str, str | None]
    cases: tuple[Case, ...]
    runs: Mapping[str, tuple[Outputs, ...]]
    free: Free
    truth: tuple[Outputs, ...] | None = None
    inexact: str | None = None
    seeds: tuple[int, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    scatter: Mapping[str, tuple[tuple[Distance, ...], ...]] = field(default_factory=dict)
    bounds: tuple[float, ...] = ()

    @property
    def float64(self) -> Runner:
        """The truth, as a runner of the recorded samples."""
        return Recorded(FLOAT64, self.cases, self.truth, self.inexact)

    @property
    def originals(self) -> list[Runner]:
        """The original as it is, in each place where it was recorded."""
        return [
            Recorded(place, self.cases, outputs, None, self.scatter.get(place, ()))
            for place, outputs in self.runs.items()
        ]

    def save(self, path: str | Path) -> None:
        """Write the bundle to `path`; the target is never left half-written."""
        write_atomically(Path(path), partial(write_golden, self))


def is_golden(path: Path) -> bool:
    """Whether the file at `path` says that it is a golden bundle."""
    if special(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()[:1] == [MANIFEST]
    except Exception:  # zipfile has many ways to stumble over what is no archive
        return False


def write_golden(golden: Golden, path: Path) -> None:
    """Write `golden` to `path`. Raises UsageError for arrays that are not of numbers."""
    members: dict[str, bytes] = {}

    def stored(folder: str, arrays: Outputs) -> dict[str, Any]:
        records = {}
        for number, (name, array) in enumerate(arrays.items()):
            content, member = _npy(name, array), f"{folder}/{number}.npy"
            members[member] = content
            digest = hashlib.sha256(content).hexdigest()
            records[name] = {"member": member, "dtype": array.dtype.name, "sha256": digest}
        return records

    cases = [
        {
            "name": case.name,
            "given": case.given,
            "input": stored(f"{i}/input", dict(case.sample)),
            "float64": stored(f"{i}/float64", golden.truth[i]) if golden.truth else None,
            "runs": {
                place: stored(f"{i}/run{j}", outputs[i])
                for j, (place, outputs) in enumerate(golden.runs.items())
            },
            "scatter": {
                place: [[one.rms, one.max, one.rest] for one in found[i]]
                for place, found in golden.scatter.items()
            },
        }
        for i, case in enumerate(golden.cases)
    ]
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "source": dict(golden.source),
        "versions": dict(golden.versions),
        "seeds": list(golden.seeds),
        "free": {name: {str(a): n for a, n in axes.items()} for name, axes in golden.free.items()},
        "inexact": golden.inexact,
        "notes": list(golden.notes),
        "bounds": list(golden.bounds),
        "cases": cases,
    }
    manifest["digest"] = _digest(manifest)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(zipfile.ZipInfo(MANIFEST, _EPOCH), json.dumps(manifest, indent=1))
        for member, content in members.items():
            archive.writestr(zipfile.ZipInfo(member, _EPOCH), content)


def read_golden(path: Path) -> Golden:
    """The Golden in the file at `path`. Raises ModelError for any other and for a changed one."""
    if kind := special(path):
        raise ModelError(f"{path} is {kind}, not a golden bundle", _AGAIN)
    if not path.is_file():
        raise ModelError(f"{path} does not exist", "check the path")
    if not is_golden(path):
        raise ModelError(f"{path} is no golden bundle", _AGAIN)
    try:
        with zipfile.ZipFile(path) as archive:
            _check_sizes(archive, path.stat().st_size)
            return _Reading(archive, json.loads(archive.read(MANIFEST))).golden()
    except Exception as error:  # whatever is wrong with the file is wrong with the file
        why = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        first = (why.splitlines() or [type(error).__name__])[0]
        raise ModelError(f"the golden bundle {path} is damaged: {first}", _AGAIN) from error


@dataclass(frozen=True, eq=False, slots=True)
class _Reading:
    """An archive with its manifest; whatever does not fit raises."""

    archive: zipfile.ZipFile
    manifest: Mapping[str, Any]

    def golden(self) -> Golden:
        manifest = dict(self.manifest)
        if (version := manifest["schema_version"]) != SCHEMA_VERSION:
            raise ValueError(f"its schema_version is {version!r}, known is {SCHEMA_VERSION}")
        if manifest.pop("digest") != _digest(manifest):
            raise ValueError(f"{MANIFEST} was edited")
        entries = manifest["cases"]
        cases = tuple(Case(e["name"], self._arrays(e["input"]), e["given"]) for e in entries)
        places, scattered = list(entries[0]["runs"]), list(entries[0]["scatter"])
        exact = [entry["float64"] for entry in entries]
        golden = Golden(
            manifest["source"],
            cases,
            {place: tuple(self._arrays(e["runs"][place]) for e in entries) for place in places},
            {
                name: {int(axis): size for axis, size in axes.items()}
                for name, axes in manifest["free"].items()
            },
            None if None in exact else tuple(map(self._arrays, exact)),
            manifest["inexact"],
            tuple(manifest["seeds"]),
            manifest["versions"],
            tuple(manifest["notes"]),
            {place: tuple(_scatter(e["scatter"][place]) for e in entries) for place in scattered},
            tuple(map(float, manifest.get("bounds", ()))),
        )
        _check_shapes(golden)
        return golden

    def _arrays(self, records: Mapping[str, Mapping[str, str]]) -> Outputs:
        return {name: self._array(record) for name, record in records.items()}

    def _array(self, record: Mapping[str, str]) -> NDArray[Any]:
        content = self.archive.read(record["member"])
        if hashlib.sha256(content).hexdigest() != record["sha256"]:
            raise ValueError(f"{record['member']} was edited")
        stream = io.BytesIO(content)
        if np.lib.format.read_magic(stream) != (1, 0):
            raise ValueError(f"{record['member']} is no array of version 1.0")
        shape, by_column, dtype = np.lib.format.read_array_header_1_0(stream, _HEADER)
        size = math.prod(shape) * dtype.itemsize
        if by_column or dtype.hasobject or stream.tell() + size != len(content):
            raise ValueError(f"{record['member']} does not hold {list(shape)} of {dtype}")
        numbers = np.frombuffer(content, dtype, offset=stream.tell()).reshape(shape)
        wanted = numpy_dtype(record["dtype"])
        if dtype.name != _stored(wanted).name:
            raise ValueError(f"{record['member']} is of {dtype}, not of {wanted}")
        return numbers.astype(_stored(wanted), copy=False).view(wanted)


def _scatter(figures: Sequence[Sequence[float]]) -> tuple[Distance, ...]:
    return tuple(Distance(*map(float, each)) for each in figures)


def _check_sizes(archive: zipfile.ZipFile, most: int) -> None:
    entries = archive.infolist()
    if any(entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1 for entry in entries):
        raise ValueError("its members are compressed or encrypted")
    if sum(entry.file_size for entry in entries) > most:
        raise ValueError("its members are larger than the file")


def _check_shapes(golden: Golden) -> None:
    """Every case must have the inputs and outputs of the first, and every run the same shapes."""
    runs = [*golden.runs.values(), *([golden.truth] if golden.truth else [])]
    if not golden.cases or not golden.runs:
        raise ValueError("it has no cases or no runs")
    first = golden.cases[0].sample
    for name, axes in golden.free.items():
        if name not in first or not all(0 <= axis < first[name].ndim for axis in axes):
            raise ValueError(f"it names free sizes that {name!r} does not have")
    for number, case in enumerate(golden.cases):
        if list(case.sample) != list(golden.cases[0].sample):
            raise ValueError(f"the case {case.name} has other inputs than the first")
        forms = {tuple(array.shape for array in outputs[number].values()) for outputs in runs}
        if len(forms) != 1 or not next(iter(forms)):
            raise ValueError(f"the outputs of the case {case.name} differ in number or shape")


def _npy(name: str, array: NDArray[Any]) -> bytes:
    if array.dtype.kind not in "biufcV":
        raise UsageError(
            f"{name} is of type {array.dtype}, which a golden bundle cannot hold",
            "only numbers and booleans can be recorded",
        )
    plain = np.asarray(array, order="C").view(_stored(array.dtype))
    stream = io.BytesIO()
    np.lib.format.write_array(stream, plain, (1, 0), allow_pickle=False)
    return stream.getvalue()


def _stored(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """How numbers of a type are stored: those that numpy has not by itself as their bits."""
    return np.dtype(f"u{dtype.itemsize}") if dtype.kind == "V" else dtype


def _digest(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
