"""Read a `.pt2` archive without running what it carries.

torch.export.load unpickles, loads libraries, and evaluates what it finds. Here the archive is read
by the standard library's zipfile alone; the text of the program is parsed once, checked entry by
entry (program_entries.py), and the very same entries are handed to torch's deserialiser, beside
tensors that were read already. So torch sees no pickle, no path and no text that was not checked.

    weights, constants      bytes of the archive, as tensors with the sizes that the file says
    what was pickled        tensors and plain containers alone, by the restricted unpickler
    sample inputs           the same
    extra files             texts that are kept as they are
    objects, compiled code  refused

    torch >= 2.8   ROOT/models/NAME.json, ROOT/data/..., ROOT/extra/...
    before         serialized_exported_program.json, serialized_....pt, extra_files/...

Every place in which torch (2.13) imports, evaluates, unpickles or opens something:
_package.py _load_state_dict, _load_constants (torch.load, pickle.loads), _load_aoti (libraries);
serialize.py deserialize_torch_artifact (torch.load), deserialize_operator and deserialize_metadata
(getattr), _parse_sym_expr (sympify); _pytree.py _defaultdict_deserialize and enum_object_hook
(import_module); _unlift.py _convert_guards_code_to_fn, and fx/graph_module.py (exec).
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch._export.serde import schema, serialize
from torch.export import ExportedProgram

from bnfold.archive import content, members
from bnfold.errors import ModelError, UntrustedError
from bnfold.formats.pytorch.pickles import unpickle_member
from bnfold.formats.pytorch.program_entries import SuspectError, check_payloads, check_program
from bnfold.formats.pytorch.program_operators import called, is_admitted

_serialize: Any = serialize  # untyped in part

_CODE = re.compile(r"/(custom_obj_|opaque_obj_)|/data/aotinductor/", re.IGNORECASE)

_MODEL = re.compile(r"[^/]+/models/(.+)\.json")

_IN_MODELS = re.compile(r"[^/]+/models/", re.IGNORECASE)

_EXTRA = re.compile(r"(?:[^/]+/extra|extra_files)/(.+)")

_OLD = "serialized_exported_program.json"


@dataclass(frozen=True, slots=True)
class _Records:
    """The members of an archive by name, read when asked for."""

    path: Path
    archive: zipfile.ZipFile
    root: str

    def read(self, name: str) -> bytearray:
        return content(self.archive, f"{self.root}{name}")

    def json(self, name: str) -> Any:
        return json.loads(self.read(name))

    def pickled(self, name: str) -> Any:
        """The tensors and plain containers in a member; None if it is empty."""
        found = bytes(self.read(name))
        return unpickle_member(found, self.path, f"{self.root}{name}") if found else None


def require_one_program(path: Path) -> None:
    """Raise ModelError for a package of several models: all but one would be lost."""
    found = sorted({m[1] for name in members(path) if (m := _MODEL.fullmatch(name))})
    if len(found) > 1:
        raise ModelError(
            f"{path} holds {len(found)} models: {', '.join(found)}",
            "save each to a file of its own with torch.export.save",
        )


def extra_names(path: Path) -> list[str]:
    """The names of the files that its maker added to the archive."""
    found = [_EXTRA.fullmatch(name) for name in members(path)]
    return [match[1] for match in found if match]


def read_program(path: Path) -> tuple[ExportedProgram, dict[str, str]]:
    """The program in an archive, and the extra files beside it.

    Raises UntrustedError for what would run code, ModelError for what is damaged.
    """
    names = members(path)
    for name in names:
        if _CODE.search(f"/{name}"):
            raise _untrusted(path, SuspectError("it holds compiled or pickled code", name))
    try:
        with zipfile.ZipFile(path) as archive:
            program = _program(path, archive, names)
            extra = {
                match[1]: content(archive, name).decode()
                for name in names
                if (match := _EXTRA.fullmatch(name))
            }
    except SuspectError as suspect:
        raise _untrusted(path, suspect) from suspect
    except ModelError:
        raise
    except (zipfile.BadZipFile, ValueError, KeyError, OSError, RuntimeError, TypeError) as error:
        raise ModelError(
            f"{path} is a damaged exported program (.pt2): {_gist(error)}",
            "save or download it again",
        ) from error
    _require_admitted(path, program)
    return program, extra


def _program(path: Path, archive: zipfile.ZipFile, names: list[str]) -> ExportedProgram:
    if _OLD in names:
        records = _Records(path, archive, "")
        entry = records.json(_OLD)
        check_program(entry)
        state = records.pickled("serialized_state_dict.pt") or {}
        constants = records.pickled("serialized_constants.pt") or {}
        sample = records.pickled("serialized_example_inputs.pt")
        return _deserialised(entry, state, constants, sample)
    name, *others = [name for name in names if _IN_MODELS.match(name)]
    model = _MODEL.fullmatch(name)
    if others or not model:
        raise ValueError("it has more than one program")
    records = _Records(path, archive, name[: name.index("/") + 1])
    written = bytes(records.read("archive_format")), bytes(records.read("archive_version"))
    if written != (b"pt2", b"0"):
        raise ValueError(f"its format is {written[0]!r}, version {written[1]!r}")
    entry = records.json(f"models/{model[1]}.json")
    check_program(entry)
    state, constants = (_stored(records, kind, model[1]) for kind in ("weights", "constants"))
    sample = records.pickled(f"data/sample_inputs/{model[1]}.pt")
    return _deserialised(entry, state, constants, sample)


def _deserialised(entry: Any, state: Any, constants: Any, sample: Any) -> ExportedProgram:
    """By torch, which unpickles what is no dict or tuple yet, such as bytes."""
    for tensors in (state, constants):
        if not isinstance(tensors, dict) or not all(isinstance(name, str) for name in tensors):
            raise ValueError("its tensors have no names")
    if sample is not None and not isinstance(sample, tuple):
        raise ValueError("its sample inputs are no arguments")
    program = _serialize._dict_to_dataclass(schema.ExportedProgram, entry)
    made: ExportedProgram = _serialize.ExportedProgramDeserializer().deserialize(
        program, state, constants, sample
    )
    return made


def _stored(records: _Records, kind: str, model: str) -> dict[str, torch.Tensor]:
    """The tensors in a folder: by a list that says which is where, or pickled."""
    folder = f"data/{kind}/"
    listed = f"{folder}{model}_{kind}_config.json"
    if f"{records.root}{listed}" not in records.archive.namelist():
        found: dict[str, torch.Tensor] = records.pickled(f"{folder}{model}.pt") or {}
        return found
    entry = records.json(listed)
    check_payloads(entry)
    flat: dict[str, torch.Tensor] = {}
    return {
        name: _tensor(records, folder, payload, flat) for name, payload in entry["config"].items()
    }


def _tensor(
    records: _Records, folder: str, payload: Mapping[str, Any], flat: dict[str, torch.Tensor]
) -> torch.Tensor:
    """One tensor; those with the same record share memory, which `flat` holds."""
    name = payload["path_name"]
    if payload["use_pickle"]:
        found: torch.Tensor = records.pickled(f"{folder}{name}")
        return found
    said = payload["tensor_meta"]
    if name not in flat:
        flat[name] = _values(records.read(f"{folder}{name}"), said)
    sizes, strides = ([axis["as_int"] for axis in said[each]] for each in ("sizes", "strides"))
    if 0 in sizes:
        values = torch.empty_strided(sizes, strides, dtype=flat[name].dtype).to(flat[name].device)
    else:
        values = flat[name].as_strided(sizes, strides, said["storage_offset"]["as_int"])
    if payload["is_param"]:
        return torch.nn.Parameter(values, requires_grad=said["requires_grad"])
    return values


def _values(raw: bytearray, said: Mapping[str, Any]) -> torch.Tensor:
    """The bytes of a record as a row of numbers, in memory of torch's own."""
    row = torch.frombuffer(raw, dtype=torch.uint8).clone() if raw else torch.tensor(()).byte()
    place = (said["device"]["type"], said["device"].get("index"))
    row = row.view(_serialize._SERIALIZE_TO_TORCH_DTYPE[said["dtype"]])
    return row if place[0] == "cpu" else row.to(torch.device(*(e for e in place if e is not None)))


def _require_admitted(path: Path, program: ExportedProgram) -> None:
    """Look at the program as it was loaded: all that it calls is on the list."""
    for target in called(program.graph_module):
        if not is_admitted(target):
            raise _untrusted(path, SuspectError("it calls what no file may call", str(target)))


def _untrusted(path: Path, suspect: SuspectError) -> UntrustedError:
    return UntrustedError(
        f"{path} is an exported program that could do more than compute: {suspect}",
        "if you know where the file comes from: --trust",
        (suspect.text,),
    )


def _gist(error: BaseException) -> str:
    """What torch says went wrong: the last line of the traceback that it puts in its message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:200]
