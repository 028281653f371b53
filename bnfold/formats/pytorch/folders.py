"""Folders of a library: config.json says which network it builds, and the files have the weights.

    transformers                  architectures: ["ResNetForImageClassification"]
    timm                          architecture: "resnet18"
    segmentation_models_pytorch   _model_class: "Unet"

The library builds the network, from the folder alone: it contacts no hub and runs no code of the
folder. What is written is a folder of the same files, with the folded weights in their places.
"""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from bnfold.errors import BnfoldError, EnvironmentLacksError, ModelError, UsageError
from bnfold.formats.model import Format
from bnfold.formats.pytorch.state_dict import Factory, StateDictModel, build
from bnfold.formats.pytorch.weight_files import SUFFIXES, WeightFiles, weight_files
from bnfold.process_state import changed, quiet

_CONFIG = "config.json"


class FolderModel(StateDictModel):
    """A module whose weights lie in a folder with what its library needs to build it."""

    format = Format.FOLDER
    folder: Path
    files: WeightFiles

    def how_to_load(self, path: Path) -> tuple[str, ...]:
        return () if self.compact else ("its library loads the folder as it is",)

    def save(self, path: Path) -> None:
        """Write a folder: what is beside the weights is copied, but not weights of other kinds."""
        path.mkdir()
        for entry in sorted(self.folder.iterdir()):
            if entry.is_file() and not entry.name.endswith(SUFFIXES):
                shutil.copyfile(entry, path / entry.name)
        state = {**self._surroundings.named(self._state()), **self._surroundings.rest}
        whole = self._surroundings.around(state)
        self.files.write(path, whole, self._changes.to_json(), self._surroundings.metadata)


def open_folder(folder: Path, factory: Factory | None, opening: Any) -> FolderModel:
    """The network of `folder`, built by its library or by `factory`. Raises BnfoldError."""
    files = weight_files(folder)
    make = _factory(folder) if factory is None else factory
    state = files.read(folder, opening.allow, trust=opening.trust)
    with _offline():
        model = build(folder, state, make, FolderModel, opening.weights)
    assert isinstance(model, FolderModel)
    model.folder, model.files = folder, files
    model.stored = sum((folder / file).stat().st_size for file in files.files)
    return model


def _factory(folder: Path) -> Factory:
    """How the library of the folder builds its network."""
    config = _config(folder)
    for key, library, make in _LIBRARIES:
        if config.get(key):
            return Factory(_Maker(folder.absolute(), library, config, make))
    raise UsageError(
        f"{folder / _CONFIG} names no network of transformers, timm or segmentation_models_pytorch",
        "say how to build it: --model pkg.mod:factory (a class or function)",
    )


@dataclass(frozen=True, repr=False, slots=True)
class _Maker:
    """Builds the network of a folder, without weights."""

    folder: Path
    library: str
    config: Mapping[str, Any]
    make: Callable[[Any, Path, Mapping[str, Any]], nn.Module]

    def __repr__(self) -> str:
        return f"the network of {self.library}"

    def __call__(self) -> nn.Module:
        try:
            library = importlib.import_module(self.library)
        except ImportError as error:
            raise EnvironmentLacksError(
                f"{self.folder} is a folder of {self.library}, which is not here: {error}",
                f"pip install {self.library.replace('_', '-')}",
            ) from error
        try:
            with quiet(), _offline():
                return self.make(library, self.folder, self.config)
        except BnfoldError:
            raise
        except Exception as error:
            raise ModelError(
                f"{self.library} cannot build the network of {self.folder}: {error}",
                f"see whether the installed {self.library} loads it",
            ) from error


def _of_transformers(library: Any, folder: Path, config: Mapping[str, Any]) -> Any:
    if config.get("auto_map"):
        raise UsageError(
            f"{folder} brings the code of its network along, which is not run",
            "import its class yourself, and name it: --model pkg.mod:factory",
        )
    settings = library.AutoConfig.from_pretrained(folder, local_files_only=True)
    settings.use_pretrained_backbone = False
    (name,) = config["architectures"]
    return getattr(library, name)(settings)


def _of_timm(library: Any, folder: Path, config: Mapping[str, Any]) -> Any:
    return library.create_model(f"local-dir:{folder}", pretrained=False)


def _of_segmentation_models(library: Any, folder: Path, config: Mapping[str, Any]) -> Any:
    arguments = {name: value for name, value in config.items() if name != "_model_class"}
    return getattr(library, config["_model_class"])(**{**arguments, "encoder_weights": None})


_LIBRARIES = (
    ("_model_class", "segmentation_models_pytorch", _of_segmentation_models),
    ("architectures", "transformers", _of_transformers),
    ("architecture", "timm", _of_timm),
)
"""The entry of config.json that names the network, the library, and how it builds it."""


def _config(folder: Path) -> Mapping[str, Any]:
    path = folder / _CONFIG
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UsageError(
            f"{folder} has no {_CONFIG}, which would say what network it is",
            "say how to build it: --model pkg.mod:factory (a class or function)",
        ) from error
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}", "download it again") from error
    if not isinstance(found, Mapping):
        raise ModelError(f"{path} holds no settings of a network", "download it again")
    return found


@contextmanager
def _offline() -> Iterator[None]:
    """No library asks the hub, whatever a configuration names."""
    try:
        from huggingface_hub import constants
    except ImportError:
        yield
        return

    def switch(offline: bool) -> None:
        constants.HF_HUB_OFFLINE = offline

    with changed(lambda: bool(constants.HF_HUB_OFFLINE), switch, True):
        yield
