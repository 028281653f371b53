"""What TorchScript may call: nothing that touches files, other memory or the network."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import bnfold as package
from bnfold import Opening
from bnfold.errors import ModelError, UntrustedError
from bnfold.formats.opening import open_model
from bnfold.formats.torchscript.operators import require_admitted, require_harmless
from tests.formats.networks import trained
from tests.hostile.payload import MARK, rewritten
from tests.hostile.scripts import at_load, coded

SAVE = f'([1, 2], "{MARK}")'
SPELLINGS = {
    "as a function": f"torch.save{SAVE}",
    "as an operator": f"ops.aten.save{SAVE}",
    "as a method": f'[1, 2].save("{MARK}")',
    "in brackets": f"(torch).save{SAVE}",
    "under another name": f"f = torch.save\nf{SAVE}",
    "over two lines": f"(torch.\n      save{SAVE})",
    "behind a backslash": f"torch.\\\n      save{SAVE}",
    "behind a remark": f"(torch.  # x\n      save{SAVE})",
    "by getattr": f'getattr(torch, "save"){SAVE}',
    "by getattr in pieces": f'getattr(torch, "sa" "ve"){SAVE}',
    "by getattr of an escape": f'getattr(torch, "\\x73ave"){SAVE}',
    "by getattr of an octal escape": f'getattr(torch, "\\163ave"){SAVE}',
    "from_file": f'f = torch.from_file("{MARK}", True, 10)',
    "another library's operator": f'ops.debugprims.load_tensor("{MARK}", [1], [1])',
    "another library in brackets": f'(ops).c10d.barrier("{MARK}")',
    "another library's class": f'f = __torch__.torch.classes.torchvision.Video("{MARK}", "")',
}


@pytest.mark.parametrize("line", SPELLINGS.values(), ids=SPELLINGS)
@pytest.mark.parametrize("place", [coded, at_load], ids=["forward", "loading"])
def test_what_reaches_files_is_refused(
    line: str, place: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = (coded(line) if place is coded else at_load(line))(tmp_path)
    before = {entry.name for entry in tmp_path.iterdir()}
    with pytest.raises(UntrustedError, match="could do more than compute: it calls") as caught:
        open_model(path)
    assert caught.value.hint == "if you know where the file comes from: --trust"
    assert {entry.name for entry in tmp_path.iterdir()} == before


def test_whoever_is_trusted_may_write_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = open_model(coded(SPELLINGS["as a function"])(tmp_path), Opening(trust=True))
    model.native(torch.zeros(1, 3, 8, 8))
    assert (tmp_path / MARK).exists()


UNSAFE = {
    "a storage": "t = torch.set_(torch.ones([1]), torch.ones([2]))",
    "sparse indices": "t = torch.to_dense(torch._sparse_coo_tensor_unsafe("
    "torch.ones([1, 1], dtype=4), torch.ones([1]), [3]))",
}


@pytest.mark.parametrize("line", UNSAFE.values(), ids=UNSAFE)
def test_what_takes_memory_on_trust_is_refused(line: str, tmp_path: Path) -> None:
    path = coded(line, "torch.add(y, torch.sum(t))")(tmp_path)
    require_harmless(path)
    with pytest.raises(UntrustedError, match=r"it calls aten::(set_|_sparse_coo_tensor_unsafe)"):
        open_model(path)
    open_model(path, Opening(trust=True))


class Named(nn.Module):
    """Parts with the names of operators, and texts that are those of none."""

    def __init__(self) -> None:
        super().__init__()
        self.save, self.ops = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
        self.note = "call ops.c10d or torch.classes.x, not torch.load"
        trained(self)

    def forward(self, x: torch.Tensor, from_file: int) -> torch.Tensor:
        ops = self.ops(self.save(x))
        if from_file > 100:
            raise ValueError("save")
        return ops


def test_a_part_may_have_the_name_of_an_operator(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    torch.jit.script(Named().eval()).save(str(path))
    result = package.fold(path, ["1x3x5x7", "from_file=:int64=1"])
    assert result.passed
    assert result.plan.batchnorms.folded == 1


AT_LOAD = {
    "a default": "def more(self: {cls},\n    x: int={called}) -> int:",
    "a tuple": "class T(NamedTuple):\n  x : int={called}\ndef more(self: {cls}) -> int:",
}


@pytest.mark.parametrize("written", AT_LOAD.values(), ids=AT_LOAD)
def test_but_not_where_code_runs_while_it_is_loaded(written: str, tmp_path: Path) -> None:
    """A default may be the result of a function whose `self` is no module."""
    path = tmp_path / "m.pt"
    torch.jit.script(Named().eval()).save(str(path))
    reading = "__torch__.reading(3)"

    def change(name: str, content: bytes) -> bytes:
        old, new = b"def _check_input_dim(self: ", written.format(cls="X", called=reading).encode()
        return content.replace(old, new + b"\n    return 1\n  " + old)

    found = rewritten(path, tmp_path / "changed.pt", change)
    with pytest.raises(UntrustedError, match="it calls save"):
        require_harmless(found)


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.norm = nn.LSTM(3, 4, bidirectional=True), nn.LayerNorm(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.einsum("abc,abd->acd", self.norm(self.lstm(x)[0]), x)


def test_operators_of_layers_are_admitted(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    net = torch.jit.script(Layers().eval())
    net.save(str(path))
    require_harmless(path)
    require_admitted(net, path)


def test_a_damaged_archive_is_no_matter_of_trust(tmp_path: Path) -> None:
    path = coded("t = (")(tmp_path)
    with pytest.raises(ModelError, match="cannot be loaded"):
        open_model(path)


def test_an_operator_of_a_library_is_seen_in_the_graph_too() -> None:
    """The text of the file may not show it; what was compiled does."""
    library = torch.library.Library("outside", "DEF")
    library.define("op(Tensor x) -> Tensor")
    library.impl("op", torch.neg, "CPU")
    module = torch.jit.trace(lambda x: torch.ops.outside.op(x), torch.ones(2))
    with pytest.raises(UntrustedError, match="outside::op"):
        require_admitted(module, Path("m.pt"))
