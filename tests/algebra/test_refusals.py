"""Every reason for keeping an affine can happen, and says so in a sentence."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from bnfold.algebra.affine import ChannelAffine, from_batchnorm
from bnfold.algebra.graph import Affine
from bnfold.algebra.plan import Site
from bnfold.algebra.planner import make_plan
from bnfold.algebra.refusal import Reason, Refusal
from bnfold.algebra.rounding import make_rounded_plan
from bnfold.algebra.search import MOST_ASKED
from tests.algebra.graphs import Build, param, without_shapes
from tests.conftest import ROOT

READERS_ONLY = {
    Reason.FUNCTION,
    Reason.BATCH_STATISTICS,
    Reason.NOT_CONSTANT,
    Reason.SHARED_MODULE,
    Reason.NOT_A_PLAIN_MODULE,
    Reason.NO_PLACE,
    Reason.NOT_CAPTURED,
}
"""What only the reader of a format can see. The planner passes such a refusal on as it is."""


def _site(build: Build, out: str) -> Site:
    """The one site that is kept."""
    (kept,) = (s for s in make_plan(build.graph(out)).sites if s.reason)
    return kept


def _formula(**values: float) -> Refusal:
    arrays = {"mean": 0.0, "var": 1.0, **values}
    refusal = from_batchnorm(1, np.full(2, arrays["mean"]), np.full(2, arrays["var"]), 1e-5)
    assert isinstance(refusal, Refusal)
    return refusal


def _mismatched() -> Refusal:
    refusal = from_batchnorm(1, np.ones(2), np.ones(3), 1e-5)
    assert isinstance(refusal, Refusal)
    return refusal


def _unknown_shape() -> Site:
    build, y = _conv()
    return make_plan(without_shapes(build.graph(build.affine(y)))).sites[0]


def _conv() -> tuple[Build, str]:
    build = Build()
    return build, build.conv(build.input(None, 3, 5, 5), 3, (3, 3), name="conv")


def _graph_input() -> Site:
    build = Build()
    return _site(build, build.affine(build.affine(build.input(None, 3), holds="scale"), 1))


def _graph_output() -> Site:
    build, y = _conv()
    graph = build.graph(build.affine(y), y)
    return make_plan(graph).sites[0]


def _other_readers() -> Site:
    build, y = _conv()
    return _site(build, build.concat(build.affine(y), y))


def _no_reader() -> Site:
    build = Build()
    x = build.input(None, 3)
    build.affine(x)
    return _site(build, build.relu(x))


def _wrong_axis() -> Site:
    build = Build()
    return _site(build, build.affine(build.linear(build.input(None, 3, 3), 3), 1))


def _zero_padding() -> Site:
    build = Build()
    a = build.affine(build.input(None, 3, 5))
    return _site(build, build.conv(a, 2, (3,), pads=((1, 1),)))


def _partial_taps() -> Site:
    build = Build()
    a = build.affine(build.input(None, 3, 5))
    return _site(build, build.conv(a, 2, (3,), transposed=True))


def _negative_scale() -> Site:
    build, y = _conv()
    return _site(build, build.affine(build.pool(y, "max"), shift=False))


def _shift() -> Site:
    build, y = _conv()
    return _site(build, build.affine(build.relu(y), sign="plus"))


def _not_linear() -> Site:
    build, y = _conv()
    return _site(build, build.opaque(build.affine(build.opaque(y))))


def _other_operand() -> Site:
    build = Build()
    a = build.affine(build.input(None, 3))
    return _site(build, build.linear(build.add(a, build.input(None, 3)), 2))


def _not_uniform() -> Site:
    build = Build()
    y = build.conv(build.input(None, 2, 3), 4, (1,))
    return _site(build, build.affine(build.reshape(y, None, 12)))


def _form() -> Site:
    build = Build()
    dead = Affine(ChannelAffine.on_axis(1, np.array([1.0, 0.0]), np.zeros(2)), False, "scale")
    a = build.node(dead, build.relu(build.input(None, 2)))
    return make_plan(build.graph(build.relu(build.affine(a, holds="shift")))).sites[1]


def _precision() -> Site:
    build = Build()
    half = param("half", np.ones((3, 3, 1)), "float16")
    y = build.conv(build.input(None, 3, 5), 3, (1,), weight=half, bias=False)
    loud = Affine(ChannelAffine.on_axis(1, np.full(3, 1e6), np.zeros(3)))
    return make_rounded_plan(build.graph(build.node(loud, y)), {})[0].sites[0]


def _search_limit() -> Site:
    """A long sum, nested to the left, in which nothing takes a shift."""
    build = Build()
    x = build.input(None, 2, 3)
    parts = [build.relu(build.conv(x, 2, (1,), bias=False)) for _ in range(200)]
    total = parts[0]
    for part in parts[1:]:
        total = build.add(total, part)
    return _site(build, build.affine(total, sign="plus"))


EXAMPLES: dict[Reason, tuple[Callable[[], Site | Refusal], str]] = {
    Reason.NON_FINITE: (lambda: _formula(mean=np.nan), "running_mean of channel 0 is nan"),
    Reason.NON_POSITIVE_VARIANCE: (lambda: _formula(var=-1.0), "channel 0 is -0.99999"),
    Reason.MISMATCHED_CHANNELS: (_mismatched, "unequal shapes: running_mean [2], running_var [3]"),
    Reason.UNKNOWN_SHAPE: (_unknown_shape, "the rank or a size of v0 is not known"),
    Reason.GRAPH_INPUT: (_graph_input, "x0 is an input of the model"),
    Reason.GRAPH_OUTPUT: (_graph_output, "v0 is an output of the model"),
    Reason.OTHER_READERS: (_other_readers, "v0 is read 2 times (by affine1, concat2)"),
    Reason.NO_READER: (_no_reader, "nothing reads v0"),
    Reason.WRONG_AXIS: (
        _wrong_axis,
        "the affine has 3 channels on axis 1, the layer's features are on axis 2",
    ),
    Reason.ZERO_PADDING: (_zero_padding, "it pads its input with zeros (1+1), which the shift"),
    Reason.PARTIAL_TAPS: (_partial_taps, "see only some of the kernel's taps"),
    Reason.NEGATIVE_SCALE: (_negative_scale, "and would turn its maximum over"),
    Reason.SHIFT: (_shift, "a shift cannot pass an activation"),
    Reason.NOT_LINEAR: (_not_linear, "no affine is known to pass through it"),
    Reason.OTHER_OPERAND: (_other_operand, "the other operand of the sum cannot take the inverse"),
    Reason.NOT_UNIFORM: (_not_uniform, "features, on axis 1, has several scales along axis 2"),
    Reason.FORM: (_form, "it has no room for a shift"),
    Reason.PRECISION: (_precision, "the weight of output channel 0 overflows float16"),
    Reason.SEARCH_LIMIT: (_search_limit, f"{MOST_ASKED} nodes were asked, and no way"),
}


@pytest.mark.parametrize("reason", EXAMPLES, ids=str)
def test_the_reason_happens_and_says_why(reason: Reason) -> None:
    make, words = EXAMPLES[reason]
    found = make()
    if reason is Reason.GRAPH_INPUT:
        # what matters about an input is what comes after it: see the verdict of the planner
        assert isinstance(found, Site)
        assert found.reason is Reason.GRAPH_OUTPUT
    else:
        assert found.reason is reason
    assert words in (found.why or "")
    if isinstance(found, Site):
        assert found.remedy
        assert found.to_json()["node"]


def test_every_reason_has_an_example_or_belongs_to_the_readers() -> None:
    assert set(EXAMPLES) | READERS_ONLY == set(Reason)
    assert not set(EXAMPLES) & READERS_ONLY


@pytest.mark.parametrize("reason", sorted(READERS_ONLY), ids=str)
def test_a_reader_gives_the_reason_in_a_test_of_its_format(reason: Reason) -> None:
    tests = (ROOT / "tests" / "formats").glob("test_*.py")
    assert any(f"Reason.{reason.name}" in test.read_text() for test in tests)


@pytest.mark.parametrize("reason", sorted(READERS_ONLY), ids=str)
def test_what_a_reader_refuses_is_passed_on_as_it_is(reason: Reason) -> None:
    build = Build()
    found = _site(build, build.opaque(build.input(None, 3), Refusal(reason, "the reader says so")))
    assert (found.reason, found.why) == (reason, "the reader says so")


@pytest.mark.parametrize("reason", Reason, ids=str)
def test_a_reason_is_written_as_words_with_hyphens(reason: Reason) -> None:
    assert str(reason) == reason.name.lower().replace("_", "-")
