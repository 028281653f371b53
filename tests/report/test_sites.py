"""The fates of affines on a terminal: what fits, what is wrapped, what is left out."""

from __future__ import annotations

import pytest
from rich.console import Console

from bnfold.algebra.graph import Graph
from bnfold.algebra.obstacle import Obstacle, Side
from bnfold.algebra.plan import Outcome, Plan, Site
from bnfold.algebra.refusal import Reason
from bnfold.report.sites import LIKEWISE, LOUD, MOST_ROWS, WIDEST, SiteList
from bnfold.report.text import plain, plan_part, show

EMPTY = Graph((), (), ())


def folded(name: str, *into: str, amplification: float = 1.0) -> Site:
    return Site(name, "batch_norm", True, Outcome.FOLDED, into, amplification)


def kept(name: str, reason: Reason = Reason.SHIFT, why: str = "it refuses") -> Site:
    sides = (Side.BEFORE, Side.AFTER)
    told = (Obstacle(s, reason, f"{name} {why}", name, "relu", None, "nothing: no") for s in sides)
    return Site(name, "batch_norm", True, Outcome.KEPT, obstacles=tuple(told))


def printed(*sites: Site, width: int = 80, everything: bool = False) -> list[str]:
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        show(console, [SiteList(Plan(EMPTY, EMPTY, sites), everything)])
    return capture.get().splitlines()


def test_a_table_that_fits_has_four_columns() -> None:
    assert printed(folded("bn1", "conv1"), folded("longer", "a", "b")) == [
        "affine  op          outcome  into",
        "bn1     batch_norm  folded   conv1",
        "longer  batch_norm  folded   a, b",
    ]


def test_a_table_that_does_not_fit_puts_the_takers_below() -> None:
    name = "features.denseblock1.denselayer1.norm2"
    sites = folded(name, "features.denseblock1.denselayer1.conv1"), folded("bn", "conv")
    assert printed(*sites) == [
        f"{'affine':38}  op          outcome",
        f"{name}  batch_norm  folded",
        "  into features.denseblock1.denselayer1.conv1",
        f"{'bn':38}  batch_norm  folded",
        "  into conv",
    ]
    assert len(printed(*sites, width=102)) == 3


@pytest.mark.parametrize("width", [20, 40, 80, 100, 160])
def test_names_are_never_broken(width: int) -> None:
    name = "a" * 90
    text = "\n".join(printed(folded(name, name), kept("b" * 90), width=width))
    assert text.count(name) == 2
    assert text.count("b" * 90) == 3


@pytest.mark.parametrize("width", [60, 80, 100, 300])
def test_sentences_wrap_within_the_width(width: int) -> None:
    lines = printed(kept("bn", why="pads its input with zeros " * 12), width=width)
    assert len(lines) > 5
    assert max(map(len, lines)) <= min(width, WIDEST)
    assert all(line == line.rstrip() for line in lines)


def test_like_refusals_are_one_group() -> None:
    sites = [kept(f"bn{i}") for i in range(62)]
    lines = printed(*sites)
    assert lines[0] == "kept  62 BatchNorms [shift]"
    assert lines[1:5] == [
        "  bn0",
        "    before it   bn0 it refuses",
        "    after it    bn0 it refuses",
        "    to fold it  nothing: no",
    ]
    assert lines[5:] == [
        "  bn1, likewise",
        "  bn2, likewise",
        f"  and {61 - LIKEWISE} more, likewise: --all tells of each",
    ]


def test_other_refusals_are_other_groups() -> None:
    lines = printed(kept("a"), kept("b", Reason.FORM), kept("c"))
    assert [line for line in lines if line.startswith("kept")] == [
        "kept  2 BatchNorms [shift]",
        "kept  1 BatchNorm [form]",
    ]
    other = Site("d", "mul", False, Outcome.KEPT, obstacles=kept("d").obstacles)
    assert "kept  1 affine (mul) [shift]" in printed(kept("a"), other)


def test_all_tells_everything() -> None:
    count = 2 * MOST_ROWS
    sites = [folded(f"f{i}", f"c{i}") for i in range(count)] + [kept(f"k{i}") for i in range(count)]
    short, full = printed(*sites), printed(*sites, everything=True)
    assert f"and {count - MOST_ROWS // 2} more: --all lists them" in short
    assert not any("--all" in line for line in full)
    text = "\n".join(full)
    assert all(f"f{i} " in text and f"k{i} it refuses" in text for i in range(count))


def test_a_short_table_is_never_cut() -> None:
    assert len(printed(*(folded(f"bn{i}", "c") for i in range(MOST_ROWS)))) == MOST_ROWS + 1


def test_two_thousand_sites_fit_on_a_screen() -> None:
    sites = [kept(f"k{i}") if i % 2 else folded(f"f{i}", f"c{i}") for i in range(2000)]
    assert len(printed(*sites)) < 30


def test_a_large_amplification_is_marked_and_explained() -> None:
    sites = folded("calm", "c", amplification=LOUD - 1), folded("loud", "d", amplification=3162.0)
    lines = printed(*sites, width=200)
    assert lines[1].endswith("c")
    assert lines[2].endswith("d (x3.16e+03)")
    assert lines[4].startswith("1 affine scales a channel by 100 or more, loud by 3.16e+03: ")
    assert not any("by 100" in line for line in printed(sites[0]))


def test_an_identity_goes_nowhere() -> None:
    assert printed(folded("bn"))[1].endswith("nothing, being the identity")


def test_the_reason_does_not_repeat_the_name() -> None:
    why = Obstacle(Side.ITSELF, Reason.FORM, "bn: it has hooks", "bn", "", None, "nothing")
    assert "    because     it has hooks" in printed(
        Site("bn", "batch_norm", True, Outcome.KEPT, obstacles=(why,))
    )


def test_a_model_without_affines() -> None:
    assert plain([plan_part(Plan(EMPTY, EMPTY, ()))]) == (
        "Nothing to fold: the model has no BatchNorm and no other affine.\nops: 0, unchanged"
    )


def test_counts_of_all_affines_stand_where_there_are_others() -> None:
    other = Site("mul", "mul", False, Outcome.FOLDED, ("conv",))
    text = plain([plan_part(Plan(EMPTY, EMPTY, (folded("bn", "conv"), kept("k"), other)))])
    assert text.endswith(
        "\nBatchNorms: 2 found, 1 folded, 1 kept\n"
        "all affines: 3 found, 2 folded, 1 kept\nops: 0, unchanged"
    )
    assert "all affines" not in plain([plan_part(Plan(EMPTY, EMPTY, (folded("bn", "conv"),)))])
