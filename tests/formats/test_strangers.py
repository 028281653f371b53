"""What a checkpoint holds beside its weights, of classes that nobody allowed: not run, not lost."""

from __future__ import annotations

import argparse
import importlib
import pickle
import sys
import typing
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bnfold import Opening, fold
from bnfold.errors import UntrustedError
from bnfold.formats.opening import open_model
from bnfold.formats.pytorch.pickles import unpickle
from tests.formats import factories
from tests.formats.networks import trained

SOURCE = """
import collections, enum, os
os.mkdir("imported")

class Kind(enum.Enum):
    SMALL = "small"

class Config(dict):
    pass

class Row(list):
    pass

class Settings:
    def __init__(self, **entries):
        self.__dict__.update(entries)
    def __eq__(self, other):
        return vars(self) == vars(other)
    __hash__ = None

class Point(collections.namedtuple("Point", "x y")):
    pass

class Reduced(Settings):
    def __reduce__(self):
        return Reduced, (), vars(self)
"""

OPENING = Opening(factory="tests.formats.factories:Net")


@pytest.fixture(autouse=True)
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    (tmp_path / "training_of_others.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield importlib.import_module("training_of_others")
    sys.modules.pop("training_of_others", None)


def forgotten() -> None:
    """As on a machine that has the file and not the code."""
    sys.modules.pop("training_of_others", None)
    Path("imported").rmdir()


def entries(package: Any) -> dict[str, Any]:
    shared = package.Settings(lr=0.1)
    return {
        "namespace": argparse.Namespace(lr=0.1, deep=package.Settings(a=1)),
        "a mapping": package.Config(lr=0.1, deep=package.Config(a=[1, 2])),
        "settings": package.Settings(kind=package.Kind.SMALL, sizes=(1, 2)),
        "an enumeration": {package.Kind.SMALL: 1},
        "a class": package.Settings,
        "a type": typing.Any,
        "a tuple": package.Point(1, package.Point(2, 3)),
        "reduced": package.Reduced(a=1),
        "shared": [shared, shared],
        "tensors": package.Settings(mean=torch.arange(3)),
    }


KINDS = (
    *("namespace", "a mapping", "settings", "an enumeration", "a class", "a type", "a tuple"),
    *("reduced", "shared", "tensors"),
)


@pytest.mark.parametrize("newer", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_written_back_and_not_run(kind: str, newer: bool, package: Any) -> None:
    entry = entries(package)[kind]
    state = trained(factories.Net()).state_dict()
    checkpoint = {"hyper_parameters": entry, "state_dict": state, "epoch": 3}
    torch.save(checkpoint, "w.ckpt", _use_new_zipfile_serialization=newer)
    forgotten()
    model = open_model("w.ckpt", OPENING)
    model.save(Path("again.ckpt"))
    assert not Path("imported").exists()
    importlib.import_module("training_of_others")
    again = torch.load("again.ckpt", weights_only=False)
    before = torch.load("w.ckpt", weights_only=False)
    assert again.keys() == checkpoint.keys()
    if kind == "tensors":
        assert torch.equal(again["hyper_parameters"].mean, torch.arange(3))
    else:
        assert again["hyper_parameters"] == before["hyper_parameters"]
        assert type(again["hyper_parameters"]) is type(before["hyper_parameters"])
    if kind == "shared":
        first, second = again["hyper_parameters"]
        assert first is second


def test_a_fold_of_it_opens_again(package: Any) -> None:
    state = {f"model.{k}": t for k, t in trained(factories.Net()).state_dict().items()}
    torch.save({"state_dict": state, "hparams": package.Config(lr=0.1)}, "w.ckpt")
    result = fold("w.ckpt", "2x3x9x7", opening=OPENING)
    assert result.passed
    result.save("folded.ckpt")
    assert fold("folded.ckpt", "2x3x9x7", opening=OPENING).passed


@pytest.mark.parametrize("where", ["the weights", "a list", "without a factory"])
def test_otherwise_the_line_to_type_is_told(where: str, package: Any) -> None:
    state = trained(factories.Net()).state_dict()
    checkpoint: Any = {"state_dict": state, "x": package.Config()}
    if where == "the weights":
        checkpoint = {"state_dict": package.Config(state)}
    elif where == "a list":
        checkpoint["x"] = package.Row([1, 2, 3])
    torch.save(checkpoint, "w.ckpt")
    forgotten()
    opening = Opening() if where == "without a factory" else OPENING
    with pytest.raises(UntrustedError) as caught:
        open_model("w.ckpt", opening)
    (name,) = caught.value.needed
    assert f"--allow {name}" in str(caught.value.hint)
    assert not Path("imported").exists()


def test_an_allowed_mapping_takes_its_items(package: Any) -> None:
    torch.save({"x": package.Config(lr=0.1)}, "w.ckpt")
    assert unpickle(Path("w.ckpt"), ["training_of_others"])["x"] == {"lr": 0.1}


class Powerful:
    def __reduce__(self) -> Any:
        return eval, ("__import__('os').mkdir('ran')",)


@pytest.mark.parametrize("write", [torch.save, lambda e, p: p.write_bytes(pickle.dumps(e))])
def test_what_could_do_anything_is_refused_all_the_same(write: Any, package: Any) -> None:
    state = OrderedDict(trained(factories.Net()).state_dict())
    write({"state_dict": state, "x": Powerful(), "y": package.Settings()}, Path("w.ckpt"))
    with pytest.raises(UntrustedError, match=r"builtins\.eval"):
        open_model("w.ckpt", OPENING)
    assert not Path("ran").exists()


def test_numbers_beside_it_stay(package: Any) -> None:
    state = trained(factories.Net()).state_dict()
    torch.save({"state_dict": state, "x": package.Settings(best=np.float64(0.5))}, "w.ckpt")
    open_model("w.ckpt", OPENING).save(Path("again.ckpt"))
    assert torch.load("again.ckpt", weights_only=False)["x"].best == 0.5
