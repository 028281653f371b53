"""Wrong candidates that are right nearly everywhere: how many does the gate see?

python -m benchmarks.fooling

Each is a small network and a candidate that parts from it only where probes seldom reach: at other
sizes, beyond a limit, at integers other than 0 and 1, behind a fill value, in classes that lose.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import click
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper, parser

import bnfold
from bnfold.errors import BnfoldError

Array = NDArray[Any]

HEAD = """
<ir_version: 8, opset_import: ["" : 17]>
g ({inputs}) => ({output}) {{
    c = Conv <pads = [1, 1, 1, 1]> (x, w)
    n = BatchNormalization <epsilon = 1e-3> (c, gamma, beta, mean, var)
{body}
}}
"""
_RNG = np.random.default_rng(0)
CONSTANTS = {
    "w": _RNG.normal(0, 0.3, (5, 3, 3, 3)),
    "gamma": _RNG.normal(0, 1, 5),
    "beta": _RNG.normal(0, 1, 5),
    "mean": _RNG.normal(0, 0.3, 5),
    "var": _RNG.uniform(0.2, 2, 5),
    "table": _RNG.normal(0, 1, (9, 5)),
    "swap": np.eye(5)[[0, 2, 1, 3, 4]].reshape(5, 5, 1, 1),
    "losing": np.array([0, -60, -61, 0, 0]).reshape(1, 5, 1, 1),
    "slight": np.array([0, 0, 1e-3, 0, 0]).reshape(1, 5, 1, 1),
    "axis2": np.array([2]),
    "rows": np.array([0, -1, 4]),
    "seven": np.array([7]),
    "first": np.array([0]),
    "four": np.array([4]),
    "axis1": np.array([1]),
    "four1": np.array([1, 1, 4]),
    "one_more": np.array([0, 0, 0, 0, 0, 0, 1]),
    "shifted": np.eye(7)[[3]].T * np.ones((1, 4)) * 1e-3,
}
SIDE = 24
"""The height and width of the example."""

IMAGE, SCORES = "float[N, 3, H, W] x", "float[N, 5, H, W] y"


@dataclass(frozen=True, slots=True)
class Trick:
    """A network by what follows its BatchNorm, and the same with a mistake in it."""

    name: str
    right: str
    wrong: str
    inputs: str = IMAGE
    output: str = SCORES

    def models(self) -> tuple[onnx.ModelProto, onnx.ModelProto]:
        """The original, and the candidate."""
        return made(self.right, self.inputs, self.output), made(
            self.wrong, self.inputs, self.output
        )


def made(body: str, inputs: str = IMAGE, output: str = SCORES) -> onnx.ModelProto:
    """A network of a convolution, a BatchNorm with random statistics, and `body`.

    `body` reads n [N, 5, H, W], and numbers written as #1.5 (float) or #5i (int64).
    """
    constants = {name: _stored(array) for name, array in CONSTANTS.items()}
    for number in re.findall(r"#[-.\w]+", body):
        name = f"k{len(constants)}"
        whole = number.endswith("i")
        constants[name] = np.array(int(number[1:-1]) if whole else np.float32(number[1:]))
        body = body.replace(number, name, 1)
    model = parser.parse_model(HEAD.format(inputs=inputs, output=output, body=body))
    used = {name for node in model.graph.node for name in node.input}
    model.graph.initializer.extend(
        numpy_helper.from_array(array, name) for name, array in constants.items() if name in used
    )
    return model


def _stored(array: Array) -> Array:
    return array.astype(np.float32 if array.dtype.kind == "f" or array.ndim == 4 else np.int64)


def _size(axis: int) -> str:
    return f"""
    s = Shape <start = {axis}, end = {axis + 1}> (x)
    size = Squeeze (s)
    f = Cast <to = 1> (size)
    y = Div (n, f)"""


def _where_size(axis: int, test: str) -> str:
    """Off by one part in ten where a size passes a test."""
    return f"""
    s = Shape <start = {axis}, end = {axis + 1}> (x)
    size = Squeeze (s)
    odd = {test}
    m = Mul (n, #1.1)
    y = Where (odd, m, n)"""


SAME = "    y = Identity (n)"
MASKED = "    keep = Greater (x, #0)\n    one = Cast <to = 1> (keep)\n"
IDS = "int64[N, 4] ids"


def _ids(body: str) -> str:
    return f"""
    m = GlobalAveragePool (n)
    v = Flatten (m)
    e = Gather (table, ids)
{body}
    sum = ReduceMean <axes = [1], keepdims = 0> (r)
    y = Add (v, sum)"""


def _marked(test: str) -> str:
    return f"""
    m = GlobalAveragePool (n)
    v = Flatten (m)
    hit = {test}
    h = Cast <to = 1> (hit)
    share = ReduceMean <axes = [1], keepdims = 1> (h)
    y = Add (v, share)"""


CLASSES = "int64[N, H, W] y"
BOOLS = "bool[N, 5, H, W] y"
BYTES = "uint8[N, 5, H, W] y"


def _argmax(before: str = "z = Identity (n)") -> str:
    return f"    {before}\n    y = ArgMax <axis = 1, keepdims = 0> (z)"


def _boxes(then: str) -> str:
    """The four coordinates of the seven best of many."""
    return f"""
    f = Slice (n, first, four, axis1)
    t = Transpose <perm = [0, 2, 3, 1]> (f)
    r = Reshape (t, rows)
    scores = ReduceMax <axes = [2], keepdims = 0> (r)
    best, i = TopK <axis = 1> (scores, seven)
    wide = Unsqueeze (i, axis2)
    index = Expand (wide, four1)
    b = GatherElements <axis = 1> (r, index)
{then}"""


TRICKS = (
    Trick("height for width", _size(2), _size(3)),
    Trick("batch for height", _size(2), _size(0)),
    Trick("in a batch of 1", SAME, _where_size(0, "Equal (size, #1i)")),
    Trick("in a batch of 2", SAME, _where_size(0, "Equal (size, #2i)")),
    Trick("above a batch of 3", SAME, _where_size(0, "Greater (size, #3i)")),
    Trick("below the example's height", SAME, _where_size(2, "Less (size, #24i)")),
    Trick("below the example's width", SAME, _where_size(3, "Less (size, #24i)")),
    Trick("above the example's height", SAME, _where_size(2, "Greater (size, #24i)")),
    Trick("above the example's width", SAME, _where_size(3, "Greater (size, #24i)")),
    Trick(
        "beyond 300",
        "    y = Identity (x)",
        "    y = Clip (x, #-300, #300)",
        output="float[N, 3, H, W] y",
    ),
    Trick(
        "beyond 3000",
        "    y = Identity (x)",
        "    y = Clip (x, #-3000, #3000)",
        output="float[N, 3, H, W] y",
    ),
    Trick("above a limit of 60", "    y = Clip (n, #-1, #60)", "    y = Clip (n, #-1, #70)"),
    Trick("below a limit of -900", "    y = Clip (n, #-900, #1)", "    y = Clip (n, #-1000, #1)"),
    Trick(
        "where a mean is above 40",
        "    m = GlobalAveragePool (x)\n    q = ReduceMean <axes = [1], keepdims = 1> (m)\n"
        "    hot = Greater (q, #40)\n    z = Neg (n)\n    y = Where (hot, z, n)",
        "    m = GlobalAveragePool (x)\n    q = ReduceMean <axes = [1], keepdims = 1> (m)\n"
        "    hot = Greater (q, #40)\n    z = Identity (n)\n    y = Where (hot, z, n)",
    ),
    Trick(
        "where a mean is below -700",
        "    m = GlobalAveragePool (x)\n    q = ReduceMean <axes = [1], keepdims = 1> (m)\n"
        "    z = Max (q, #-700)\n    y = Add (n, z)",
        "    m = GlobalAveragePool (x)\n    q = ReduceMean <axes = [1], keepdims = 1> (m)\n"
        "    y = Add (n, q)",
    ),
    Trick(
        "the other slope, seldom taken",
        "    z = Add (n, #500)\n    r = LeakyRelu <alpha = 0.1> (z)\n    y = Sub (r, #500)",
        "    z = Add (n, #500)\n    r = LeakyRelu <alpha = 0.2> (z)\n    y = Sub (r, #500)",
    ),
    Trick(
        "before a sigmoid far from 0",
        "    z = Sub (n, #30)\n    y = Sigmoid (z)",
        "    z = Sub (n, #30.5)\n    y = Sigmoid (z)",
    ),
    Trick(
        "behind a fill value of -1000",
        "    big = Greater (n, #0.3)\n    y = Where (big, #-1000, n)",
        "    big = Greater (n, #0.3)\n    m = Mul (n, #1.00003)\n    y = Where (big, #-1000, m)",
    ),
    Trick(
        "a row other than 0 and 1",
        _ids("    r = Identity (e)"),
        _ids(
            "    five = Equal (ids, #5i)\n    o = Cast <to = 1> (five)\n"
            "    p = Unsqueeze (o, axis2)\n    r = Sub (e, p)"
        ),
        inputs=f"{IMAGE}, {IDS}",
        output="float[N, 5] y",
    ),
    Trick(
        "a negative row",
        _ids("    r = Identity (e)"),
        _ids(
            "    low = Less (ids, #0i)\n    o = Cast <to = 1> (low)\n"
            "    p = Unsqueeze (o, axis2)\n    r = Sub (e, p)"
        ),
        inputs=f"{IMAGE}, {IDS}",
        output="float[N, 5] y",
    ),
    Trick(
        "an integer of 50",
        _marked("Equal (ids, #50i)"),
        _marked("Equal (ids, #51i)"),
        inputs=f"{IMAGE}, {IDS}",
        output="float[N, 5] y",
    ),
    Trick(
        "a limit of integers",
        _marked("Less (ids, #2000i)"),
        _marked("LessOrEqual (ids, #2000i)"),
        inputs=f"{IMAGE}, {IDS}",
        output="float[N, 5] y",
    ),
    Trick(
        "two losing classes swapped",
        _argmax("z = Add (n, losing)"),
        _argmax("q = Add (n, losing)\n    z = Conv (q, swap)"),
        output=CLASSES,
    ),
    Trick(
        "a class off by a thousandth",
        _argmax(),
        _argmax("z = Add (n, slight)"),
        output=CLASSES,
    ),
    Trick(
        "a threshold off by 1e-4",
        "    y = Greater (n, #0.5)",
        "    y = Greater (n, #0.5001)",
        output=BOOLS,
    ),
    Trick(
        "a threshold that takes its own number",
        "    y = Greater (x, #0)",
        "    y = GreaterOrEqual (x, #0)",
        output="bool[N, 3, H, W] y",
    ),
    Trick(
        "one shifted box",
        _boxes("    y = Identity (b)"),
        _boxes("    y = Add (b, shifted)"),
        output="float[N, 7, 4] y",
    ),
    Trick(
        "one box too many",
        _boxes("    y = Identity (i)"),
        _boxes("    y0 = Add (i, one_more)\n    y = Identity (y0)"),
        output="int64[N, 7] y",
    ),
    Trick(
        "a mask of what a ReLU stops",
        "    r = Relu (n)\n    y = Greater (r, #0)",
        "    r = Relu (n)\n    y = GreaterOrEqual (r, #0)",
        output=BOOLS,
    ),
    Trick(
        "rounded down",
        "    q = Mul (n, #10)\n    z = Clip (q, #0, #255)\n    y = Cast <to = 2> (z)",
        "    q = Mul (n, #10)\n    z0 = Sub (q, #0.001)\n    z = Clip (z0, #0, #255)\n"
        "    y = Cast <to = 2> (z)",
        output=BYTES,
    ),
)
"""Every trick by itself."""


def seen(trick: Trick) -> tuple[bool, str]:
    """Whether the gate fails the candidate, and what it says; the original has to pass itself."""
    original, candidate = trick.models()
    given = {"x": np.zeros((3, 3, SIDE, SIDE), np.float32), "ids": np.zeros((3, 4), np.int64)}
    given = {entry.name: given[entry.name] for entry in original.graph.input}
    own = bnfold.verify(original, original, given)
    if not own.passed:
        raise AssertionError(f"{trick.name}: the original fails itself: {own.summary}")
    found = bnfold.verify(original, candidate, given)
    return not found.passed, found.summary


def study() -> Iterator[tuple[str, bool, str]]:
    for trick in TRICKS:
        try:
            yield (trick.name, *seen(trick))
        except BnfoldError as error:
            yield trick.name, False, f"not verified: {error}"


@click.command(help=__doc__)
def main() -> None:
    found = []
    for name, caught, said in study():
        click.echo(f"| {name} | {'seen' if caught else 'MISSED'} | {said} |")
        found.append(caught)
    click.echo(f"{sum(found)} of {len(found)} are seen")


if __name__ == "__main__":
    main()
