"""The README's table: the trained networks of models/, before and after folding.

python -m benchmarks.networks
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import click
from torch import nn

import bnfold
from models import NETWORKS, Network
from models.digits import accuracy, load_test_set
from models.forms import load_trained

HEADINGS = (
    "network",
    "BatchNorms",
    "left",
    "accuracy",
    "folded",
    "floor",
    "error",
    "ratio",
)


@dataclass(frozen=True, slots=True)
class Line:
    """One network: counts, test accuracies, and the worst comparison of its verification, floor and
    error relative to the size of the output."""

    network: str
    found: int
    left: int
    before: float
    after: float
    floor: float
    error: float
    ratio: float

    def cells(self) -> tuple[str, ...]:
        return (
            f"`{self.network}`",
            str(self.found),
            str(self.left),
            f"{self.before:.4f}",
            f"{self.after:.4f}",
            f"{self.floor:.1e}",
            f"{self.error:.1e}",
            f"{self.ratio:.1f}",
        )


def measure(network: Network) -> Line:
    """Fold a trained network and count, classify and verify."""
    trained = load_trained(network.name)
    images, labels = load_test_set(network)
    result = bnfold.fold(trained, images[:32])
    folded: nn.Module = result.model
    assert result.verification is not None
    worst = result.verification.worst
    assert worst is not None
    return Line(
        network.name,
        result.plan.batchnorms.found,
        result.plan.batchnorms.kept,
        accuracy(trained, images, labels),
        accuracy(folded, images, labels),
        worst.floor / worst.size,
        worst.error / worst.size,
        worst.ratio,
    )


def table() -> Iterator[str]:
    """The lines of a Markdown table."""
    yield f"| {' | '.join(HEADINGS)} |"
    yield f"|{'|'.join(' --- ' if i == 0 else ' ---: ' for i in range(len(HEADINGS)))}|"
    for network in NETWORKS.values():
        yield f"| {' | '.join(measure(network).cells())} |"


if __name__ == "__main__":
    for line in table():
        click.echo(line)
