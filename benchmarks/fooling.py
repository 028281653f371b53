"""Wrong candidates that are right nearly everywhere: how many does the gate see?

python -m benchmarks.fooling

Each is a small network and a candidate that parts from it only where probes seldom reach: at other
sizes, beyond a limit, at integers other than 0 and 1, behind a fill value, in classes that lose.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import click
import numpy as np
import onnx
from onnx import numpy_helper, parser

import bnfold
from bnfold.errors import BnfoldError

HEAD = """
<ir_version: 8, opset_import: ["" : 17]>
g ({inputs}) => ({output}) <
    int64 zero = {{0}}, int64 two = {{2}}, int64 three = {{3}}, float far = {{1}}, int64[1] ones = {{1}}
> {{
    c = Conv <pads = [1, 1, 1, 1]> (x, w)
    n = BatchNormalization <epsilon = 1e-3> (c, gamma, beta, mean, var)
{body}
}}
"""
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
        return made(self.right, self.inputs, self.output), made(self.wrong, self.inputs, self.output)


def made(body: str, inputs: str = IMAGE, output: str = SCORES) -> onnx.ModelProto:
    """A network of a convolution, a BatchNorm with random statistics, and `body`.

    `body` reads n [N, 5, H, W], and numbers written as #1.5 (float) or #5i (int64).
    """
    constants: dict[str, onnx.TensorProto] = {}
    words = body.replace("(", " ( ").replace(")", " ) ").replace(",", " , ").split(" ")
    for position, word in enumerate(words):
        if word.startswith("#"):
            name = f"k{len(constants)}"
            whole = word.endswith("i")
            number = np.int64(word[1:-1]) if whole else np.float32(word[1:])
            constants[name] = numpy_helper.from_array(np.array(number), name)
            words[position] = name
    text = HEAD.format(inputs=inputs, output=output, body=" ".join(words))
    model = parser.parse_model(text)
    del model.graph.initializer[:]
    rng = np.random.default_rng(0)
    weights = {
        "w": rng.normal(0, 0.3, (5, 3, 3, 3)),
        "gamma": rng.normal(0, 1, 5),
        "beta": rng.normal(0, 1, 5),
        "mean": rng.normal(0, 0.3, 5),
        "var": rng.uniform(0.2, 2, 5),
        "table": rng.normal(0, 1, (9, 5)),
        "swap": np.eye(5)[[0, 2, 1, 3, 4]].reshape(5, 5, 1, 1),
        "losing": np.array([0, -60, -61, 0, 0]).reshape(1, 5, 1, 1),
        "third": np.array([0, 0, 1, 0]).reshape(1, 1, 4),
    }
    used = {name for node in model.graph.node for name in node.input}
    arrays = {name: array.astype(np.float32) for name, array in weights.items()}
    model.graph.initializer.extend(
        numpy_helper.from_array(array, name) for name, array in arrays.items() if name in used
    )
    model.graph.initializer.extend(tensor for name, tensor in constants.items() if name in used)
    for name, value in {"zero": 0, "two": 2, "three": 3}.items():
        if name in used:
            model.graph.initializer.append(numpy_helper.from_array(np.array(value), name))
    if "ones" in used:
        model.graph.initializer.append(numpy_helper.from_array(np.array([1]), "ones"))
    if "flat" in used:
        model.graph.initializer.append(numpy_helper.from_array(np.array([1, -1]), "flat"))
    if "boxes" in used:
        model.graph.initializer.append(numpy_helper.from_array(np.array([1, -1, 4]), "boxes"))
    if "k" in used:
        model.graph.initializer.append(numpy_helper.from_array(np.array([7]), "k"))
    return model


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


def _boxes(shift: str) -> str:
    return f"""
    r = Reshape <allowzero = 0> (n, flat)
    t, i = TopK <axis = 1> (r, k)
    b = Unsqueeze (t, two1)
    {shift}"""


TRICKS = (
    Trick("height for width", _size(2), _size(3)),
    Trick("batch for height", _size(2), _size(0)),
    Trick("in a batch of 1", SAME, _where_size(0, "Equal (size, #1i)")),
    Trick("in a batch of 2", SAME, _where_size(0, "Equal (size, #2i)")),
    Trick("above a batch of 3", SAME, _where_size(0, "Greater (size, #3i)")),
    Trick("below the example's height", SAME, _where_size(2, "Less (size, #32i)")),
    Trick("below the example's width", SAME, _where_size(3, "Less (size, #32i)")),
    Trick("above the example's height", SAME, _where_size(2, "Greater (size, #33i)")),
    Trick("above the example's width", SAME, _where_size(3, "Greater (size, #36i)")),
    Trick("beyond 300", "    y = Identity (x)", "    y = Clip (x, #-300, #300)", output="float[N, 3, H, W] y"),
    Trick("beyond 3000", "    y = Identity (x)", "    y = Clip (x, #-3000, #3000)", output="float[N, 3, H, W] y"),
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
        "    y = Max (n, q)",
        "    m = GlobalAveragePool (x)\n    q = ReduceMean <axes = [1], keepdims = 1> (m)\n"
        "    z = Max (q, #-700)\n    y = Max (n, z)",
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
    Trick("a row other than 0 and 1", _ids("    r = Identity (e)"), _ids(
        "    five = Equal (ids, #5i)\n    o = Cast <to = 1> (five)\n    p = Unsqueeze (o, ones2)\n    r = Sub (e, p)"
    ), inputs=f"{IMAGE}, {IDS}", output="float[N, 5] y"),
    Trick("a negative row", _ids("    r = Identity (e)"), _ids(
        "    low = Less (ids, #0i)\n    o = Cast <to = 1> (low)\n    p = Unsqueeze (o, ones2)\n    r = Sub (e, p)"
    ), inputs=f"{IMAGE}, {IDS}", output="float[N, 5] y"),
    Trick("an integer of 50", _marked("Equal (ids, #50i)"), _marked("Equal (ids, #51i)"),
          inputs=f"{IMAGE}, {IDS}", output="float[N, 5] y"),
    Trick("a limit of integers", _marked("Less (ids, #2000i)"), _marked("LessOrEqual (ids, #2000i)"),
          inputs=f"{IMAGE}, {IDS}", output="float[N, 5] y"),
    Trick("two losing classes swapped", _argmax("z = Add (n, losing)"),
          _argmax("q = Add (n, losing)\n    z = Conv (q, swap)"), output=CLASSES),
    Trick("a class off by a thousandth", _argmax(), _argmax("z = Mul (n, #1)\n    y0 = Neg (z)").replace(
        "ArgMax <axis = 1, keepdims = 0> (z)", "ArgMin <axis = 1, keepdims = 0, select_last_index = 1> (y0)"), output=CLASSES),
    Trick("a threshold off by 1e-4", "    y = Greater (n, #0.5)", "    y = Greater (n, #0.5001)", output=BOOLS),
    Trick("a threshold that takes its own number", "    y = Greater (x, #0)", "    y = GreaterOrEqual (x, #0)",
          output="bool[N, 3, H, W] y"),
    Trick("rounded down", "    q = Mul (n, #10)\n    z = Clip (q, #0, #255)\n    y = Cast <to = 2> (z)",
          "    q = Mul (n, #10)\n    z0 = Sub (q, #0.001)\n    z = Clip (z0, #0, #255)\n    y = Cast <to = 2> (z)", output=BYTES),
)
"""Every trick by itself; `ones2` is the axis 2."""


def seen(trick: Trick) -> tuple[bool, str]:
    """Whether the gate fails the candidate, and what it says; the original has to pass itself."""
    original, candidate = trick.models()
    own = bnfold.verify(original, original)
    if not own.passed:
        raise AssertionError(f"{trick.name}: the original fails itself: {own.summary}")
    found = bnfold.verify(original, candidate)
    return not found.passed, found.summary


def study() -> Iterator[tuple[str, bool, str]]:
    for trick in TRICKS:
        try:
            yield (trick.name, *seen(trick))
        except BnfoldError as error:
            yield trick.name, False, f"not verified: {error}"


@click.command(help=__doc__)
def main() -> None:
    found = list(study())
    for name, caught, said in found:
        click.echo(f"| {name} | {'seen' if caught else 'MISSED'} | {said} |")
    click.echo(f"{sum(caught for _, caught, _ in found)} of {len(found)} are seen")


if __name__ == "__main__":
    main()
