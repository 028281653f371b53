"""TorchScript: code that runs while it is loaded, frozen or run; and archives that are odd."""

from __future__ import annotations

import functools
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from tests.hostile.case import HARMLESS, OPENED, REFUSED, RUN, RUNNING, TORCH, Corpus
from tests.hostile.payload import MARK, NAMES, joined
from tests.hostile.pickles import OPERATIONS

CORPUS = Corpus("torchscript", TORCH, ("--input", "1x3x8x8"))

Members = dict[str, bytes]


_SAVED = """
import sys, torch
from torch import nn
net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval()
torch.jit.script(net).save(sys.argv[1])
"""


@functools.cache
def archive() -> Members:
    """The members of a small scripted network; in a process that compiled it before, torch would
    give the network's class a number."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.pt"
        subprocess.run([sys.executable, "-W", "ignore", "-c", _SAVED, str(path)], check=True)
        with zipfile.ZipFile(path) as members:
            return {name: members.read(name) for name in members.namelist()}


CODE = "m/code/__torch__/torch/nn/modules/container.py"
FORWARD = re.compile(r"(def forward\(self: [^,]+,\n\s+input: Tensor\) -> Tensor:\n)(.*)", re.DOTALL)


def coded(before: str = "", result: str = "", methods: str = "") -> Callable[[Path], Path]:
    """The network with lines before what its forward does, another result, other methods."""

    def make(folder: Path) -> Path:
        members = dict(archive())
        members = {n: c for n, c in members.items() if not n.endswith(".debug_pkl")}
        text = members[CODE].decode()

        def change(found: re.Match[str]) -> str:
            lines = "".join(f"    {line}\n" for line in before.splitlines())
            body = found[2]
            if result:
                body = re.sub(
                    r"return (.+)", lambda m: f"y = {m[1]}\n    return {result}", body, count=1
                )
            return found[1] + lines + body

        text = FORWARD.sub(change, text, count=1)
        text += "".join(f"  {line}\n" for line in methods.splitlines())
        members[CODE] = text.encode()
        return joined(members, folder / "m.pt")

    return make


def with_members(**more: bytes | None) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        members = dict(archive())
        for name, content in more.items():
            if content is None:
                members.pop(name)
            else:
                members[name] = content
        return joined(members, folder / "m.pt")

    return make


class Setting(nn.Module):
    """A module whose __setstate__ is code of its own, which runs while it is loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.training = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), False
        self.kept = torch.ones(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(x)) + self.kept  # type: ignore[no-any-return]

    @torch.jit.export
    def __getstate__(self) -> tuple[torch.Tensor, bool]:
        return self.kept, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[torch.Tensor, bool]) -> None:
        self.kept = state[0]
        self.training = state[1]


@functools.cache
def setting() -> Members:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.pt"
        torch.jit.script(Setting().eval()).save(str(path))
        with zipfile.ZipFile(path) as members:
            return {name: members.read(name) for name in members.namelist()}


def at_load(line: str) -> Callable[[Path], Path]:
    """A line of code that runs in __setstate__."""

    def make(folder: Path) -> Path:
        members = {n: c for n, c in setting().items() if not n.endswith(".debug_pkl")}
        name = next(n for n in members if n.endswith("scripts.py") and "/code/" in n)
        text = members[name].decode()
        head, _, rest = text.partition("def __setstate__")
        first, _, rest = rest.partition("NoneType:\n")
        lines = "".join(f"    {each}\n" for each in line.splitlines())
        members[name] = f"{head}def __setstate__{first}NoneType:\n{lines}{rest}".encode()
        return joined(members, folder / "m.pt")

    return make


FILES = {
    "torch.from_file": f'f = torch.from_file("{MARK}", True, 1000)',
    "aten::save": f'torch.save([1, 2], "{MARK}")',
    "ops.aten.from_file": f'f = ops.aten.from_file("{MARK}", True, 1000)',
    "ops.aten.save": f'ops.aten.save([1, 2], "{MARK}")',
}
READ = "torch.add(y, torch.sum(f))"
ENTRY = "__torch__.torch.nn.modules.container.Sequential"
for what, line in FILES.items():
    CORPUS.add(
        f"{what} in forward",
        coded(line, READ if "from_file" in what else ""),
        commands=TORCH if what == "torch.from_file" else RUN,
    )
    if "ops" not in what:
        CORPUS.add(f"{what} while it is loaded", at_load(line), commands=OPENED)
    method = f"def more(self: {ENTRY},\n  x: Tensor) -> Tensor:\n  {line}\n  return x"
    CORPUS.add(f"{what} in another method", coded(methods=method), codes=HARMLESS, commands=OPENED)

TENSOR, NUMBER = "torch.add(y, torch.sum(t))", "torch.add(y, i)"
LOOPS: dict[str, tuple[str, str]] = {
    "a loop without end": ("i = 0\nwhile True:\n  i = torch.add(i, 1)", NUMBER),
    "a loop of 10^15": (
        "i = 0\nfor j in range(1000000000000000):\n  i = torch.add(i, 1)", NUMBER),
    "a list that grows": ("l = [1]\nwhile True:\n  l = torch.add(l, l)", ""),
    "a text that grows": ('s = "ab"\nwhile True:\n  s = torch.add(s, s)', ""),
    "a tensor of 40 GB": ("t = torch.ones([100000, 100000])", TENSOR),
    "a tensor of 4 GB": ("t = torch.ones([32000, 32000])", TENSOR),
    "a tensor of 4 GB of the input's": (
        "t = torch.repeat(input, [1, 1, 2000, 2000])", "torch.add(y, torch.max(t))"),
    "a tensor of 2^62": ("t = torch.zeros([4611686018427387904])", TENSOR),
    "an exception": ('ops.prim.RaiseException("a\\nb\\x1b[2J")', ""),
    "print": ('print("x" * 3)', ""),
    "sleep": ("ops.aten.sleep(100)", ""),
    "a division by 0": ("i = torch.floordiv(1, 0)", NUMBER),
    "a division by 0 of the input's": (
        "t = torch.to(input, 4)\nt = torch.fmod(t, torch.mul(t, 0))", TENSOR),
    "a rest of the least number": (
        "t = torch.add(torch.mul(torch.to(input, 4), 0), -9223372036854775807 - 1)\n"
        "t = torch.floor_divide(t, torch.neg(torch.ones_like(t)))", TENSOR),
    "an index that is not there": ("l = [1]\ni = l[9223372036854775807]", NUMBER),
    "sparse indices out of bounds": (
        "i = torch.mul(torch.ones([1, 1000], dtype=4), 1000000000)\n"
        "t = torch.to_dense(torch._sparse_coo_tensor_unsafe(i, torch.ones([1000]), [3]))", TENSOR),
    "a view out of bounds": (
        "t = torch.as_strided(torch.ones([1]), [1000000], [1000000], 0)", TENSOR),
    "a manual seed": ("torch.manual_seed(3)", ""),
    "a warning": ('torch.warn("w" * 3)', ""),
    "an operator that is unknown": ("t = ops.nowhere.nothing(3)", ""),
    "a function that is unknown": ("t = torch.nothing(3)", ""),
    "threads": ("torch.set_num_threads(99)", ""),
}  # fmt: skip
SILENT = ("print", "a warning", "a manual seed", "sparse indices out of bounds",
          "a rest of the least number")  # fmt: skip
EVERYWHERE = ("a loop without end", "a tensor of 40 GB", "sparse indices out of bounds")
AT_LOAD = ("a loop without end", "a list that grows", "a tensor of 4 GB", "an exception")
for what, (line, result) in LOOPS.items():
    CORPUS.add(
        f"{what} in forward",
        coded(line, result),
        codes=HARMLESS if what in SILENT else RUNNING,
        commands=TORCH if what in EVERYWHERE else RUN,
    )
    if what in AT_LOAD:
        CORPUS.add(f"{what} while it is loaded", at_load(line), commands=OPENED)

SOURCES = {
    "brackets 100,000 deep": "i = " + "(" * 100_000 + "1" + ")" * 100_000,
    "a sum of 100,000": "i = " + "1 + " * 100_000 + "1",
    "signs 100,000 deep": "i = " + "-" * 100_000 + "1",
    "lists 50,000 deep": "l = " + "[" * 50_000 + "1" + "]" * 50_000,
    "blocks 2,000 deep": "\n".join(
        f"{'  ' * i}if True:" for i in range(2000)) + "\n" + "  " * 2000 + "pass",
    "attributes 50,000 deep": "a = self" + ".a" * 50_000,
    "calls 50,000 deep": "a = " + "f(" * 50_000 + ")" * 50_000,
    "a line of 10 MB": "s = " + '"' + "x" * 10_000_000 + '"',
    "a number of 100,000 digits": "i = " + "9" * 100_000,
    "a name of a million characters": "n" * 1_000_000 + " = 1",
    "no Python": "\x00\xff{{{ import os",
    "an import": "import os\nos.system('touch mark')",
    "a class in a function": "class A:\n  pass",
    "a lambda": "f = lambda x: x",
    "a decorator": "@torch.jit.unused\ndef f(): pass",
    "a text that is not ended": 's = "x',
    "a constant that is not there": "c = CONSTANTS.c99999",
    "a type that is not there": "a = __torch__.nowhere.Nothing()",
    "itself": "t = (self).forward(input)",
    "a hundred thousand lines": "i = 1\n" * 100_000,
}  # fmt: skip
LONG = ("a line of 10 MB", "a hundred thousand lines", "a name of a million characters",
        "a sum of 100,000", "blocks 2,000 deep")  # fmt: skip
for what, line in SOURCES.items():
    CORPUS.add(
        f"code of {what}", coded(line), commands=TORCH if "brackets" in what else OPENED,
        codes=HARMLESS if what in LONG else REFUSED,
    )  # fmt: skip


def pickled(name: str) -> bytes:
    return b"\x80\x02" + OPERATIONS[name] + b"."


MEMBERS: dict[str, dict[str, bytes | None]] = {
    "data that call": {"m/data.pkl": pickled("GLOBAL and REDUCE")},
    "data by STACK_GLOBAL": {"m/data.pkl": pickled("STACK_GLOBAL")},
    "constants that call": {"m/constants.pkl": pickled("GLOBAL and REDUCE")},
    "constants by the million": {
        "m/constants.pkl": b"\x80\x02(" + b"K\x01" * 1_000_000 + b"t."},
    "constants 100,000 deep": {"m/constants.pkl": b"\x80\x02N" + b"\x85" * 100_000 + b"."},
    "a laugh of constants": {"m/constants.pkl": b"\x80\x02)" + b"2\x86" * 60 + b"."},
    "data 100,000 deep": {"m/data.pkl": b"\x80\x02N" + b"\x85" * 100_000 + b"."},
    "data of a frame of 2^62": {"m/data.pkl": b"\x80\x04\x95" + b"\xff" * 7 + b"\x3fN."},
    "data of a text of 4 GB": {"m/data.pkl": b"\x80\x02X\xff\xff\xff\xffx."},
    "data with an empty stack": {"m/data.pkl": b"\x80\x020000R."},
    "data with a memo of 2^31": {"m/data.pkl": b"\x80\x02Nr\xff\xff\xff\x7f."},
    "data with a memo that is read first": {"m/data.pkl": b"\x80\x02h\x99."},
    "no data": {"m/data.pkl": None},
    "no constants": {"m/constants.pkl": None},
    "a version of 10^30": {"m/version": b"9" * 30},
    "big-endian bytes": {"m/byteorder": b"big"},
    "an older description": {
        "m/model.json": b'{"protoVersion": "6", "mainModule": {}}', CODE: None},
    "an older description beside the code": {"m/model.json": b"[" * 100_000},
    "debug data that call": {CODE + ".debug_pkl": pickled("GLOBAL and REDUCE")},
    "bytecode": {"m/bytecode.pkl": pickled("GLOBAL and REDUCE")},
    "an extra file that leaves": {"m/extra/../../mark": b"x"},
    "an extra file of a strange name": {"m/extra/\x1b[2J": b"x"},
    "an extra file that is not UTF-8": {"m/extra/x": b"\xff\xfe\x00"},
    "code at a path": {"m/code/../../mark.py": b"x"},
    "code that is empty": {CODE: b""},
    "code that is not UTF-8": {CODE: b"\xff\xfe" * 100},
}  # fmt: skip
for what, members in MEMBERS.items():
    CORPUS.add(what, with_members(**members), commands=OPENED, codes=HARMLESS)


def traced(folder: Path) -> Path:
    """Twenty thousand operators in a row."""
    lines = ["t = input", *["t = torch.relu(t)"] * 20_000]
    return coded("\n".join(lines), "torch.add(y, torch.sum(t))")(folder)


CORPUS.add("20,000 operators in a row", traced, codes=HARMLESS, commands=OPENED)


def renamed(name: str) -> Callable[[Path], Path]:
    """A module and a parameter called so, which the code asks for by getattr."""

    def make(folder: Path) -> Path:
        escaped = name.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        members = {}
        for member, content in archive().items():
            if member.endswith(".debug_pkl"):
                continue
            if member.endswith(".py"):
                text = content.decode().replace('"0"', f'"{escaped}"')
                content = text.encode("utf-8", "surrogatepass")
            members[member] = content
        encoded = name.encode("utf-8", "surrogatepass")
        old = b"X\x01\x00\x00\x000"
        data = members["m/data.pkl"]
        members["m/data.pkl"] = data.replace(
            old, b"X" + len(encoded).to_bytes(4, "little") + encoded
        )
        return joined(members, folder / "m.pt")

    return make


for what, name in NAMES.items():
    if what not in ("100,000 characters",):
        CORPUS.add(
            f"a module's name: {what}",
            renamed(name),
            codes=HARMLESS,
            commands=("inspect", "fold", "fold graph", "export pt2"),
        )
