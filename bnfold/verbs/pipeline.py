"""bnfold.toml: the models of a project, what each becomes, and how it is judged.

    [defaults]                          # of every model; all of it may be left out
    output = "deploy"

    [models.classifier]
    source = "classifier.pt"            # beside this file, as all paths are
    inputs = ["Nx3x224x224"]
    to = ["onnx", "torchscript"]        # left out: folded in its own format
    require_folded = true
    move = false                        # left out: maps go to where they cost least
    depends = ["nets/*.py"]             # files whose change makes it out of date
    reports = ["html"]                  # beside the artefacts
    opening = { factory = "nets.classifier:Classifier", factory_args = { depth = 18 } }
    conversion = { opset = 18, dynamic = ["N"] }
    preprocessing = { scale = 0.00392156862745098, mean = [0.5], std = [0.25], uint8 = true }
    gate = { k = 8, seeds = [0, 1, 2] }

The fields of `opening`, `conversion`, `preprocessing` and `gate` are those of Opening, Conversion,
Preprocessing and Protocol.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bnfold.errors import UsageError
from bnfold.files import special
from bnfold.formats.opening import Opening
from bnfold.preprocessing import Preprocessing
from bnfold.protocol import Protocol
from bnfold.verbs.targets import SUFFIXES, Conversion

if TYPE_CHECKING:
    import cattrs

NAME = "bnfold.toml"

LONGEST = 200
"""Characters of a setting that a message repeats."""

LONGEST_PATH = 4095
"""Bytes that Linux takes."""

Target = Literal["onnx", "torchscript", "pt2"]
Report = Literal["html", "json", "md", "txt", "xml"]


@dataclass(frozen=True, slots=True)
class Entry:
    """One model of a pipeline; its paths are absolute, or of the current folder."""

    source: Path
    inputs: tuple[str, ...] = ()
    to: tuple[Target, ...] = ()
    output: Path = Path("build")
    require_folded: bool = False
    move: bool = True
    depends: tuple[str, ...] = ()
    reports: tuple[Report, ...] = ()
    opening: Opening = field(default_factory=Opening)
    conversion: Conversion = field(default_factory=Conversion)
    outputs: tuple[str, ...] = ()
    preprocessing: Preprocessing | None = None
    gate: Protocol = field(default_factory=Protocol)
    name: str = ""

    @property
    def record(self) -> Path:
        """Where it is written down what the artefacts were made of."""
        return self.output / f"{self.name}.bnfold.json"

    @property
    def places(self) -> dict[str, Path]:
        """Where each target is written; "" is the format of the source."""
        named: dict[str, str] = {target: SUFFIXES[target] for target in self.to}
        suffixes = named or {"": self.source.suffix}
        return {target: self.output / f"{self.name}{end}" for target, end in suffixes.items()}


def read_pipeline(path: Path) -> dict[str, Entry]:
    """The models of the pipeline file at `path`, by name.

    Raises UsageError for what is no TOML, knows no such setting, or contradicts itself.
    """
    models, defaults = _parsed(path)
    entries = {
        name: _entry(path, name, _merged(defaults, settings)) for name, settings in models.items()
    }
    for name, entry in entries.items():
        if entry.output.exists() and not entry.output.is_dir():
            raise UsageError(f"{path}: the output of {name} is no folder", "name another")
        if entry.source in entry.places.values():
            raise UsageError(f"{path}: {name} would replace its source", "set output")
    return entries


def _parsed(path: Path) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """The tables of models and of defaults."""
    if kind := special(path):
        raise UsageError(f"{path} is {kind}, not a file", f"name a {NAME}: bnfold build -f FILE")
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        hint = f"write a {NAME}, or name it: bnfold build -f FILE"
        raise UsageError(f"{path} cannot be read: {error.strerror}", hint) from error
    except RecursionError as error:
        raise UsageError(
            f"{path} nests too deep", "bnfold build --help shows what a file says"
        ) from error
    except ValueError as error:  # also of numbers that Python does not take
        raise UsageError(
            f"{path} is no TOML: {_short(str(error))}", "see https://toml.io"
        ) from error
    models, defaults = data.get("models", {}), data.get("defaults", {})
    if unknown := [key for key in data if key not in ("models", "defaults")]:
        raise UsageError(
            f"{path}: {_short(repr(unknown[0]))} is no table", "use [models.NAME] and [defaults]"
        )
    for what, table in {"models": models, "defaults": defaults, **_named(models)}.items():
        if not isinstance(table, dict):
            raise UsageError(f"{path}: {what} is no table", f"write [{what}]")
    if wrong := [name for name in models if not re.fullmatch(r"[\w-]{1,100}", name)]:
        hint = "use up to 100 letters, digits, _ and -: artefacts are called after it"
        raise UsageError(f"{path}: {_short(repr(wrong[0]))} is no name for a model", hint)
    if not models:
        raise UsageError(f"{path} names no model", 'add [models.NAME] with source = "FILE"')
    return models, defaults


def _named(models: Any) -> dict[str, Any]:
    return {f"models.{n}": t for n, t in models.items()} if isinstance(models, dict) else {}


def _merged(defaults: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Tables are merged key by key, all else is replaced."""
    merged = dict(defaults)
    for key, value in own.items():
        before = merged.get(key)
        both = isinstance(before, dict) and isinstance(value, dict)
        merged[key] = {**before, **value} if before is not None and both else value
    return merged


def _entry(path: Path, name: str, settings: dict[str, Any]) -> Entry:
    for key in ("inputs", "outputs", "to", "depends", "reports"):
        if isinstance(settings.get(key), str):
            settings[key] = [settings[key]]
    entry = _structured(path, f"models.{name}", {**settings, "name": name})
    if entry.conversion != Conversion() and not entry.to:
        hint = 'say what it becomes: to = ["onnx"]'
        raise UsageError(f"{path}: models.{name} has a conversion, but nothing to become", hint)
    folder = path.parent
    return replace(
        entry,
        source=folder / entry.source,
        output=folder / entry.output,
        depends=tuple(str(folder / pattern) for pattern in entry.depends),
        gate=replace(entry.gate, recorded=tuple(folder / p for p in entry.gate.recorded)),
    )


def _structured(path: Path, where: str, settings: Mapping[str, Any]) -> Entry:
    """The entry that a table describes: every setting is known, and of its own type."""
    import cattrs

    try:
        return _converter().structure(settings, Entry)
    except (cattrs.BaseValidationError, TypeError, ValueError, UsageError) as error:
        raise UsageError(
            f"{path}: {_wrong(error, where)}", "bnfold build --help shows what a file says"
        ) from error


@cache
def _converter() -> cattrs.Converter:
    """It writes code for each class, once."""
    import cattrs

    converter = cattrs.Converter(forbid_extra_keys=True)
    for kind in (bool, int, str):
        converter.register_structure_hook(kind, _strictly)
    converter.register_structure_hook(float, lambda value, _: float(_strictly(value, int, float)))
    converter.register_structure_hook(Path, lambda value, _: _path(_strictly(value, str)))
    return converter


def _wrong(error: Exception, where: str) -> str:
    """What is wrong, and where."""
    import cattrs

    if isinstance(error, cattrs.BaseValidationError):
        contradiction = error.subgroup(UsageError)
        if contradiction is not None:
            return f"{where}: {_leaf(contradiction)}"
        return "; ".join(map(_short, cattrs.transform_error(error, where, _said)))
    return _short(f"{where}: {error}")


def _short(text: str) -> str:
    """Enough of a text that somebody else wrote to know it by."""
    half = LONGEST // 2
    return text if len(text) <= LONGEST else f"{text[:half]} ... {text[-half:]}"


def _path(text: str) -> Path:
    if "\0" in text or len(os.fsencode(text)) > LONGEST_PATH:
        raise ValueError(f"{_short(repr(text))} is no path")
    return Path(text)


def _leaf(error: BaseException) -> BaseException:
    return _leaf(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error


def _said(error: BaseException, kind: type | None) -> str:
    import cattrs

    if isinstance(error, KeyError):
        return "this is missing"
    if isinstance(error, cattrs.ForbiddenExtraKeysError):
        return f"no such setting: {', '.join(sorted(error.extra_fields))}"
    return str(error) or type(error).__name__


def _strictly(value: Any, *kinds: type) -> Any:
    """`value`, if it is of one of `kinds`: nothing is converted, and a bool is no number."""
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise TypeError(f"{value!r} is no {' or '.join(kind.__name__ for kind in kinds)}")
    return value
