"""Random ONNX models: whatever folds, the result is a valid model that computes the same."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.formats.onnx_nets import Net, check_fold

Value = tuple[str, tuple[int, ...]]
"""A name and the sizes after the batch."""

MODELS = 100


class Growing:
    """A net that grows by random nodes; a step that does not fit its value does nothing."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.net = Net(opset=int(self.rng.choice([13, 15, 17, 18])), seed=seed)
        self.values: list[Value] = [(self.net.input("x", "N", 4, 9, 8), (4, 9, 8))]
        self.shared = self.net.normal(4, 4, 3, 3, name="shared")

    def grow(self) -> None:
        step = STEPS[self.rng.integers(len(STEPS))]
        any_value = self.rng.random() < 0.35
        value = self.values[self.rng.integers(len(self.values)) if any_value else -1]
        if made := step(self, value):
            self.values.append(made)

    def conv(self, value: Value) -> Value | None:
        name, sizes = value
        if len(sizes) < 3:
            return None
        channels = int(self.rng.choice([2, 4, 6]))
        kernel = [int(self.rng.choice([1, 3])) if min(sizes[1:]) > 3 else 1 for _ in range(2)]
        pads = [int(p) for p in self.rng.integers(0, 2, 4)] if max(kernel) > 1 else [0] * 4
        how: dict[str, Any] = {"pads": pads, "bias": bool(self.rng.random() < 0.5)}
        if sizes[0] % 2 == 0 and self.rng.random() < 0.3:
            how["group"] = 2
        made = self.net.conv(name, sizes[0], channels, kernel, **how)
        height = sizes[1] + pads[0] + pads[2] - kernel[0] + 1
        return made, (channels, height, sizes[2] + pads[1] + pads[3] - kernel[1] + 1)

    def shared_conv(self, value: Value) -> Value | None:
        name, sizes = value
        if len(sizes) < 3 or sizes[0] != 4 or min(sizes) < 4:
            return None
        return self.net.node("Conv", name, self.shared), (4, sizes[1] - 2, sizes[2] - 2)

    def transposed(self, value: Value) -> Value | None:
        name, sizes = value
        if len(sizes) < 3:
            return None
        weight, bias = self.net.normal(sizes[0], 3, 2, 2), self.net.normal(3)
        made = self.net.node("ConvTranspose", name, weight, bias)
        return made, (3, sizes[1] + 1, sizes[2] + 1)

    def batchnorm(self, value: Value) -> Value | None:
        return self.net.bn(value[0], value[1][0]), value[1]

    def pool(self, value: Value) -> Value | None:
        if len(value[1]) < 3:
            return None
        how: dict[str, Any] = {"kernel_shape": [2, 2], "pads": [1, 0, 0, 1]}
        if self.rng.random() < 0.5:
            return self.net.node("MaxPool", value[0], **how), value[1]
        how["count_include_pad"] = int(self.rng.integers(2))
        return self.net.node("AveragePool", value[0], **how), value[1]

    def global_pool(self, value: Value) -> Value | None:
        if len(value[1]) < 3:
            return None
        return self.net.node("GlobalAveragePool", value[0]), (value[1][0], 1, 1)

    def activation(self, value: Value) -> Value | None:
        kind = str(self.rng.choice(["Relu", "Sigmoid", "LeakyRelu", "Identity"]))
        return self.net.node(kind, value[0]), value[1]

    def arithmetic(self, value: Value) -> Value | None:
        name, sizes = value
        kind = str(self.rng.choice(["Mul", "Add", "Sub", "Div"]))
        shapes = [(sizes[0], *[1] * (len(sizes) - 1)), (), (1,), sizes[-1:]]
        shape = shapes[self.rng.integers(4)]
        signs = self.rng.choice([-1, 1], size=shape)
        constant = self.net.weight(self.rng.uniform(0.5, 2, size=shape) * signs)
        first = kind != "Div" and self.rng.random() < 0.4
        return self.net.node(kind, *([constant, name] if first else [name, constant])), sizes

    def combined(self, value: Value) -> Value | None:
        name, sizes = value
        others = [v for v in self.values if v[1][1:] == sizes[1:]]
        other, its = others[self.rng.integers(len(others))]
        if its == sizes and self.rng.random() < 0.7:
            return self.net.node(str(self.rng.choice(["Add", "Sub"])), name, other), sizes
        return self.net.node("Concat", name, other, axis=1), (sizes[0] + its[0], *sizes[1:])

    def linear(self, value: Value) -> Value | None:
        name, sizes = value
        if len(sizes) == 1 and sizes[0] < 400:
            how: dict[str, Any] = {"transB": 1, "alpha": 0.5, "beta": 2.0}
            weight, bias = self.net.normal(5, sizes[0]), self.net.normal(5)
            return self.net.node("Gemm", name, weight, bias, **how), (5,)
        made = self.net.node("MatMul", name, self.net.normal(sizes[-1], 3))
        if self.rng.random() < 0.5:
            made = self.net.node("Add", made, self.net.normal(3))
        return made, (*sizes[:-1], 3)

    def layout(self, value: Value) -> Value | None:
        name, sizes = value
        if len(sizes) < 3:
            return None
        if self.rng.random() < 0.3:
            return self.net.node("Flatten", name), (math.prod(sizes),)
        turned = self.net.node("Transpose", name, perm=[0, 1, 3, 2])
        return turned, (sizes[0], sizes[2], sizes[1])

    def product(self, value: Value) -> Value | None:
        name, sizes = value
        alike = [other for other, its in self.values if its == sizes]
        if self.rng.random() < 0.3:
            return self.net.node("Neg", name), sizes
        return self.net.node("Mul", name, alike[self.rng.integers(len(alike))]), sizes

    def exchanged(self, value: Value) -> Value | None:
        """Channels that change places with each other, or with space."""
        name, (channels, *image) = value
        if len(image) < 2 or channels % 2:
            return None
        net = self.net
        if self.rng.random() < 0.4 and len(image) == 2 and channels % 4 == 0:
            mode = str(self.rng.choice(["DCR", "CRD"]))
            made = net.node("DepthToSpace", name, blocksize=2, mode=mode)
            return made, (channels // 4, *(2 * size for size in image))
        split = net.weight([0, 2, channels // 2, *image], np.int64)
        perm = [0, 2, 1, *range(3, 3 + len(image))]
        turned = net.node("Transpose", net.node("Reshape", name, split), perm=perm)
        whole = net.weight([0, channels, *image], np.int64)
        return net.node("Reshape", turned, whole), value[1]

    def piece(self, value: Value) -> Value | None:
        name, (channels, *image) = value
        if len(image) != 2 or min(image) < 4:
            return None
        bounds = ([1, 0], [-1, image[1] - 2], [2, 3])
        cut = self.net.node("Slice", name, *(self.net.weight(b, np.int64) for b in bounds))
        return cut, (channels, image[0] - 2, image[1] - 2)

    def attention(self, value: Value) -> Value | None:
        """Heads of two channels, over the tokens of an image or the features of each row."""
        name, (channels, *image) = value
        tokens = math.prod(image)
        if len(image) != 2 or channels % 2 or tokens > 100:
            return None
        net = self.net
        shape = net.weight([0, channels // 2, 2, tokens], np.int64)
        values = net.node("Reshape", net.conv(name, channels, channels, (1, 1)), shape)
        logits = net.node("MatMul", net.node("Transpose", values, perm=[0, 1, 3, 2]), values)
        axis = int(self.rng.choice([2, 3]))
        weights = net.node("Softmax", net.node("Tanh", logits), axis=axis)
        made = net.node("MatMul", values, weights)
        return net.node("Reshape", made, net.weight([0, channels, *image], np.int64)), value[1]


STEPS: list[Callable[[Growing, Value], Value | None]] = [
    Growing.conv,
    Growing.conv,
    Growing.shared_conv,
    Growing.transposed,
    Growing.batchnorm,
    Growing.batchnorm,
    Growing.pool,
    Growing.global_pool,
    Growing.activation,
    Growing.arithmetic,
    Growing.combined,
    Growing.combined,
    Growing.linear,
    Growing.layout,
    Growing.product,
    Growing.exchanged,
    Growing.piece,
    Growing.attention,
]


def grown(seed: int) -> Net:
    growing = Growing(seed)
    while len(growing.values) < 2 or growing.rng.random() < 0.9:
        growing.grow()
    *inner, last = growing.values[1:]
    outputs = [last, *(value for value in inner if growing.rng.random() < 0.08)]
    for name, sizes in outputs:
        growing.net.output(name, len(sizes) + 1)
    return growing.net


@pytest.mark.parametrize("start", range(0, MODELS, 20))
def test_random_models(start: int) -> None:
    found = folded = 0
    for seed in range(start, start + 20):
        _, plan = check_fold(grown(seed).proto())
        found += plan.affines.found
        folded += plan.affines.folded
    assert 0 < folded < found
