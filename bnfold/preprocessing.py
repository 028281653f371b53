"""The input contract of a deployed model: what is done to its input first, inside of the model.

A network is trained on `(x * scale - mean) / std`; what a camera or a decoder gives is x, often
bytes, channels last, in the order blue, green, red. A Preprocessing says how the two differ. The
model then takes x itself, and the arithmetic folds into its first layer as any other affine does:

    y = (scale x - mean) / std = s (x + b),    s = scale / std,    b = -mean / scale

The scale goes into the weights behind it, whatever their padding; the shift goes into their bias
where every tap sees it, and stays one addition where zeros are padded; a reversed order of the
channels is a permutation of the weights.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnfold.algebra.rounding import numpy_dtype
from bnfold.errors import UsageError
from bnfold.inputs import Inputs
from bnfold.runtimes import Integers, TensorSpec

BYTES = Integers(limit=256)
"""The values of a pixel."""

COLOURS = (1, 3, 4)
"""How many channels an image has, where nothing else tells which axis they are."""

_FLOATS = ("float16", "bfloat16", "float32", "float64")


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """How the input that a deployed model is given becomes what the network was trained on.

    scale      what x is multiplied by first: 1 / 255 for pixels
    mean std   per channel, or one number for all, in the order that the network was trained with;
               of x after `scale`
    bgr        x has its three channels in the opposite order
    uint8      x holds bytes, which are cast to the type of the network's input
    nhwc       x has its channels last: [N, H, W, C] for a network that takes [N, C, H, W]
    input      the name of the input; None: the only one

    Raises UsageError for numbers that are none, or that do not suit each other.
    """

    scale: float = 1.0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    bgr: bool = False
    uint8: bool = False
    nhwc: bool = False
    input: str | None = None

    def __post_init__(self) -> None:
        for what, values in (("scale", (self.scale,)), ("mean", self.mean), ("std", self.std)):
            for value in values:
                if not math.isfinite(value) or (what != "mean" and value <= 0):
                    wanted = "a finite number" if what == "mean" else "a finite number above 0"
                    raise UsageError(f"an input {what} of {value:g} is none", f"give {wanted}")
        sizes = {len(values) for values in (self.mean, self.std) if len(values) > 1}
        if len(sizes) > 1:
            raise UsageError(
                f"the input has {len(self.mean)} means and {len(self.std)} standard deviations",
                "give one for each channel, or one for all",
            )
        if self.bgr and sizes and sizes != {3}:
            raise UsageError(
                f"only three channels can be in the order bgr, not {sizes.pop()}", "leave bgr out"
            )

    @property
    def channels(self) -> int | None:
        """How many channels there have to be; None if any number will do."""
        return 3 if self.bgr else max(len(self.mean), len(self.std), 1) if self._varies else None

    @property
    def _varies(self) -> bool:
        return len(self.mean) > 1 or len(self.std) > 1

    def of(self, specs: tuple[TensorSpec, ...]) -> Contract:
        """What this means for a model that takes `specs`. Raises UsageError where it cannot."""
        spec = self._chosen(specs)
        if spec.dtype not in _FLOATS:
            raise UsageError(
                f"the input {spec} holds no floating-point numbers to be scaled",
                "preprocessing is for images and features; name another input",
            )
        if self.nhwc and len(spec.shape or ()) < 3:
            raise UsageError(f"the input {spec} has no axis to move behind H and W", "leave it out")
        axis = self._channel_axis(spec)
        last = axis == len(spec.shape or ()) - 1
        return Contract(
            spec=spec,
            axis=axis,
            shift=None if not any(self.mean) else self._ordered(-np.array(self.mean) / self.scale),
            factor=self._factor(),
            reverse=self.bgr,
            uint8=self.uint8,
            move=self.nhwc and not last,
        )

    def _chosen(self, specs: tuple[TensorSpec, ...]) -> TensorSpec:
        listed = ", ".join(map(str, specs))
        if self.input is None and len(specs) != 1:
            raise UsageError(
                f"the model takes {len(specs)} inputs: {listed}", "name the one that is meant"
            )
        for spec in specs:
            if self.input in (None, spec.name):
                return spec
        raise UsageError(f"the model has no input {self.input!r}", f"it takes {listed}")

    def _channel_axis(self, spec: TensorSpec) -> int:
        """1 as in [N, C, H, W], or the last."""
        shape = spec.shape or ()
        if len(shape) < 2:
            raise UsageError(f"the input {spec} has no axis of channels", "it has too few axes")
        fitting = COLOURS if self.channels is None else (self.channels,)
        for axis in (1, len(shape) - 1):
            if shape[axis] in fitting:
                return axis
        free = not isinstance(shape[1], int)
        if self.channels is None or free:
            return 1
        raise UsageError(
            f"the input {spec} has no axis of {self.channels} channels",
            "give as many means and standard deviations as there are channels, or one of each",
        )

    def _factor(self) -> NDArray[np.float64] | None:
        std = np.array(self.std) if self.std else np.ones(1)
        factor = self.scale / std
        return None if (factor == 1).all() else self._ordered(factor)

    def _ordered(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """In the order of the channels of x."""
        return values[::-1] if self.bgr else values


@dataclass(frozen=True, eq=False, slots=True)
class Contract:
    """What is done to one input of a model, step by step, in this order; x is what it is given.

    uint8      x is cast to the type of the input
    move       the last axis of x becomes axis 1
    shift      is added: float64 [C] or [1], in the order of the channels of x; None for nothing
    factor     is multiplied by, likewise
    reverse    the channels are put in reverse order

    `spec` is the input as the network takes it, `axis` that of its channels, from the front.
    """

    spec: TensorSpec
    axis: int
    shift: NDArray[np.float64] | None
    factor: NDArray[np.float64] | None
    reverse: bool
    uint8: bool
    move: bool

    @property
    def rank(self) -> int:
        return len(self.spec.shape or ())

    @property
    def moved(self) -> tuple[int, ...]:
        """The permutation of the axes of x that `move` is."""
        return (0, self.rank - 1, *range(1, self.rank - 1))

    def constant(self, values: NDArray[np.float64]) -> NDArray[Any]:
        """`values` in the type of the input, in a shape that broadcasts along the channels."""
        shape = [1] * self.rank
        shape[self.axis] = values.size
        return values.reshape(shape).astype(numpy_dtype(self.spec.dtype))

    def permutation(self) -> NDArray[Any]:
        """`factor` and `reverse` as the weight of a 1x1 convolution: [3, 3, 1, ...]."""
        factor = np.broadcast_to(1.0 if self.factor is None else self.factor, 3)
        square = np.diag(factor)[::-1]
        return square.reshape(3, 3, *[1] * (self.rank - 2)).astype(numpy_dtype(self.spec.dtype))

    @property
    def given(self) -> TensorSpec:
        """The input as the model with its preprocessing takes it."""
        shape = self.spec.shape
        if shape is not None and self.move:
            shape = tuple(shape[axis] for axis in np.argsort(self.moved))
        if not self.uint8:
            return replace(self.spec, shape=shape)
        return replace(self.spec, shape=shape, dtype="uint8", integers=BYTES)

    def inputs(self, inputs: Inputs) -> Inputs:
        """The inputs of the model with its preprocessing, where `inputs` are the network's."""
        name = self.spec.name
        specs = tuple(self.given if spec.name == name else spec for spec in inputs.specs)
        return replace(
            inputs, specs=specs, sample={**inputs.sample, name: self._before(inputs.sample[name])}
        )

    def _before(self, array: NDArray[Any]) -> NDArray[Any]:
        """The x that becomes `array`, as far as its type has it."""
        x = array.astype(np.float64)
        if self.reverse:
            x = np.flip(x, self.axis)
        if self.factor is not None:
            x = x / self.constant(self.factor).astype(np.float64)
        if self.shift is not None:
            x = x - self.constant(self.shift).astype(np.float64)
        if self.move:
            x = np.transpose(x, np.argsort(self.moved))
        if self.uint8:
            x = np.clip(np.rint(x), 0, 255)
        return np.ascontiguousarray(x.astype(numpy_dtype(self.given.dtype)))
