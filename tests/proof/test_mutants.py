"""What bnfold folds is proved; with any number, attribute, operator or wire changed it is not.

A mutant that is proved has to compute the same as the candidate, bit by bit, wherever it runs.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest

from benchmarks.mutants import mutants
from tests.proof.nets import CONSTANTS, Array, folded, model, norm, normal, proof

CONV = "a = Conv <pads = [1, 1, 1, 1]> (x, w, c)"
CONSTANTS.update(
    w3=normal(5, 5, 3, 3),
    p5=normal(5, 5, 1, 1),
    p12=normal(12, 5, 1, 1),
    m5=normal(4, 5),
    mt=normal(5, 6),
    b4=normal(4),
    b6=normal(6),
    flat=np.array([0, -1]),
    rows=np.array([0, 5, -1]),
    parts=np.array([2, 3]),
)

BODIES: dict[str, str] = {
    "convolution": f"{CONV}\n{norm('n', 'a')}\nr = Relu (n)\ny = Conv (r, w2, c2)",
    "unpadded after": f"r = Relu (x)\nb = Conv (r, w, c)\n{norm('n', 'b')}\ny = Conv (n, w2, c2)",
    "padded after": f"{norm('n', 'z')}\ny = Conv <pads = [1, 0, 0, 2]> (n, w2, c2)",
    "depthwise": (
        f"{CONV}\nr = Relu (a)\nd1 = Conv <group = 5, strides = [2, 1]> (r, d)\n{norm('n', 'd1')}\n"
        "y = LeakyRelu <alpha = 0.2> (n)"
    ),
    "transposed": (
        f"{CONV}\n{norm('n', 'a')}\nq = Relu (n)\n"
        "t = ConvTranspose <strides = [2, 1], pads = [1, 0, 0, 1], output_padding = [1, 0]>"
        " (q, wt)\n"
        "y = Add (t, c4)"
    ),
    "residual": (
        f"{CONV}\n{norm('n', 'a')}\nr = Relu (n)\nb = Conv <pads = [1, 1, 1, 1]> (r, w3)\n"
        f"{norm('k', 'b', 'positive')}\ns = Add (k, n)\ny = Relu (s)"
    ),
    "branches": (
        f"{CONV}\n{norm('n', 'a')}\nr = Relu (n)\nb = Conv <pads = [1, 1, 1, 1]> (r, w3)\n"
        f"{norm('k', 'b')}\ne = Conv (r, p5)\n{norm('l', 'e', 'positive')}\n{norm('i', 'r')}\n"
        "s = Add (k, l)\nt = Add (s, i)\ny = Relu (t)"
    ),
    "rows of layers": (
        f"{CONV}\n{norm('n', 'a')}\nr = Relu (n)\nq = Conv (r, p)\ny = Conv (q, p6, c2)"
    ),
    "concat": (
        f"{CONV}\nr = Relu (a)\nb = Conv (x, w1)\nq = Sigmoid (b)\n"
        "s = Concat <axis = 1> (r, q)\nn = Mul (s, ten)\ny = Conv (n, w10)"
    ),
    "pools": (
        f"{CONV}\nm1 = MaxPool <kernel_shape = [3, 2], strides = [2, 1], pads = [1, 0, 1, 1]> (a)\n"
        f"{norm('n', 'm1', 'positive')}\nr = Relu (n)\n"
        "v = AveragePool <kernel_shape = [2, 2], strides = [1, 2]> (r)\ny = Mul (v, row)"
    ),
    "head": (
        f"{CONV}\n{norm('n', 'a')}\nr = Relu (n)\ng = GlobalAveragePool (r)\nf = Flatten (g)\n"
        "h = MatMul (f, mt)\ny = Add (h, b6)"
    ),
    "gates": (
        f"{CONV}\n{norm('n', 'a')}\ng = GlobalAveragePool (n)\ne = Conv (g, p5)\ns = Sigmoid (e)\n"
        "q = Mul (n, s)\ny = Conv (q, w2)"
    ),
    "shuffle": f"{CONV}\n{norm('n', 'a')}\nq = Conv (n, p12)\ny = DepthToSpace <blocksize = 2> (q)",
    "split": (
        f"{CONV}\n{norm('n', 'a')}\nu, v = Split <axis = 1> (n, parts)\nr = Relu (v)\n"
        "s = Concat <axis = 1> (r, u)\ny = Conv (s, w2)"
    ),
    "resize": (
        f'{CONV}\n{norm("n", "a")}\nu = Resize <mode = "linear"> (n, , twice)\nr = Relu (u)\n'
        "y = Conv (r, w2)"
    ),
    "shapes": (
        f"{CONV}\n{norm('n', 'a')}\ns = Shape <start = 2> (n)\nk = ReduceProd <keepdims = 0> (s)\n"
        "f = Cast <to = 1> (k)\nd0 = Div (n, f)\ny = Conv (d0, w2)"
    ),
}
CONSTANTS.update(
    p6=normal(4, 6, 1, 1),
    ten=normal(1, 10, 1, 1),
    w10=normal(4, 10, 1, 2),
    c4=normal(1, 4, 1, 1),
    twice=np.array([1, 1, 2, 3], np.float32),
)
CONSTANTS["flat"] = np.array([0, -1])


def outputs(model: onnx.ModelProto) -> list[Array] | None:
    """On two sizes; None where it does not load or run."""
    rng = np.random.default_rng(5)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options)
        given = session.get_inputs()[0]
        made = []
        for size in ((2, 9, 12), (1, 8, 7)):
            shape = (size[0], given.shape[1], *size[1:])
            made.append(session.run(None, {given.name: rng.normal(0, 3, shape).astype("f")})[0])
    except Exception:
        return None
    return made


def same(one: list[Array], other: list[Array]) -> bool:
    return all(np.array_equal(a, b, equal_nan=True) for a, b in zip(one, other, strict=True))


def original_of(name: str) -> onnx.ModelProto:
    body = BODIES[name]
    if name == "padded after":
        return model(body, inputs="float[N, 5, H, W] z")
    flat = name == "head"
    return model(body, outputs="float[N, 6] y" if flat else "float[N, C, P, Q] y")


@pytest.mark.parametrize("name", BODIES)
def test_no_mutant_is_proved(name: str) -> None:
    original = original_of(name)
    candidate = folded(original)
    found = proof(original, candidate)
    assert found.proved, (found, found.open)
    right = outputs(candidate)
    assert right is not None
    tried = 0
    for what, mutant in mutants(candidate):
        made = outputs(mutant)
        if made is None:
            continue
        tried += 1
        if proof(original, mutant).proved:
            assert same(right, made), what
    assert tried > 10
