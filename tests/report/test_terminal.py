"""What a terminal shows of a large model: the summary first, on a screen, and nothing twice."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import bnfold
from bnfold.protocol import Protocol
from bnfold.report.ops import MOST_KINDS, ops_table
from bnfold.report.sites import MOST_ROWS
from bnfold.report.speed import meaning, ratio
from bnfold.report.text import plain, verification_part
from bnfold.verbs.rounds import Spread
from bnfold.verification import Row, Verification
from bnfold.verification.gate import Place
from tests.conftest import CHECKPOINTS
from tests.formats.networks import trained

SCREEN = 50
"""Lines that a terminal of usual height shows."""


class Deep(nn.Module):
    """Many blocks, several outputs, BatchNorms that fold and some that stay."""

    def __init__(self) -> None:
        super().__init__()
        blocks = [
            nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU()) for _ in range(30)
        ]
        self.blocks = nn.ModuleList(blocks)
        self.stay = nn.ModuleList([nn.BatchNorm2d(4) for _ in range(5)])

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        given = []
        for position, block in enumerate(self.blocks):
            x = block(x)
            if position % 6 == 0:
                x = self.stay[position // 6](torch.tanh(x)).sigmoid()
                given.append(x)
        return [*given[:2], x]


@pytest.fixture(scope="module")
def deep() -> Any:
    return bnfold.fold(trained(Deep()), "1x4x5x3")


def test_a_large_model_fits_on_a_screen_and_the_summary_is_first(deep: Any) -> None:
    text = bnfold.render(deep)
    first = text.splitlines()[0]
    assert first.startswith("30 of 35 BatchNorms folded, ops ")
    assert "of the output, " in first
    assert first.endswith(" s")
    assert len(text.splitlines()) <= SCREEN
    assert text.count("likewise") == 3  # of the five that stay, in one group
    assert len(bnfold.render(deep, everything=True).splitlines()) > SCREEN


def test_sizes_are_told_once_both_files_are_there(tmp_path: Path) -> None:
    result = bnfold.fold(CHECKPOINTS / "placement.onnx")
    assert " kB" not in bnfold.render(result).splitlines()[0]
    result.save(tmp_path / "o.onnx")
    assert "126 kB -> 119 kB" in bnfold.render(result).splitlines()[0]


def row(output: str, ratio: float) -> Row:
    why = "its error is large" if ratio > 8 else None
    return Row(
        Place("noise", "cpu", output), "max", 1e-7, ratio * 1e-7, ratio, ratio / 8, None, why
    )


def test_of_many_outputs_the_worst_are_shown() -> None:
    rows = tuple(row(f"y{i}", 1 + i / 100) for i in range(MOST_ROWS + 5))
    told = Verification(Protocol(), rows)
    shown = plain([verification_part(told)])
    assert "y24 " in shown
    assert "y0 " not in shown
    assert "and 15 more, which came no nearer to failing: --all lists them" in shown
    assert "y0 " in plain([verification_part(told, everything=True)])


def test_a_failure_is_told_once() -> None:
    told = Verification(Protocol(), (row("a", 20), row("b", 9), row("c", 1)))
    shown = " ".join(plain([verification_part(told)]).split())
    assert shown.count("a: its error is large") == 1  # in the summary
    assert shown.count("b: its error is large") == 1
    assert "c:" not in shown


def test_kinds_of_op_that_stay_are_one_row_where_there_are_many(deep: Any) -> None:
    plan = deep.plan
    assert ops_table(plan, False) == ops_table(plan)  # few kinds

    kinds = {**{f"Same{i}": (2, 2) for i in range(MOST_KINDS)}, "BatchNorm": (3, 0)}
    ops = SimpleNamespace(kinds=kinds, before=23, after=20)
    many: Any = SimpleNamespace(ops=ops, before=plan.before, after=plan.after)
    rows = ops_table(many, False).rows
    assert rows[:3] == (
        ("BatchNorm", "3", "0"),
        ("10 other kinds", "20", "20"),
        ("all", "23", "20"),
    )


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (0.9, 1.4, "no difference shown"),
        (1.0, 1.4, "no difference shown"),
        (0.7, 1.0, "no difference shown"),
        (1.01, 1.4, "faster"),
        (0.7, 0.99, "slower"),
    ],
)
def test_a_ratio_says_whether_its_spread_contains_1(low: float, high: float, said: str) -> None:
    spread = Spread((low + high) / 2, low, high)
    assert meaning(spread) == said
    assert ratio(spread).endswith(f"({low:.2f} - {high:.2f}), {said}")


def test_messages_name_no_file_that_an_installed_package_does_not_have() -> None:
    """In strings that are told; docstrings are for who reads the source."""
    import ast

    package = Path(bnfold.__file__).parent
    for path in package.rglob("*.py"):
        tree = ast.parse(path.read_text("utf-8"))
        docs = {
            id(node.body[0].value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
            and node.body
            and isinstance(node.body[0], ast.Expr)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                told = node.value if id(node) not in docs else ""
                assert "docs/" not in told, path
                assert "benchmarks/" not in told, path
