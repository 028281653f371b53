"""Tensors of an ONNX model that are computed when they are read."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from bnfold.algebra.rounding import numpy_dtype
from bnfold.formats.onnx.constants import Native


@dataclass(frozen=True, slots=True)
class Later:
    """An array that is computed whenever it is read: a large model is never in memory whole.

    Those of one `key` that is not None are equal.
    """

    shape: tuple[int, ...]
    dtype: str
    load: Callable[[], Native]
    key: Hashable = None

    @classmethod
    def of(cls, values: Native) -> Later:
        return cls(values.shape, values.dtype.name, lambda: values)

    @property
    def flipped(self) -> Later:
        key = None if self.key is None else (self.key, "flipped")
        return Later(self.shape[::-1], self.dtype, lambda: self.load().T, key)

    def reshaped(self, *shape: int) -> Later:
        key = None if self.key is None else (self.key, shape)
        return Later(shape, self.dtype, lambda: self.load().reshape(shape), key)

    def tensor(self, name: str | None) -> ir.LazyTensor:
        dtype = ir.DataType.from_numpy(numpy_dtype(self.dtype))

        def made() -> ir.TensorProtocol:
            return ir.tensor(np.asarray(self.load(), order="C"), dtype)

        return ir.LazyTensor(made, dtype, ir.Shape(self.shape), name=name)
