"""Small ONNX models as text, with the same random constants for original and candidate."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper, parser

from bnfold.algebra.rounding import make_rounded_plan
from bnfold.formats.onnx.files import parse_model
from bnfold.formats.onnx.model import OnnxModel
from bnfold.formats.onnx.written import written
from bnfold.proof.prover import prove
from bnfold.proof.verdict import Proof

Array = NDArray[Any]
EPSILON = float(np.float32(1e-3))

_RNG = np.random.default_rng(0)
CHANNELS = 5
"""As many channels after the first convolution; the input has 3."""


def normal(*shape: int) -> Array:
    return _RNG.normal(0, 0.5, shape).astype(np.float32)


CONSTANTS: dict[str, Array] = {
    "w": normal(5, 3, 3, 3),
    "c": normal(5),
    "w1": normal(5, 3, 1, 1),
    "w2": normal(4, 5, 3, 3),
    "c2": normal(4),
    "p": normal(6, 5, 1, 1),
    "d": normal(5, 1, 3, 3),
    "wt": normal(5, 4, 2, 3),
    "gamma": np.array([0.7, -1.3, 0.4, 1.1, -0.6], np.float32),
    "positive": np.array([0.7, 1.3, 0.4, 1.1, 0.6], np.float32),
    "beta": normal(5),
    "mean": normal(5),
    "var": _RNG.uniform(0.3, 2, 5).astype(np.float32),
    "m": normal(7, 5),
    "b7": normal(7),
    "slope": normal(5, 1, 1),
    "row": normal(1, 5, 1, 1),
    "half": np.array(0.5, np.float32),
    "axis1": np.array([1]),
    "two": np.array([2]),
    "zero": np.array([0]),
    "perm": np.array([3, 0, 4, 1, 2]),
}


def scale_and_shift(gamma: str = "gamma") -> tuple[Array, Array]:
    """Of the BatchNorm of these constants, in float64."""
    named = {name: array.astype(np.float64) for name, array in CONSTANTS.items()}
    scale = named[gamma] / np.sqrt(named["var"] + EPSILON)
    return scale, named["beta"] - named["mean"] * scale


BN = "BatchNormalization <epsilon = 1e-3> ({x}, {gamma}, beta, mean, var)"


def norm(made: str, x: str, gamma: str = "gamma") -> str:
    return f"{made} = " + BN.format(x=x, gamma=gamma)


def model(
    body: str,
    constants: Mapping[str, Any] | None = None,
    *,
    inputs: str = "float[N, 3, H, W] x",
    outputs: str = "float[N, C, P, Q] y",
    opset: int = 17,
    more: str = "",
) -> onnx.ModelProto:
    """A model of the lines of `body`; `constants` are added to CONSTANTS, or replace some."""
    head = f'<ir_version: 8, opset_import: ["" : {opset}, "own" : 1]>'
    made = parser.parse_model(f"{head}\ng ({inputs}) => ({outputs}) {{\n{body}\n}}\n{more}")
    given = {**CONSTANTS, **(constants or {})}
    used = set(re.findall(r"\w+", body))
    made.graph.initializer.extend(
        numpy_helper.from_array(np.ascontiguousarray(array), name)
        for name, array in given.items()
        if name in used
    )
    return made


def proof(original: onnx.ModelProto, candidate: onnx.ModelProto) -> Proof:
    """By the bytes of both: what a file would hold."""
    one, other = (
        parse_model(onnx.ModelProto.FromString(each.SerializeToString()), "a model")
        for each in (original, candidate)
    )
    return prove(written(one), written(other))


def float32(array: Any) -> Array:
    return np.asarray(array, np.float64).astype(np.float32)


def lined(vector: Array, rank: int = 4) -> Array:
    """A number for each output channel of a weight."""
    return vector.reshape(-1, *[1] * (rank - 1))


def folded(original: onnx.ModelProto) -> onnx.ModelProto:
    """What bnfold makes of it."""
    opened = OnnxModel.from_proto(original)
    return opened.write(*make_rounded_plan(opened.read(None), {}, opened.veto)).native
