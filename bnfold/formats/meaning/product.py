"""Matrix products: layers, products of computed values, and means that a softmax weighs.

softmax makes weights that sum to one along an axis. A product that contracts this axis is a mean of
its other operand (`Tensor.sums_to_one`; what carries it on the way is in `steps.carried`).

Exact when   HEADS  (attention in one operator) there are as many heads of values as of queries
             MASK   (the same) the mask is absent, or a constant that leaves something in every row,
                    not causal besides: a row without anything gives zeros, whatever
                    the values are
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bnfold.algebra.graph import Add, MatMul, Op, Opaque, Transpose, WeightedMean
from bnfold.formats.meaning.einsum import layer
from bnfold.formats.meaning.layers import linear
from bnfold.formats.meaning.operands import (
    Constant,
    Operand,
    Tensor,
    computed,
    keep_type,
    not_linear,
    unknown,
)
from bnfold.formats.meaning.steps import Meaning, Step, one


def matmul(x: Operand, y: Operand, made: Tensor) -> Meaning:
    """A layer if the right operand is a constant matrix, else a product of two values."""
    keep_type(*(each for each in (x, y) if isinstance(each, Tensor)), made)
    if isinstance(x, Tensor) and isinstance(y, Constant) and len(y.shape) == 2:
        return linear(x, y, flipped=True)
    return one(_product(x, y), x, y)


def _product(x: Operand, y: Operand) -> Op:
    ranks = [each.rank if isinstance(each, Tensor) else len(each.shape) for each in (x, y)]
    if min(ranks) < 2:
        raise not_linear("it multiplies a vector")
    if isinstance(x, Tensor) and x.sums_to_one == ranks[0] - 1:
        return WeightedMean(port=1)
    if isinstance(y, Tensor) and y.sums_to_one == ranks[1] - 2:
        return WeightedMean(port=0, axis=-1)
    return MatMul()


def add_matmul(
    x: Operand, a: Operand, b: Operand, beta: float, alpha: float, made: Tensor
) -> Meaning:
    """beta * x + alpha * a @ b: addmm and baddbmm; a layer if the bias and b are fixed."""
    layer_like = isinstance(a, Tensor) and isinstance(b, Constant) and isinstance(x, Constant)
    if layer_like and [len(each.shape or ()) for each in (b, x)] == [2, 1]:
        return linear(a, b, x, flipped=True, alpha=alpha, beta=beta)
    keep_type(*(each for each in (x, a, b) if isinstance(each, Tensor)), made)
    product = Tensor("", made.shape, made.dtype)
    first = Step(_product(a, b), (a, b), (product,))
    if 0 in (alpha, beta):
        raise not_linear("it leaves an operand out")
    return (first, Step(Add((beta, alpha)), (x, product)))


def einsum(equation: str, operands: Sequence[Operand], made: Tensor) -> Meaning:
    """A layer, if one of two operands is a constant matrix."""
    given = [i for i, each in enumerate(operands) if isinstance(each, Tensor)]
    if len(operands) == len(given) == 2:
        return _product_of_two(equation, operands, made)
    if len(operands) != 2 or len(given) != 1:
        raise not_linear()
    x, matrix = operands[given[0]], operands[1 - given[0]]
    assert isinstance(x, Tensor)
    assert isinstance(matrix, Constant)
    keep_type(x, made)
    if len(matrix.shape) != 2:
        raise not_linear()
    found = layer(equation, given[0], x.shape, matrix.param())
    if found is None:
        raise not_linear("its equation is no linear layer")
    return one(found, x)


def _product_of_two(equation: str, operands: Sequence[Operand], made: Tensor) -> Meaning:
    """An Einstein sum of two computed values that is a matrix product, with axes in other orders.

    Exact when   MATRICES  each operand has one letter of its own, and one letter is summed; all
                           others are in both and in the result
                 SIZE      what is summed is as long in both: a size of 1 would be broadcast
    """
    terms, _, result = equation.replace(" ", "").partition("->")
    letters = terms.split(",")
    one, two = operands
    assert isinstance(one, Tensor)
    assert isinstance(two, Tensor)
    keep_type(one, two, made)
    shared = [letter for letter in result if letter in letters[0] and letter in letters[-1]]
    summed = set(letters[0]) & set(letters[-1]) - set(result)
    own = [set(each) - summed - set(shared) for each in letters]
    plain = all(len(set(each)) == len(each) for each in (*letters, result)) and "." not in equation
    whole = set(result) == {*shared, *own[0], *own[-1]}
    if not (plain and whole and [len(s) for s in (*own, summed)] == [1, 1, 1]):
        raise not_linear("its equation is no matrix product")
    (k,), (row,), (column,) = summed, *own
    size = one.known[letters[0].index(k)]
    if size is None or size != two.known[letters[1].index(k)]:
        raise unknown("whether what it sums is as long in both of its operands")
    steps: list[Step] = []
    left = _turned(one, letters[0], [*shared, row, k], steps)
    right = _turned(two, letters[1], [*shared, k, column], steps)
    product, order = _product(left, right), [*shared, row, column]
    if order == list(result):
        return (*steps, Step(product, (left, right)))
    shape = made.shape and tuple(made.shape[result.index(letter)] for letter in order)
    between = Tensor("", shape, made.dtype)
    perm = tuple(order.index(letter) for letter in result)
    first = Step(product, (left, right), (between,))
    return (*steps, first, Step(Transpose(perm), (between,)))


def _turned(x: Tensor, letters: str, wanted: Sequence[str], steps: list[Step]) -> Tensor:
    """The value with its axes in the order wanted; `steps` gets what turns it."""
    perm = tuple(letters.index(letter) for letter in wanted)
    if perm == tuple(range(x.rank)):
        return x
    sums = None if x.sums_to_one is None else perm.index(x.sums_to_one)
    turned = Tensor("", tuple(x.known[axis] for axis in perm), x.dtype, sums)
    steps.append(Step(Transpose(perm), (x,), (turned,)))
    return turned


def attention(
    queries: Operand, keys: Operand, values: Operand, mask: Operand | None, *, causal: bool
) -> Meaning:
    """softmax(q k^T + mask) @ v in one operator, in eval mode."""
    if not isinstance(values, Tensor):
        raise not_linear()
    if isinstance(mask, Tensor):
        raise computed("its mask")
    if mask is not None and (causal or not _leaves_something(mask.load())):
        raise not_linear("its mask leaves nothing of a row")
    return one(WeightedMean(port=2), queries, keys, values)


def _leaves_something(mask: NDArray[np.generic]) -> bool:
    """MASK: boolean, what takes part; or what is added to the logits."""
    part = mask if mask.dtype == np.bool_ else mask.astype(np.float64) > -np.inf
    return bool(part.any(-1).all())


def softmax(x: Tensor, axis: int) -> Meaning:
    return (Step(Opaque(), (x,), sums_to_one=x.axis(axis)),)
