"""What keeps an affine where it is, on either side of it, and what would free it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from bnfold.algebra.graph import Conv, Linear, Node
from bnfold.algebra.refusal import Reason, Refusal


class Side(StrEnum):
    """Where the obstacle is: what could have taken the affine, or the affine itself."""

    BEFORE = "before"
    AFTER = "after"
    ITSELF = "itself"


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Why one side does not take the affine; either side would do.

    `node` refuses and `op` is its native operator's name; `tensor` is the value that must not
    change, where that is the reason. `remedy` begins with "nothing" where no change but another
    training helps.
    """

    side: Side
    reason: Reason
    why: str
    node: str
    op: str
    tensor: str | None
    remedy: str

    @property
    def is_final(self) -> bool:
        return self.remedy.startswith("nothing")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        return self.why if self.side is Side.ITSELF else f"{self.side} it, {self.why}"


def obstacle(side: Side, refusal: Refusal, site: Node, nodes: Mapping[str, Node]) -> Obstacle:
    """What `refusal` says of `site`; `nodes` are those of its graph, by name."""
    node = nodes.get(refusal.node or "", site)
    remedy = _remedy(refusal.reason, node, site)
    return Obstacle(side, refusal.reason, refusal.why, node.name, node.kind, refusal.tensor, remedy)


_CASTS = ("Cast", "CastLike", "to", "_to_copy", "type_as")
"""What operators are called that change the type of a value, in every format."""


def _remedy(reason: Reason, node: Node, site: Node) -> str:
    name = f"{node.name} ({node.kind})"
    is_next = isinstance(node.op, Conv | Linear) and site.inputs[0] in node.outputs
    if reason is Reason.OTHER_READERS and is_next:
        return f"compute {name} once more, for this affine alone: exact, but slower"
    if reason is Reason.PRECISION and node.kind in _CASTS:
        return "fold it in one type: --float or --half, a module with --form graph"
    return reason.remedy.format(node=name)
