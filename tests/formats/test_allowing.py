"""What --allow lets a pickle do: fill the classes of a package, and call what was named exactly."""

from __future__ import annotations

import importlib
import pickle
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bnfold.errors import UntrustedError, UsageError
from bnfold.formats.pytorch.pickles import unpickle
from tests.hostile.pickles import CONTAINERS, call, named

SOURCE = """
import builtins, enum, functools, importlib, os, pickle, shutil, subprocess, sys
from importlib import import_module
from os import system
from shutil import rmtree
from subprocess import Popen
import torch
from torch import nn

run, compiled, leave, loads, load = eval, compile, sys.exit, pickle.loads, torch.load
hub, script, program = torch.hub.load, torch.jit.load, torch.export.load
attribute, Code = getattr, type(compile("0", "x", "eval"))
Unpickler = pickle.Unpickler
bound = functools.partial(system, "mkdir mark")

class Kind(enum.Enum):
    SMALL = "small"

class Settings:
    pass

class Shell:
    def __init__(self, command):
        system(command)
    def __call__(self, command):
        system(command)
    def run(self, command):
        system(command)

shell = Shell("true")
method = shell.run
unbound = Shell.run

def swish(x):
    return x * x.sigmoid()

class Net(nn.Module):
    class Inner(nn.Module):
        pass

    def __init__(self):
        super().__init__()
        self.conv, self.act = nn.Conv2d(3, 4, 1), swish
        self.kind, self.settings = Kind.SMALL, Settings()

    def forward(self, x):
        return self.act(self.conv(x))
"""

Write = Callable[[Any, str], Path]


@pytest.fixture(autouse=True)
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The package `lender` with a module `nets`, in the current folder."""
    (tmp_path / "lender").mkdir()
    (tmp_path / "lender/__init__.py").touch()
    (tmp_path / "lender/nets.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield importlib.import_module("lender.nets")
    for name in [name for name in sys.modules if name.partition(".")[0] == "lender"]:
        del sys.modules[name]


@pytest.fixture
def saved(package: Any, tmp_path: Path) -> Path:
    torch.save(package.Net(), tmp_path / "m.pt")
    return tmp_path / "m.pt"


NAMES = ("lender.nets.Kind", "lender.nets.Net", "lender.nets.Settings", "lender.nets.swish")


@pytest.mark.parametrize(
    "allow",
    [
        NAMES,
        (",".join(NAMES),),
        ("lender:nets.Net", " lender.nets.Settings , lender.nets.Kind", "lender.nets.swish"),
        ("lender", "lender.nets.swish"),
        ("lender.nets", "lender.nets.swish"),
        ("lender.*,lender.nets.swish",),
        ("lender.n*s.[A-Z]*", "lender.nets.sw?sh", "lender.nets.swish"),
        ("@allowed.txt",),
    ],
)
def test_ways_to_allow(allow: tuple[str, ...], saved: Path) -> None:
    lines = ["# what our networks are made of", "lender", "", "lender.nets.swish  # a function"]
    Path("allowed.txt").write_text("\n".join(lines))
    found = unpickle(saved, allow)
    assert type(found).__name__ == "Net"
    assert found.kind.value == "small"


@pytest.mark.parametrize(
    "allow", [(), ("lend",), ("lender.net",), ("lender.nets.N",), ("other.*",), ("nets",)]
)
def test_what_is_not_covered(allow: tuple[str, ...], saved: Path) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "lender"]:
        del sys.modules[name]
    with pytest.raises(UntrustedError) as caught:
        unpickle(saved, allow)
    assert caught.value.needed == NAMES
    assert "lender" not in sys.modules


def test_the_line_to_type_is_short_and_enough(saved: Path) -> None:
    with pytest.raises(UntrustedError) as caught:
        unpickle(saved)
    line = str(caught.value.hint).split(": ")[1].split(" (")[0]
    assert line == "--allow lender --allow lender.nets.Kind --allow lender.nets.swish"
    assert type(unpickle(saved, line.split()[1::2])).__name__ == "Net"


def test_a_single_class_is_named(package: Any) -> None:
    torch.save({"x": package.Settings()}, "m.pt")
    with pytest.raises(UntrustedError, match=r"lender\.nets\.Settings") as caught:
        unpickle(Path("m.pt"))
    assert "--allow lender.nets.Settings (or" in str(caught.value.hint)


BY_ITS_NAME = {
    "a function": ("lender.nets.swish", "is no class"),
    "a function that is called": ("lender.nets.swish", "is no class"),
    "a class that is called": ("lender.nets.Shell", "calls with arguments of its own"),
}


@pytest.mark.parametrize("kind", BY_ITS_NAME)
@pytest.mark.parametrize("allow", ["lender", "lender.nets.*"])
def test_what_a_package_does_not_cover(kind: str, allow: str) -> None:
    name, said = BY_ITS_NAME[kind]
    harm = call(name, b"X\x04\x00\x00\x00true") if "called" in kind else named(name)
    path = CONTAINERS["zip"](harm, Path("m.pt"))
    with pytest.raises(UntrustedError, match=said) as caught:
        unpickle(path, [allow])
    assert str(caught.value.hint).endswith(f"--allow {name}")


def test_a_class_that_torch_would_call_for_the_file() -> None:
    rebuild = call(
        "torch._tensor._rebuild_from_type_v2",
        named("lender.nets.Shell"),
        named("torch.Tensor"),
        b"X\x0a\x00\x00\x00mkdir mark\x85",
        b"}",
    )
    with pytest.raises(UntrustedError, match="calls with arguments of its own"):
        unpickle(CONTAINERS["zip"](rebuild, Path("m.pt")), ["lender"])
    assert not Path("mark").exists()


REEXPORTED = (
    *("system", "run", "compiled", "leave", "loads", "load", "hub", "script", "program"),
    *("import_module", "rmtree", "Popen", "attribute", "Code", "Unpickler"),
    *("bound", "shell", "method", "unbound"),
)


@pytest.mark.parametrize("name", REEXPORTED)
@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("allow", ["lender", "lender.nets.*", "lender.nets.{}"])
def test_what_runs_code_is_never_allowed(name: str, container: str, allow: str) -> None:
    harm = call(f"lender.nets.{name}", b"X\x0a\x00\x00\x00mkdir mark")
    path = CONTAINERS[container](harm, Path("m.pt"))
    with pytest.raises((UntrustedError, UsageError), match=f"lender.nets.{name}") as caught:
        unpickle(path, [allow.format(name)])
    assert "--trust" in str(caught.value.hint)
    assert not Path("mark").exists()


@pytest.mark.parametrize("name", REEXPORTED)
def test_nor_is_it_as_an_attribute(name: str, package: Any) -> None:
    """A network would call it later, on what it computes."""
    path = CONTAINERS["zip"](named(f"lender.nets.{name}"), Path("m.pt"))
    with pytest.raises(UntrustedError, match=f"lender.nets.{name}"):
        unpickle(path, ["lender"])


@pytest.mark.parametrize("route", ["os.system", "nets.os.system", "nets.Shell.run", "nets.torch"])
@pytest.mark.parametrize("allow", ["lender", "lender.{}"])
def test_modules_are_no_way_to_others(route: str, allow: str) -> None:
    path = CONTAINERS["zip"](call(f"lender.{route}", b"X\x00\x00\x00\x00"), Path("m.pt"))
    with pytest.raises((UntrustedError, UsageError)):
        unpickle(path, [allow.format(route)])


@pytest.mark.parametrize(
    "allow",
    [
        *("*", "?ender", "*.Net", "[lm]ender.*", "os", "os.*", "builtins", "posix", "subprocess"),
        *("pickle.Unpickler", "importlib.*", "shutil", "sys", "ctypes.CDLL", "torch.load"),
        *("lender,os.system", "torch.hub.load", "torch.jit._serialization.load"),
    ],
)
def test_what_would_allow_anything(allow: str, saved: Path) -> None:
    with pytest.raises(UsageError, match="would allow the file to do anything"):
        unpickle(saved, [allow])


def test_torchs_own_classes_by_a_pattern(tmp_path: Path) -> None:
    torch.save(torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=0.1), "m.pt")
    with pytest.raises(UntrustedError) as caught:
        unpickle(Path("m.pt"))
    assert all(name in str(caught.value.hint) for name in caught.value.needed)
    harm = call("torch.hub.load", b"X\x00\x00\x00\x00")
    with pytest.raises(UntrustedError):
        unpickle(CONTAINERS["zip"](harm, Path("h.pt")), ["torch.*"])
    layers = CONTAINERS["zip"](call("torch.nn.utils.rnn.PackedSequence"), Path("p.pt"))
    with pytest.raises(UntrustedError):
        unpickle(layers, ["torch.nn.modules.*"])


def test_a_file_that_is_not_there(saved: Path) -> None:
    with pytest.raises(UsageError, match=r"--allow @nothing\.txt cannot be read"):
        unpickle(saved, ["@nothing.txt"])


def test_a_class_of_another_package(package: Any) -> None:
    """A package does not speak for those that it imports."""
    shutil.copytree("lender", "other")
    Path("other/nets.py").write_text("from lender.nets import Settings\n")
    path = CONTAINERS["zip"](named("other.nets.Settings") + b")\x81", Path("m.pt"))
    with pytest.raises(UntrustedError, match=r"comes from lender\.nets"):
        unpickle(path, ["other"])
    assert type(unpickle(path, ["other.nets.Settings"])) is package.Settings
    sys.modules.pop("other.nets", None)
    sys.modules.pop("other", None)


def test_a_plain_pickle(package: Any) -> None:
    Path("m.pt").write_bytes(pickle.dumps({"a": package.Settings(), "b": package.Net()}))
    found = unpickle(Path("m.pt"), ["lender", "lender.nets.Kind,lender.nets.swish"])
    assert type(found["b"]) is package.Net
