"""Pickled modules: instructions that call, objects whose state does, and sizes that are not so."""

from __future__ import annotations

import io
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tests.hostile.case import HARMLESS, RUN, TORCH, Corpus
from tests.hostile.payload import EXPRESSION, MARK, NAMES

CORPUS = Corpus("module", TORCH, ("--input", "1x3x8x8"))

MANY = 1 << 60


def text(value: str) -> bytes:
    encoded = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def number(value: int) -> bytes:
    size = value.bit_length() // 8 + 1
    return b"\x8a" + bytes([size]) + value.to_bytes(size, "little", signed=True)


def named(name: str) -> bytes:
    module, _, attribute = name.rpartition(".")
    return f"c{module}\n{attribute}\n".encode()


def call(name: str, *arguments: bytes) -> bytes:
    return named(name) + b"(" + b"".join(arguments) + b"tR"


def table(**entries: bytes) -> bytes:
    return b"}(" + b"".join(text(key) + value for key, value in entries.items()) + b"u"


def module(name: str, **state: bytes) -> bytes:
    """A module of torch's own with these attributes and no others."""
    return named(f"torch.nn.modules.{name}") + b")\x81" + table(**state) + b"b"


def zipped(instructions: bytes, path: Path, protocol: int = 2) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("m/data.pkl", bytes([0x80, protocol]) + instructions + b".")
        archive.writestr("m/version", "3\n")
        archive.writestr("m/data/0", bytes(64))
    return path


def legacy(instructions: bytes, path: Path) -> Path:
    buffer = io.BytesIO()
    torch.save(3, buffer, _use_new_zipfile_serialization=False)
    before, after = buffer.getvalue().split(b"\x80\x02K\x03.")
    path.write_bytes(before + b"\x80\x02" + instructions + b"." + after)
    return path


def plain(instructions: bytes, path: Path) -> Path:
    path.write_bytes(b"\x80\x04" + instructions + b".")
    return path


CONTAINERS: dict[str, Callable[[bytes, Path], Path]] = {
    "zip": zipped,
    "legacy": legacy,
    "plain": plain,
}


def storage(key: str = "0", count: bytes = b"K\x10", place: str = "cpu") -> bytes:
    return (
        b"(" + text("storage") + named("torch.FloatStorage") + text(key) + text(place) + count
    ) + b"tQ"


def tensor(sizes: bytes, strides: bytes, offset: bytes = b"K\x00", of: bytes = b"") -> bytes:
    return call(
        "torch._utils._rebuild_tensor_v2",
        *(of or storage(), offset, sizes, strides, b"\x89", call("collections.OrderedDict")),
    )


def several(*numbers: int) -> bytes:
    return b"(" + b"".join(map(number, numbers)) + b"t"


MKDIR = (text(MARK),)
OPERATIONS = {
    "GLOBAL and REDUCE": call("posix.mkdir", *MKDIR),
    "STACK_GLOBAL": text("posix") + text("mkdir") + b"\x93" + text(MARK) + b"\x85R",
    "INST": b"(" + text(MARK) + b"iposix\nmkdir\n",
    "OBJ": b"(" + named("posix.mkdir") + text(MARK) + b"o",
    "NEWOBJ": named("subprocess.Popen") + b"(" + text("touch mark") + b"t\x81",
    "NEWOBJ_EX": named("subprocess.Popen") + b")" + table(args=text("touch mark")) + b"\x92",
    "BUILD of a Popen": named("argparse.Namespace") + b")\x81}N\x86" + call("os.system") + b"b",
    "an extension": b"\x82\x01)R",
    "eval": call("builtins.eval", text(EXPRESSION)),
    "eval, as Python 2 called it": call("__builtin__.eval", text(EXPRESSION)),
    "getattr": call("builtins.getattr", named("torch.nn.Module"), text("__subclasses__")),
    "a dotted name": b"\x80\x04"
    + text("torch.nn.modules.module")
    + text("torch.os.mkdir")
    + b"\x93"
    + text(MARK)
    + b"\x85R",
    "a name with a class in it": named("torch.nn.modules.linear.Linear.__class__") + b")R",
    "torch.load": call("torch.load", text(MARK)),
    "torch.hub": call("torch.hub.load", text("a/b"), text("c")),
    "torch.jit.load": call("torch.jit.load", text(MARK)),
    "torch.ops.load_library": call("torch.ops.load_library", text(MARK)),
    "torch.fx": call("torch.fx.graph_module.reduce_graph_module", b"}", text("import os")),
    "torch._dynamo": call("torch._dynamo.config.load_config", text(MARK)),
    "numpy.load": call("numpy.load", text(MARK)),
    "a partial": call("functools.partial", named("os.system"), text("touch mark")) + b")R",
    "bytes that encode calls": call("_codecs.encode", text(EXPRESSION), text("unicode_escape")),
    "a codec that imports": call("_codecs.encode", text("x"), text("os")),
    "webbrowser": call("webbrowser.open", text("http://127.0.0.1:9")),
    "a socket": call("socket.create_connection", several(0, 9)),
    "ctypes": call("ctypes.CDLL", text(MARK)),
    "an import alone": named("antigravity.fly"),
    "pip": call("pip._internal.main", b"]"),
    "a persistent id of no storage": text("os.system") + b"Q",
    "a persistent id in text": b"Pos.system\n",
    "a call that is thrown away": call("posix.mkdir", *MKDIR) + b"0N",
    "safe globals": call("torch.serialization.add_safe_globals", b"]" + named("os.system") + b"a"),
    "a method of a class": call("torch.nn.modules.module.Module.__setattr__", text("x")),
    "tensors by another function": call(
        "torch._tensor._rebuild_from_type_v2",
        named("posix.mkdir"),
        named("torch.Tensor"),
        b"(" + text(MARK) + b"t",
        b"}",
    ),
    "a wrapper of a class": call(
        "torch._utils._rebuild_wrapper_subclass",
        named("torch.Tensor"),
        named("torch.float32"),
        several(1 << 40),
        several(1),
        b"K\x00",
        named("torch.strided"),
        call("torch.device", text("cpu")),
        b"\x89",
    ),
}

for i, (what, code) in enumerate(OPERATIONS.items()):
    kept = [*CONTAINERS][i % 3]
    for name in [*CONTAINERS] if i < 2 else [kept]:
        CORPUS.add(f"{what}, {name}", lambda d, c=code, n=name: CONTAINERS[n](c, d / "m.pt"))

LAUGHS = b")" + b"2\x86" * 60
"""A tuple of itself twice, 60 times: 2^60 entries to whoever walks it."""

LINEAR = "torch.nn.modules.linear.Linear"
SIZES = {
    "a layer that is built, of 40 GB": call(LINEAR, number(100_000), number(100_000)),
    "a layer that is built, of 10^18 weights": call(LINEAR, number(10**9), number(10**9)),
    "a Counter of a range": call("collections.Counter", call("builtins.range", number(10**10))),
    "a bytearray": call("builtins.bytearray", number(1 << 40)),
    "a size of many dimensions": call("torch.Size", b"(" + b"K\x01" * 100_000 + b"t"),
    "a laugh": LAUGHS,
    "a laugh as a key": b"}" + LAUGHS + b"Ns",
    "a laugh in a set": call("builtins.set", b"(" + LAUGHS + b"t"),
    "a long in text": b"L" + b"9" * 200_000 + b"L\n",
    "an integer in text": b"I" + b"9" * 200_000 + b"\n",
    "a frame that is longer than the file": b"\x95" + struct.pack("<Q", 1 << 62) + b"N",
    "a text that is longer than the file": b"\x8d" + struct.pack("<Q", 1 << 62),
    "a memo of 2^32": b"Nr\xff\xff\xff\xff",
    "100,000 levels": b"N" + b"\x85" * 100_000,
    "a stack that is empty": b"000R",
    "a mark that is missing": b"Nt",
    "instructions that do not exist": b"\xff\xfe\xfd",
}
for what, code in SIZES.items():
    CORPUS.add(
        what,
        lambda d, c=code: zipped(c, d / "m.pt"),
        commands=("inspect", "fold", "golden", "build"),
    )
    if "built" in what or "laugh" in what:
        CORPUS.add(
            f"{what}, plain", lambda d, c=code: plain(c, d / "m.pt"), commands=("inspect", "build")
        )


WEIGHT = tensor(several(4, 3, 1, 1), several(3, 1, 1, 1))
GEOMETRY = {
    "strides of -1": tensor(several(4, 3), several(-1, -1)),
    "sizes of -1": tensor(several(-1, 3), several(3, 1)),
    "an offset of -1": tensor(several(4, 3), several(3, 1), number(-1)),
    "an offset past the end": tensor(several(4, 3), several(3, 1), number(MANY)),
    "sizes that overflow": tensor(several(1 << 32, 1 << 32), several(1, 1)),
    "strides that overflow": tensor(several(4, 3), several(MANY, MANY)),
    "a count that overflows": tensor(several(4, 3), several(3, 1), of=storage(count=number(MANY))),
    "a key that is a path": tensor(several(4, 3), several(3, 1), of=storage("../../../etc/passwd")),
    "a key of 100,000 characters": tensor(several(4, 3), several(3, 1), of=storage("k" * 100_000)),
    "a storage on another device": tensor(
        several(4, 3), several(3, 1), of=storage(place="cuda:99")
    ),
    "a storage nowhere": tensor(
        several(4, 3), several(3, 1), of=storage(place="file:///etc/passwd")
    ),
    "a meta tensor": call(
        "torch._utils._rebuild_meta_tensor_no_storage",
        named("torch.float32"),
        several(1 << 30, 1 << 20),
        several(1, 1),
        b"\x89",
    ),
    "a sparse tensor with indices out of bounds": call(
        "torch._utils._rebuild_sparse_tensor",
        named("torch.sparse_coo"),
        b"("
        + tensor(several(2, 4), several(4, 1))
        + tensor(several(4), several(1))
        + call("torch.Size", several(4, 3))
        + b"\x88t",
    ),
    "a Parameter of a number": call("torch._utils._rebuild_parameter", b"K\x03\x89", b"}"),
    "an empty tensor that is set": named("torch.FloatTensor")
    + b")\x81("
    + storage()
    + number(-5)
    + several(MANY)
    + several(1)
    + b"tb",
}


def convolution(weight: bytes, **state: bytes) -> bytes:
    """A Conv2d in every respect but those given."""
    usual = {
        "training": b"\x89", "_parameters": table(weight=weight, bias=b"N"), "_buffers": b"}",
        "_modules": b"}", "in_channels": b"K\x03", "out_channels": b"K\x04",
        "kernel_size": several(1, 1), "stride": several(1, 1), "padding": several(0, 0),
        "dilation": several(1, 1), "transposed": b"\x89", "output_padding": several(0, 0),
        "groups": b"K\x01", "padding_mode": text("zeros"),
        "_reversed_padding_repeated_twice": b"]",
        **{n: b"}" for n in vars(nn.Module()) if n.endswith(("hooks", "kwargs", "called"))},
        "_non_persistent_buffers_set": call("builtins.set"), "_is_full_backward_hook": b"N",
    }  # fmt: skip
    return module("conv.Conv2d", **{**usual, **state})


for i, (what, code) in enumerate(GEOMETRY.items()):
    body = convolution(code)
    CORPUS.add(what, lambda d, c=body: zipped(c, d / "m.pt"), commands=TORCH if i < 3 else RUN)


def saved(net: Any, path: Path) -> Path:
    torch.save(net, path / "m.pt")
    return path / "m.pt"


def network(**attributes: Any) -> nn.Module:
    """A convolution and its BatchNorm, with the attributes given to the convolution."""
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU()).eval()
    vars(net[0]).update(attributes)
    return net


def around(layer: Callable[[], nn.Module]) -> Callable[[Path], Path]:
    return lambda d: saved(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), layer()).eval(), d)


def renamed(name: str) -> Callable[[Path], Path]:
    """A network with that name for a module, a parameter, a buffer and an attribute."""

    def make(folder: Path) -> Path:
        net = nn.Sequential(OrderedDict(a=nn.Conv2d(3, 4, 1), b=nn.BatchNorm2d(4))).eval()
        net._modules[name] = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)).eval()
        net._modules[name]._buffers[name] = torch.ones(1)
        return saved(net, folder)

    return make


for what, code in NAMES.items():
    CORPUS.add(
        f"a module's name: {what}",
        renamed(code),
        codes=HARMLESS,
        commands=TORCH if what.startswith("closing double") else ("inspect", "fold", "fold graph"),
    )


def parameter_called(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        net = network()
        net[0]._parameters[name] = nn.Parameter(torch.ones(1))
        return saved(net, folder)

    return make


for what in ("closing double quotes", "new lines", "a dunder", "a method", "escapes"):
    CORPUS.add(
        f"a parameter's name: {what}",
        parameter_called(NAMES[what]),
        codes=HARMLESS,
        commands=("inspect", "fold", "fold graph", "export pt2"),
    )


def itself(folder: Path) -> Path:
    net = nn.Sequential(nn.Conv2d(3, 4, 1))
    net._modules["1"] = net
    return saved(net, folder)


def deep(folder: Path) -> Path:
    net: nn.Module = nn.Conv2d(3, 3, 1)
    for _ in range(100):
        net = nn.Sequential(net)
    return saved(net.eval(), folder)


def normalised(**attributes: Any) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        net = network()
        vars(net[1]).update(attributes)
        return saved(net, folder)

    return make


def hooked(hooks: str, hook: Any) -> Callable[[Path], Path]:
    return lambda d: saved(network(**{hooks: OrderedDict({0: hook})}), d)


def recurrent(folder: Path) -> Path:
    """An LSTM whose __setstate__ makes a list of names for every one of its layers."""
    net = nn.LSTM(3, 3)
    net.num_layers = 10**12
    net._all_weights = [[1]]
    return saved(net, folder)


def unflattening() -> nn.Module:
    layer = nn.Unflatten(1, (1, 3))
    layer.dim, layer.unflattened_size = "x", ((EXPRESSION, 3),)
    return layer


huge_layer = partial(nn.Linear, 100_000, 100_000)
STATES: dict[str, tuple[Callable[[Path], Path], tuple[int, ...]]] = {
    "a module in itself": (itself, HARMLESS),
    "100 modules in each other": (deep, HARMLESS),
    "an LSTM of 10^12 layers": (recurrent, (2, 3)),
    "a forward hook that builds 40 GB": (hooked("_forward_hooks", huge_layer), HARMLESS),
    "a forward pre-hook that builds 40 GB": (hooked("_forward_pre_hooks", huge_layer), HARMLESS),
    "a hook on its state_dict": (hooked("_state_dict_hooks", huge_layer), HARMLESS),
    "a hook before loading": (hooked("_load_state_dict_pre_hooks", huge_layer), HARMLESS),
    "a forward of its own": (lambda d: saved(network(forward=huge_layer), d), HARMLESS),
    "a compiled call of its own": (
        lambda d: saved(network(_compiled_call_impl=huge_layer), d), HARMLESS),
    "parameters that are numbers": (lambda d: saved(network(_parameters={"weight": 3}), d), (2, 3)),
    "parameters in a list": (lambda d: saved(network(_parameters=[]), d), (2, 3)),
    "modules that are texts": (lambda d: saved(network(_modules={"x": "y"}), d), (2, 3)),
    "names that are numbers": (lambda d: saved(network(_buffers={7: torch.ones(1)}), d), HARMLESS),
    "groups of 0": (lambda d: saved(network(groups=0), d), (2, 3)),
    "groups of 10^15": (lambda d: saved(network(groups=10**15), d), (2, 3)),
    "a stride of 0": (lambda d: saved(network(stride=(0, 0)), d), (2, 3)),
    "a padding of 2^62": (lambda d: saved(network(padding=(1 << 62, 1 << 62)), d), (2, 3)),
    "a padding of 60,000": (lambda d: saved(network(padding=(60_000, 60_000)), d), (2, 3)),
    "a dilation of -1": (lambda d: saved(network(dilation=(-1, -1)), d), (2, 3)),
    "a padding mode of its own": (lambda d: saved(network(padding_mode=EXPRESSION), d), (2, 3)),
    "a train mode that is a text": (lambda d: saved(network(training="no"), d), HARMLESS),
    "an epsilon that is a text": (normalised(eps=EXPRESSION), (2, 3)),
    "an epsilon of -1e9": (normalised(eps=-1e9), (2, 3)),
    "an epsilon of 1e400": (normalised(eps=float("inf")), HARMLESS),
    "as many features as it likes": (normalised(num_features=1 << 60), HARMLESS),
    "statistics of another length": (
        lambda d: saved(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(5)).eval(), d), (2, 3)),
    "Upsample to 12 GB": (around(partial(nn.Upsample, scale_factor=4000)), (2, 3)),
    "Upsample to a size of 10^9": (around(partial(nn.Upsample, size=10**9)), (2, 3)),
    "AdaptiveAvgPool2d to 10 GB": (around(partial(nn.AdaptiveAvgPool2d, 30_000)), (2, 3)),
    "ZeroPad2d by 25,000": (around(partial(nn.ZeroPad2d, 25_000)), (2, 3)),
    "a scale of NaN": (around(partial(nn.Upsample, scale_factor=float("nan"))), (2, 3)),
    "an Unflatten that names things": (around(unflattening), (2, 3)),
    "PixelShuffle by 0": (around(partial(nn.PixelShuffle, 0)), (2, 3)),
}  # fmt: skip
for what, (make, codes) in STATES.items():
    long = "hook" in what or what.startswith(("Upsample to 12", "parameters"))
    CORPUS.add(what, make, codes=codes, commands=TORCH if long else RUN)

CORPUS.add(
    "weights of no dimensions",
    lambda d: saved(network(_parameters={"weight": nn.Parameter(torch.ones(())), "bias": None}), d),
    commands=TORCH,
)
CORPUS.add(
    "a weight with strides of 0",
    lambda d: saved(
        network(
            _parameters={"weight": nn.Parameter(torch.ones(1).expand(4, 3, 1, 1)), "bias": None}
        ),
        d,
    ),
    codes=HARMLESS,
    commands=RUN,
)


def called_at_load(folder: Path) -> Path:
    """A module that is called while the file is read: it makes 40 GB."""
    layer = nn.Upsample(scale_factor=20_000)
    torch.save(layer, folder / "x.pt", _use_new_zipfile_serialization=False)
    inner = b"(ctorch.nn.modules.upsampling\nUpsample\n" + b")\x81" + table(
        training=b"\x89", size=b"N", scale_factor=number(20_000), mode=text("nearest"),
        align_corners=b"N", recompute_scale_factor=b"N", _forward_hooks=b"}",
        _forward_pre_hooks=b"}", _backward_hooks=b"}", _backward_pre_hooks=b"}",
    )  # fmt: skip
    (folder / "x.pt").unlink()
    code = call(
        "torch._tensor._rebuild_from_type_v2",
        inner[1:] + b"b",
        named("torch.Tensor"),
        b"(" + tensor(several(1, 1, 1, 1), several(1, 1, 1, 1)) + b"t",
        b"}",
    )
    return zipped(code, folder / "m.pt")


CORPUS.add("a module that is called while it is read", called_at_load)
