"""What a proof is told of a model, as it was written: the graph, and what it leaves out.

The neutral graph holds no attributes of what it does not know. A proof takes such an operator for a
function of what it reads, the same wherever its `Mark` is the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bnfold.algebra.affine import Array
from bnfold.algebra.graph import Graph, Node, Shape


@dataclass(frozen=True, slots=True)
class Port:
    """An input or output of a model."""

    name: str
    dtype: str
    shape: Shape | None


@dataclass(frozen=True, slots=True)
class Mark:
    """What an operator is, but for the values that it reads.

    `key` tells its type, version, attributes and constants, and which of a native operator's steps
    it is; None for one that gives another result each time. `sized_by` are values of which only the
    shape is read, `bodies` the inputs of the graphs that it runs.
    """

    key: str | None
    sized_by: tuple[str, ...] = ()
    bodies: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False, slots=True)
class Written:
    """A model for a proof; nothing but `graph` is computed before it is asked for.

    `dtype` is the type of a value. `radii` is by how much the scale and the shift of an affine may
    be off because their constants are rounded; None where each is one constant.
    """

    graph: Graph
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    mark: Callable[[Node], Mark]
    dtype: Callable[[str], str]
    radii: Callable[[Node], tuple[Array, Array] | None]
