"""ONNX files: data outside, calls without end, sizes without bounds, graphs that are none."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.formats.onnx_nets import Net
from tests.hostile.case import HARMLESS, ONNX, OPENED, RUN, RUNNING, Corpus
from tests.hostile.payload import NAMES

CORPUS = Corpus("onnx", ONNX)

IMAGE = (1, 3, 8, 8)


def small() -> Net:
    """A convolution and its BatchNorm, whose output is still to be named."""
    net = Net()
    net.bn(net.conv(net.input("x", *IMAGE), 3, 4), 4, made="n")
    return net


def written(proto: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


def changed(change: Callable[[onnx.ModelProto], Any]) -> Callable[[Path], Path]:
    """The small model with its message changed."""

    def make(folder: Path) -> Path:
        net = small()
        net.output("n")
        proto = net.proto()
        change(proto)
        return written(proto, folder)

    return make


def grown(grow: Callable[[Net], Any]) -> Callable[[Path], Path]:
    """The small model with more after it; `grow` names the output."""

    def make(folder: Path) -> Path:
        net = small()
        grow(net)
        return written(net.proto(), folder)

    return make


def initializer(proto: onnx.ModelProto, index: int = 0) -> TensorProto:
    tensor: TensorProto = proto.graph.initializer[index]
    return tensor


def external(location: str, **entries: str) -> Callable[[onnx.ModelProto], None]:
    """The first weight lies elsewhere."""

    def change(proto: onnx.ModelProto) -> None:
        tensor = initializer(proto)
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in {"location": location, **entries}.items():
            tensor.external_data.add(key=key, value=value)

    return change


def beside(location: str, prepare: Callable[[Path], Any]) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        prepare(folder)
        return changed(external(location))(folder)

    return make


def hard_link(folder: Path) -> None:
    secret = folder.parent / "good" / "secret"
    secret.write_bytes(bytes(432))
    os.link(secret, folder / "w")


def weights(folder: Path) -> None:
    (folder / "w").write_bytes(bytes(432))


def inner_folder(folder: Path) -> None:
    (folder / "sub").symlink_to("/etc")


OUTSIDE: dict[str, Callable[[Path], Path]] = {
    "..": changed(external("../../../../../etc/passwd")),
    ".. in the middle": changed(external("a/../../b")),
    "an absolute path": changed(external("/etc/passwd")),
    "a device": changed(external("/dev/zero")),
    "a symbolic link": beside("w", lambda d: (d / "w").symlink_to("/etc/passwd")),
    "a link to a device": beside("w", lambda d: (d / "w").symlink_to("/dev/zero")),
    "a link to a folder": beside("sub/passwd", inner_folder),
    "a link to itself": beside("w", lambda d: (d / "w").symlink_to(d / "w")),
    "a hard link": beside("w", hard_link),
    "a FIFO": beside("w", lambda d: os.mkfifo(d / "w")),
    "a folder": beside("w", lambda d: (d / "w").mkdir()),
    "the model itself": changed(external("m.onnx", offset="-1")),
    "no file": changed(external("w")),
    "no name": changed(external("")),
    "a name of 10,000 characters": changed(external("w" * 10_000)),
    "a name with no character": changed(external("w\0.bin")),
    "a scheme": changed(external("file:///etc/passwd")),
    "a name with new lines": changed(external("w\n\x1b[2Jerror: x")),
}
for what, make in OUTSIDE.items():
    CORPUS.add(f"data in {what}", make, commands=ONNX if what in ("..", "a FIFO") else OPENED)
RANGES = {
    "an offset of 2^63": {"offset": str(1 << 63)},
    "an offset of -1": {"offset": "-1"},
    "an offset that is a text": {"offset": "__import__('os')"},
    "a length of 2^62": {"length": str(1 << 62)},
    "a length of 5,000 digits": {"length": "9" * 5000},
    "a length of 3": {"length": "3"},
}
for what, entries in RANGES.items():

    def in_range(folder: Path, entries: dict[str, str] = entries) -> Path:
        weights(folder)
        return changed(external("w", **entries))(folder)

    CORPUS.add(f"data with {what}", in_range, commands=OPENED)


def calls(depth: int, width: int = 2) -> Callable[[Path], Path]:
    """Functions that call each other `width` times each: width^depth nodes to whoever inlines."""

    def make(folder: Path) -> Path:
        net = small()
        net.node("f0", "n", made="y", domain="local")
        net.output("y")
        proto = net.proto()
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
        proto.opset_import.append(opsets[1])
        for level in range(depth):
            names = ["a", *(f"v{i}" for i in range(width - 1)), "b"]
            last = level == depth - 1
            nodes = [
                helper.make_node(
                    "Relu" if last else f"f{level + 1}", [x], [y], domain="" if last else "local"
                )
                for x, y in pairwise(names)
            ]
            proto.functions.append(
                helper.make_function("local", f"f{level}", ["a"], ["b"], nodes, opsets)
            )
        return written(proto, folder)

    return make


def recursive(names: Sequence[str]) -> Callable[[Path], Path]:
    """Functions that call each other in a circle."""

    def make(folder: Path) -> Path:
        net = small()
        net.node(names[0], "n", made="y", domain="local")
        net.output("y")
        proto = net.proto()
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
        proto.opset_import.append(opsets[1])
        for name, following in zip(names, [*names[1:], names[0]], strict=True):
            node = helper.make_node(following, ["a"], ["b"], domain="local")
            proto.functions.append(
                helper.make_function("local", name, ["a"], ["b"], [node], opsets)
            )
        return written(proto, folder)

    return make


CORPUS.add("functions that call each other 2^40 times", calls(40), commands=ONNX)
CORPUS.add("functions that call each other 10^12 times", calls(12, 10), commands=OPENED)
CORPUS.add("functions in a row of 2,000", calls(2000, 1), commands=RUN, codes=HARMLESS)
CORPUS.add("a function that calls itself", recursive(["f"]), commands=ONNX, codes=RUNNING)
CORPUS.add(
    "two functions that call each other", recursive(["f", "g"]), commands=OPENED, codes=RUNNING
)
CORPUS.add(
    "a circle of 1,000 functions",
    recursive([f"f{i}" for i in range(1000)]),
    commands=OPENED,
    codes=RUNNING,
)


def int64(*values: int) -> onnx.NodeProto:
    return numpy_helper.from_array(np.array(values, np.int64))


def loop(trips: int, **body: Any) -> Callable[[Net], None]:
    """A Loop around a Relu."""

    def grow(net: Net) -> None:
        graph = helper.make_graph(
            [
                helper.make_node("Identity", ["c"], ["d"]),
                helper.make_node("Relu", ["v"], ["w"]),
            ],
            "body",
            [
                helper.make_tensor_value_info("i", TensorProto.INT64, []),
                helper.make_tensor_value_info("c", TensorProto.BOOL, []),
                helper.make_tensor_value_info("v", TensorProto.FLOAT, [1, 4, 6, 6]),
            ],
            [
                helper.make_tensor_value_info("d", TensorProto.BOOL, []),
                helper.make_tensor_value_info("w", TensorProto.FLOAT, [1, 4, 6, 6]),
            ],
        )
        count = net.weight(trips, np.int64)
        true = net.weight(True, bool)
        net.node("Loop", count, true, "n", made="y", body=graph)
        net.output("y")

    return grow


def forever(net: Net) -> None:
    """A Loop that collects what it makes: 10^9 images."""
    graph = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["d"]), helper.make_node("Relu", ["n"], ["w"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
        ],
        [
            helper.make_tensor_value_info("d", TensorProto.BOOL, []),
            helper.make_tensor_value_info("w", TensorProto.FLOAT, None),
        ],
    )
    net.node("Loop", net.weight(10**9, np.int64), "", made="y", body=graph)
    net.output("y", None)


def expanded(*sizes: int) -> Callable[[Net], None]:
    """The value expanded to gigabytes, and summed up again."""

    def grow(net: Net) -> None:
        large = net.node("Expand", "n", net.weight(sizes, np.int64))
        net.node("ReduceSum", large, made="y")
        net.output("y")

    return grow


def filled(*sizes: int) -> Callable[[Net], None]:
    def grow(net: Net) -> None:
        large = net.node("ConstantOfShape", net.weight(sizes, np.int64))
        net.node("Add", net.node("ReduceMean", large, keepdims=0), "n", made="y")
        net.output("y")

    return grow


def tiled(net: Net) -> None:
    large = net.node("Tile", "n", net.weight([1, 1, 30_000, 30_000], np.int64))
    net.node("ReduceMax", large, made="y", keepdims=1)
    net.output("y")


def ranged(stop: int) -> Callable[[Net], None]:
    def grow(net: Net) -> None:
        start, limit, step = (net.weight(v, np.int64) for v in (0, stop, 1))
        numbers = net.node("Range", start, limit, step)
        total = net.node("Cast", net.node("ReduceSum", numbers, keepdims=0), to=TensorProto.FLOAT)
        net.node("Add", "n", total, made="y")
        net.output("y")

    return grow


def padded(net: Net) -> None:
    pads = net.weight([0, 0, 25_000, 25_000, 0, 0, 25_000, 25_000], np.int64)
    net.node("ReduceMax", net.node("Pad", "n", pads), made="y")
    net.output("y")


def resized(net: Net) -> None:
    scales = net.weight([1, 1, 5000, 5000], np.float32)
    net.node("ReduceMax", net.node("Resize", "n", "", scales, mode="nearest"), made="y")
    net.output("y")


def one_hot(net: Net) -> None:
    indices = net.node("Cast", "n", to=TensorProto.INT64)
    depth, values = net.weight(10**8, np.int64), net.weight([0, 1])
    net.node("ReduceMax", net.node("OneHot", indices, depth, values), made="y")
    net.output("y")


def chain(length: int, kind: str = "Relu") -> Callable[[Net], None]:
    def grow(net: Net) -> None:
        value = "n"
        for _ in range(length):
            value = net.node(kind, value)
        net.node("Identity", value, made="y")
        net.output("y")

    return grow


def affines(length: int) -> Callable[[Net], None]:
    def grow(net: Net) -> None:
        value, factor = "n", net.weight(1.001)
        for _ in range(length):
            value = net.node("Mul", value, factor)
        net.node("Identity", value, made="y")
        net.output("y")

    return grow


def doubled(times: int) -> Callable[[Net], None]:
    """A value added to itself over and over: 2^times paths through the graph."""

    def grow(net: Net) -> None:
        value = "n"
        for _ in range(times):
            value = net.node("Add", value, value)
        net.node("Identity", value, made="y")
        net.output("y")

    return grow


def convolutions(times: int) -> Callable[[Net], None]:
    """Two branches that meet, over and over: 2^times paths for an affine at the end."""

    def grow(net: Net) -> None:
        value, factor = "n", net.weight(0.5)
        for _ in range(times):
            value = net.node("Add", net.node("Mul", value, factor), value)
        net.bn(value, 4, made="y")
        net.output("y")

    return grow


def concatenated(times: int) -> Callable[[Net], None]:
    """A value beside itself, over and over, of constants only: 2^times numbers."""

    def grow(net: Net) -> None:
        value = net.weight([1.0, 2.0])
        for _ in range(times):
            value = net.node("Concat", value, value, axis=0)
        net.node("Add", "n", net.node("ReduceMax", value, keepdims=0), made="y")
        net.output("y")

    return grow


def nested(depth: int, twice: bool) -> Callable[[Net], None]:
    """Ifs in the first branch of each other, or in both."""

    def grow(net: Net) -> None:
        inner = leaf = helper.make_graph(
            [helper.make_node("Relu", ["n"], ["r"])], "g", [],
            [helper.make_tensor_value_info("r", TensorProto.FLOAT, None)],
        )  # fmt: skip
        for level in range(depth):
            other = inner if twice else leaf
            node = helper.make_node(
                "If", ["c"], [f"r{level}"], then_branch=inner, else_branch=other
            )
            inner = helper.make_graph(
                [node],
                "g",
                [],
                [helper.make_tensor_value_info(f"r{level}", TensorProto.FLOAT, None)],
            )
        net.weight(True, bool, name="c")
        net.node("If", "c", made="y", then_branch=inner, else_branch=inner)
        net.output("y", None)

    return grow


def divided(kind: str, value: int, by: int) -> Callable[[Net], None]:
    """Integers divided as the processor does it."""

    def grow(net: Net) -> None:
        numbers = net.node("Cast", "n", to=TensorProto.INT64)
        zero = net.node("Mul", numbers, net.weight(0, np.int64))
        dividend = net.node("Add", zero, net.weight(value, np.int64))
        divisor = net.node("Add", zero, net.weight(by, np.int64))
        net.node("Cast", net.node(kind, dividend, divisor), made="y", to=TensorProto.FLOAT)
        net.output("y")

    return grow


def gathered(index: int) -> Callable[[Net], None]:
    def grow(net: Net) -> None:
        net.node("Gather", "n", net.weight([index], np.int64), made="y", axis=1)
        net.output("y")

    return grow


def one_node(kind: str, *more: Any, **attributes: Any) -> Callable[[Net], None]:
    """One node after the small model; `more` are constants."""

    def grow(net: Net) -> None:
        inputs = [net.weight(value, np.asarray(value).dtype) for value in more]
        net.node(kind, "n", *inputs, made="y", **attributes)
        net.output("y")

    return grow


MOST, LEAST = (1 << 63) - 1, -(1 << 63)
GROWN: dict[str, tuple[Callable[[Net], None], tuple[str, ...], tuple[int, ...]]] = {
    "a Loop of 10^15": (loop(10**15), ONNX, RUNNING),
    "a Loop of -1": (loop(-1), RUN, HARMLESS),
    "a Loop that collects 10^9 images": (forever, RUN, RUNNING),
    "an Expand to 40 GB": (expanded(1, 4, 6 * 10**4, 6 * 10**4), RUN, RUNNING),
    "an Expand to 8 GB": (expanded(10_000_000, 4, 6, 6), ONNX, HARMLESS),
    "an Expand to 10^18": (expanded(10**9, 10**9), RUN, RUNNING),
    "an Expand to -1": (expanded(-1, 4, 6, 6), RUN, HARMLESS),
    "a ConstantOfShape of 40 GB": (filled(100_000, 100_000), ONNX, HARMLESS),
    "a ConstantOfShape of 4 GB": (filled(100_000, 10_000), RUN, HARMLESS),
    "a ConstantOfShape of 2^124": (filled(1 << 62, 1 << 62), RUN, RUNNING),
    "a Tile to 500 GB": (tiled, RUN, RUNNING),
    "a Range of 10^10": (ranged(10**10), RUN, RUNNING),
    "a Range of 2^63": (ranged(MOST), RUN, RUNNING),
    "a Pad to 40 GB": (padded, RUN, RUNNING),
    "a Resize to 14 GB": (resized, RUN, RUNNING),
    "a OneHot of 57 GB": (one_hot, RUN, RUNNING),
    "a chain of 5,000 Relus": (chain(5000), OPENED, HARMLESS),
    "a chain of 500 Sigmoids": (chain(500, "Sigmoid"), OPENED, HARMLESS),
    "a chain of 5,000 Muls": (affines(5000), OPENED, HARMLESS),
    "a value doubled 200 times": (doubled(200), OPENED, HARMLESS),
    "2^60 ways to a BatchNorm": (convolutions(60), OPENED, HARMLESS),
    "constants doubled 33 times": (concatenated(33), RUN, HARMLESS),
    "25 Ifs in each other": (nested(25, False), OPENED, HARMLESS),
    "12 Ifs in each other, twice each": (nested(12, True), OPENED, HARMLESS),
    "a division by 0": (divided("Div", 1, 0), ONNX, RUNNING),
    "a rest of a division by 0": (divided("Mod", 1, 0), RUN, RUNNING),
    "the least number by -1": (divided("Div", LEAST, -1), RUN, HARMLESS),
    "an index out of bounds": (gathered(MOST), RUN, RUNNING),
    "an index of the least number": (gathered(LEAST), RUN, RUNNING),
    "a Transpose of the least axis": (one_node("Transpose", perm=[LEAST] * 4), RUN, RUNNING),
    "a Concat on axis 2^63": (one_node("Concat", axis=MOST), RUN, RUNNING),
    "a Reshape to -1 twice": (one_node("Reshape", np.array([-1, -1])), RUN, RUNNING),
    "a Reshape to the largest": (one_node("Reshape", np.array([MOST, MOST])), RUN, RUNNING),
    "a Conv of group 0": (one_node("Conv", np.ones((4, 4, 1, 1), "f"), group=0), RUN, RUNNING),
    "a Conv of group -1": (one_node("Conv", np.ones((4, 4, 1, 1), "f"), group=-1), RUN, RUNNING),
    "a Conv of stride 0": (
        one_node("Conv", np.ones((4, 4, 1, 1), "f"), strides=[0, 0]), RUN, RUNNING),
    "a Conv with pads of 2^63": (
        one_node("Conv", np.ones((4, 4, 1, 1), "f"), pads=[MOST] * 4), RUN, RUNNING),
    "a Conv with pads of 30,000": (
        one_node("Conv", np.ones((4, 4, 1, 1), "f"), pads=[30_000] * 4), RUN, RUNNING),
    "a Conv with dilations of 2^62": (
        one_node("Conv", np.ones((4, 4, 3, 3), "f"), dilations=[1 << 62] * 2), RUN, RUNNING),
    "a Conv of another rank": (one_node("Conv", np.ones((4, 4, 1), "f")), RUN, RUNNING),
    "a Conv whose weight has no dimensions": (one_node("Conv", np.float32(1)), RUN, RUNNING),
    "a MaxPool with a kernel of 0": (one_node("MaxPool", kernel_shape=[0, 0]), RUN, RUNNING),
    "a MaxPool with pads of -5": (
        one_node("MaxPool", kernel_shape=[2, 2], pads=[-5] * 4), RUN, RUNNING),
    "a Flatten on axis 99": (one_node("Flatten", axis=99), RUN, RUNNING),
    "a DepthToSpace by 0": (one_node("DepthToSpace", blocksize=0), RUN, RUNNING),
    "a Split into 2^62": (one_node("Split", np.array([MOST, MOST])), RUN, RUNNING),
    "a Slice with steps of 0": (
        one_node("Slice", *(np.array([v]) for v in (0, MOST, 1, 0))), RUN, RUNNING),
    "a Cast to a type of its own": (one_node("Cast", to=10**6), RUN, RUNNING),
    "an Einsum of 100,000 letters": (one_node("Einsum", equation="a" * 100_000), OPENED, RUNNING),
    "an Einsum of nothing": (one_node("Einsum", equation="->->"), OPENED, RUNNING),
    "an operator of 100,000 characters": (one_node("O" * 100_000), OPENED, RUNNING),
    "an operator that is unknown": (one_node("Nothing", domain="no.where"), OPENED, RUNNING),
    "an attribute that nothing knows": (one_node("Relu", shell="touch mark"), RUN, HARMLESS),
    "a Scan that reads nothing": (one_node("Scan", num_scan_inputs=MOST), OPENED, RUNNING),
}  # fmt: skip
for what, (grow, commands, codes) in GROWN.items():
    CORPUS.add(what, grown(grow), commands=commands, codes=codes)


def sizes(*dims: int) -> Callable[[onnx.ModelProto], None]:
    def change(proto: onnx.ModelProto) -> None:
        del initializer(proto).dims[:]
        initializer(proto).dims.extend(dims)

    return change


def kind(value: int) -> Callable[[onnx.ModelProto], None]:
    return lambda proto: setattr(initializer(proto), "data_type", value)


def input_sizes(*dims: int) -> Callable[[onnx.ModelProto], None]:
    def change(proto: onnx.ModelProto) -> None:
        shape = proto.graph.input[0].type.tensor_type.shape
        for dim, size in zip(shape.dim, dims, strict=True):
            dim.dim_value = size

    return change


def cycle(proto: onnx.ModelProto) -> None:
    proto.graph.node[0].input[0] = proto.graph.node[1].output[0]


def twice(proto: onnx.ModelProto) -> None:
    proto.graph.node.add().CopyFrom(proto.graph.node[1])


def many_outputs(proto: onnx.ModelProto) -> None:
    proto.graph.node[0].output.extend(f"o{i}" for i in range(100_000))


def named(change: Callable[[onnx.ModelProto, str], Any], name: str) -> Callable[[Path], Path]:
    return changed(lambda proto: change(proto, name))


def every_name(proto: onnx.ModelProto, name: str) -> None:
    """That name for a node, the graph, an input, a value, a weight, a size and metadata."""
    graph = proto.graph
    graph.name = graph.node[0].name = name
    graph.node[1].input[0] = graph.node[0].output[0] = f"{name}.1"
    graph.node[0].input[0] = graph.input[0].name = name
    graph.node[0].input[1] = graph.initializer[0].name = f"{name}.2"
    graph.node[1].output[0] = graph.output[0].name = f"{name}.3"
    graph.input[0].type.tensor_type.shape.dim[0].dim_param = name
    proto.producer_name = proto.doc_string = name
    proto.metadata_props.add(key=name, value=name)


CHANGED: dict[str, tuple[Callable[[onnx.ModelProto], Any], tuple[int, ...]]] = {
    "raw data that do not fill the dims": (sizes(4, 3, 300, 300), RUNNING),
    "raw data of 2^62 numbers": (sizes(1 << 62), RUNNING),
    "dims that overflow": (sizes(1 << 32, 1 << 32), RUNNING),
    "dims of -1": (sizes(-4, 3, 3, 3), RUNNING),
    "dims of 0": (sizes(0, 3, 3, 3), RUNNING),
    "100,000 dims": (sizes(*[1] * 100_000), RUNNING),
    "a type of 99": (kind(99), RUNNING),
    "a type of texts": (kind(TensorProto.STRING), RUNNING),
    "a type of four bits": (kind(TensorProto.INT4), RUNNING),
    "an input of 2^62": (input_sizes(1, 3, 1 << 62, 1 << 62), RUNNING),
    "an input of 40 GB": (input_sizes(1, 3, 60_000, 60_000), RUNNING),
    "an input of -3": (input_sizes(-1, 3, -8, -8), HARMLESS),
    "a cycle": (cycle, RUNNING),
    "a value made twice": (twice, RUNNING),
    "100,000 outputs of a Conv": (many_outputs, RUNNING),
    "an input that nothing makes": (
        lambda p: p.graph.node[0].input.__setitem__(0, "nothing"), RUNNING),
    "an output that nothing makes": (
        lambda p: setattr(p.graph.output[0], "name", "nothing"), RUNNING),
    "nodes in the wrong order": (
        lambda p: p.graph.node.extend([p.graph.node.pop(0)]), HARMLESS),
    "an opset of 2^62": (lambda p: setattr(p.opset_import[0], "version", 1 << 62), RUNNING),
    "an opset of -1": (lambda p: setattr(p.opset_import[0], "version", -1), RUNNING),
    "an IR version of 2^62": (lambda p: setattr(p, "ir_version", 1 << 62), RUNNING),
    "an epsilon of NaN": (
        lambda p: p.graph.node[1].attribute.add(name="epsilon", type=1, f=float("nan")), HARMLESS),
    "an epsilon that is a text": (
        lambda p: p.graph.node[1].attribute.add(name="epsilon", type=3, s=b"x"), RUNNING),
    "an attribute given twice": (
        lambda p: [p.graph.node[1].attribute.add(name="epsilon", type=1, f=v) for v in (1, 2)],
        HARMLESS),
    "an attribute that refers to nothing": (
        lambda p: p.graph.node[1].attribute.add(name="epsilon", type=1, ref_attr_name="e"),
        RUNNING),
    "weights that are inputs too, of another size": (
        lambda p: p.graph.input.append(
            helper.make_tensor_value_info(p.graph.initializer[0].name, 1, [1 << 40])), HARMLESS),
    "an initializer of no name": (lambda p: setattr(p.graph.initializer[0], "name", ""), RUNNING),
    "initializers of one name": (
        lambda p: p.graph.initializer.add().CopyFrom(p.graph.initializer[0]), HARMLESS),
    "a sparse weight": (lambda p: p.graph.sparse_initializer.add(), RUNNING),
    "10,000 opsets": (
        lambda p: p.opset_import.extend(helper.make_opsetid(f"d{i}", 1) for i in range(10_000)),
        HARMLESS),
}  # fmt: skip
for what, (change, codes) in CHANGED.items():
    CORPUS.add(what, changed(change), commands=RUN, codes=codes)

for what, name in NAMES.items():
    if what != "half a surrogate":  # which protobuf does not hold
        CORPUS.add(
            f"names everywhere: {what}", named(every_name, name), codes=HARMLESS,
            commands=("inspect", "fold", "golden", "verify candidate", "export pt2"),
        )  # fmt: skip


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


def raw(content: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = folder / "m.onnx"
        path.write_bytes(content)
        return path

    return make


def groups(depth: int) -> bytes:
    """A graph in a node in a graph: attribute, g, node."""
    content = b""
    for _ in range(depth):
        for tag in (b"\x32", b"\x2a", b"\x0a"):
            content = tag + varint(len(content)) + content
    return b"\x08\x08\x3a" + varint(len(content)) + content


BYTES = {
    "a length of 2^63": b"\x08\x08\x3a" + b"\xff" * 9 + b"\x01",
    "a varint without end": b"\x08" + b"\xff" * 100,
    "graphs in each other, 5,000 deep": groups(5000),
    "groups without end": b"\x08\x08" + b"\x3b" * 100_000,
    "a million empty nodes": b"\x08\x08\x3a" + varint(2_000_000) + b"\x0a\x00" * 1_000_000,
    "a million empty functions": b"\x08\x08" + b"\xca\x01\x00" * 1_000_000,
    "a field of number 0": b"\x08\x08\x02\x00",
    "a text that is not UTF-8": b"\x08\x08\x12\x02\xff\xfe",
}
for what, content in BYTES.items():
    CORPUS.add(what, raw(content), commands=OPENED)


def special(make: Callable[[Path], Any]) -> Callable[[Path], Path]:
    def made(folder: Path) -> Path:
        make(folder / "m.onnx")
        return folder / "m.onnx"

    return made


SPECIAL = {
    "a FIFO": os.mkfifo,
    "a folder": Path.mkdir,
    "a link to a device": lambda path: path.symlink_to("/dev/zero"),
    "a link to random numbers": lambda path: path.symlink_to("/dev/urandom"),
    "a link to itself": lambda path: path.symlink_to(path),
    "a link to nothing": lambda path: path.symlink_to("/nowhere"),
    "a hole of 1 TB": lambda path: os.truncate(os.open(path, os.O_CREAT | os.O_WRONLY), 1 << 40),
}
for what, prepare in SPECIAL.items():
    CORPUS.add(f"the file is {what}", special(prepare), commands=ONNX if "FIFO" in what else OPENED)
