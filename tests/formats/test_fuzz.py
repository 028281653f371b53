"""Damaged files of torch's forms: an exit code of 0 to 3, one sentence, no half-written result."""

from __future__ import annotations

import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from bnfold.formats.pytorch.nn_module import ModuleModel
from tests.conftest import Ended
from tests.formats.factories import small

CASES = 24
SHAPE = ("--input", "2x3x2x2")
FACTORY = ("--model", "tests.formats.factories:small", *SHAPE)


def older(net: nn.Module, path: Path) -> None:
    torch.save(net.state_dict(), path, _use_new_zipfile_serialization=False)


def older_module(net: nn.Module, path: Path) -> None:
    torch.save(net, path, _use_new_zipfile_serialization=False)


def checkpoint(net: nn.Module, path: Path) -> None:
    """Weights among what a training leaves beside them."""
    weights = {f"module.{name}": tensor for name, tensor in net.state_dict().items()}
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9).state_dict()
    torch.save({"epoch": 3, "model": {"state_dict": weights}, "optimizer": optimizer}, path)


def traced(net: nn.Module, path: Path) -> None:
    torch.jit.trace(net, torch.zeros(2, 3, 2, 2)).save(str(path))


def program(net: nn.Module, path: Path) -> None:
    ModuleModel(net).capture({"input": torch.zeros(2, 3, 2, 2).numpy()}).save(path)


FORMS: dict[str, tuple[Callable[[nn.Module, Path], Any], tuple[str, ...]]] = {
    "module": (torch.save, SHAPE),
    "older module": (older_module, SHAPE),
    "checkpoint": (checkpoint, FACTORY),
    "state_dict": (lambda net, path: torch.save(net.state_dict(), path), FACTORY),
    "older state_dict": (older, FACTORY),
    "safetensors": (lambda net, path: save_file(net.state_dict(), path), FACTORY),
    "torchscript": (traced, SHAPE),
    "program": (program, ()),
}


def damaged(whole: bytes, chance: random.Random) -> bytes:
    """A few bits or bytes changed, bytes missing, or the end cut off."""
    content = bytearray(whole)
    if chance.random() < 0.15:
        return bytes(content[: chance.randrange(len(content))])
    for _ in range(chance.choice((1, 1, 2, 5))):
        where, kind = chance.randrange(len(content)), chance.random()
        if kind < 0.5:
            content[where] ^= 1 << chance.randrange(8)
        elif kind < 0.8:
            content[where] = chance.choice(b"0123456789.}]tubR\x85\x86\x93\xff")
        elif len(content) > 8:
            del content[where : where + chance.randrange(1, 4)]
    return bytes(content)


def damage(path: Path, chance: random.Random) -> None:
    """Damage the file, or a member of its archive under a correct checksum."""
    whole = path.read_bytes()
    if not zipfile.is_zipfile(path) or chance.random() < 0.3:
        path.write_bytes(damaged(whole, chance))
        return
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    texts = [name for name in members if name.endswith((".pkl", ".json", ".py", ".pt"))]
    hit = chance.choice(texts if chance.random() < 0.8 else [n for n in members if members[n]])
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, damaged(content, chance) if name == hit else content)


@pytest.mark.parametrize("form", FORMS)
def test_a_damaged_file_is_folded_or_refused(
    form: str, bnfold: Callable[..., Ended], tmp_path: Path
) -> None:
    write, options = FORMS[form]
    path, result = tmp_path / "m.pt", tmp_path / "folded.pt"
    write(small(), path)
    whole = path.read_bytes()
    assert bnfold("fold", path, "-o", result, *options).code == 0
    refused = 0
    for seed in range(CASES):
        result.unlink(missing_ok=True)
        path.write_bytes(whole)
        damage(path, random.Random(f"{form} {seed}"))
        ended = bnfold("fold", path, "-o", result, *options)
        assert ended.code in (0, 1, 2, 3), (seed, ended)
        assert result.exists() == (ended.code == 0), (seed, ended)
        assert {entry.name for entry in tmp_path.iterdir()} <= {"m.pt", "folded.pt"}
        assert "Traceback" not in ended.err, (seed, ended)
        if ended.code > 1:
            refused += 1
            errors = [line for line in ended.err.splitlines() if line.startswith("error: ")]
            assert len(errors) == 1, (seed, ended)
    assert refused > CASES // 3
