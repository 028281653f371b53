"""A BatchNorm in two parts: what the value before it carries, and what is left below."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from bnfold.algebra.affine import Array, ChannelAffine
from bnfold.algebra.graph import Add, Affine
from bnfold.algebra.plan import Outcome
from bnfold.algebra.planner import make_plan
from bnfold.algebra.refusal import Reason, Refusal
from bnfold.algebra.split import LARGEST, apart, split
from tests.algebra.graphs import Build, assert_folded, assert_kept, difference, planned, site

SEED = st.integers(0, 1 << 20)
PADDED = ((1, 1), (1, 1))


def _affine(scale: list[float], shift: list[float]) -> ChannelAffine:
    return ChannelAffine.on_axis(1, np.array(scale), np.array(shift))


def _trunk(channels: int = 3, seed: int = 0) -> tuple[Build, str]:
    """A trunk made by a convolution that can take what it shall carry."""
    build = Build(seed)
    x = build.input(None, channels, 5, 5)
    return build, build.conv(x, channels, (3, 3), pads=PADDED, bias=False, name="stem")


def _block(build: Build, x: str, name: str, sign: str = "plus") -> str:
    """A residual block before whose activation a BatchNorm stands: He et al. 2016."""
    channels = build.size(x, 1)
    y = build.relu(build.affine(x, sign=sign, name=f"{name}.bn"))
    y = build.conv(y, channels, (3, 3), pads=PADDED, name=f"{name}.first")
    y = build.conv(build.relu(y), channels, (3, 3), pads=PADDED, name=f"{name}.last")
    return build.add(x, y)


# The parts


@given(SEED, st.integers(1, 6))
def test_the_parts_make_the_whole(seed: int, channels: int) -> None:
    build = Build(seed)
    whole = build.affine_on(1, channels)
    parts = split(whole)
    assert parts is not None
    x = build.numbers(2, channels, 3)
    carried = parts.shift.on(x)
    assert np.allclose(parts.scale.on(carried), whole.on(x), rtol=1e-12, atol=1e-12)
    assert np.allclose(parts.back.on(carried), x, rtol=1e-12, atol=1e-12)
    assert np.all(parts.shift.scale == 1)
    assert not parts.scale.shifts


def test_an_affine_that_has_one_part_only_is_not_split() -> None:
    assert split(_affine([2.0, 0.5], [0.0, 0.0])) is None


def test_a_channel_of_scale_zero_has_no_shift_to_carry() -> None:
    with np.errstate(all="raise"):
        assert split(_affine([1.0, 0.0], [0.5, 0.5])) is None
        assert split(_affine([0.0, 0.0], [0.5, 0.5])) is None
        assert split(_affine([1.0, 1e-309], [0.5, 0.5])) is None
    parts = split(_affine([2.0, 0.0], [0.5, 0.0]))
    assert parts is not None
    assert parts.shift.shift.tolist() == [0.25, 0.0]


@pytest.mark.parametrize("unit", [1e-20, 1e-3, 1.0, 1e20])
def test_a_shift_is_large_by_the_size_of_what_carries_it(unit: float) -> None:
    """x in other units has other scales; the same shifts of it are as large as before."""
    scale = [1 / unit, 5 / unit, -7 / unit]  # of root mean square 5 / unit
    safe, large = [0.9 * LARGEST / 5, 0.2, -0.2], [1.1 * LARGEST / 5, 0.2, -0.2]
    assert split(_affine(scale, safe)) is not None
    assert split(_affine(scale, large)) is None
    assert split(_affine(scale, [-v for v in large])) is None


def test_dead_channels_do_not_make_a_large_shift_look_small() -> None:
    assert split(_affine([0.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 1.1 * LARGEST])) is None


def test_the_largest_shift_at_most_doubles_the_error_of_a_chain_of_sums() -> None:
    """float32 against float64, with every eighth channel's shift as large as it may be."""
    rng = np.random.default_rng(0)
    lead = np.where(np.arange(512) % 8 == 0, LARGEST, rng.normal(0, 1, 512)).astype(np.float32)
    errors = []
    for carried in (np.zeros_like(lead), lead):
        x = rng.normal(size=(200, 512)).astype(np.float32)
        exact, sum_ = x.astype(np.float64), x + carried
        for _ in range(8):
            f = rng.normal(size=x.shape).astype(np.float32)
            exact, sum_ = exact + f, sum_ + f
        errors.append(_rms(sum_.astype(np.float64) - carried - exact))
    assert 0 < errors[1] < 2 * errors[0]


def _rms(values: Array) -> float:
    return float(np.sqrt((values**2).mean()))


# Trunks that carry a shift


@given(SEED, st.integers(1, 4), st.integers(1, 4))
def test_every_batchnorm_of_a_trunk_before_activations_goes(
    seed: int, channels: int, blocks: int
) -> None:
    build, x = _trunk(channels, seed)
    for number in range(blocks):
        x = _block(build, x, f"block{number}")
    out = build.relu(build.affine(x, sign="plus", name="bn"))
    plan = assert_folded(build, build.conv(out, 2, (1, 1), name="head"))
    assert set(site(plan, "bn").into) <= {"stem", f"block{blocks - 1}.last", "head"}


def test_all_that_took_part_is_named() -> None:
    build, x = _trunk()
    out = build.conv(_block(build, x, "block"), 2, (1, 1), name="head")
    plan = assert_folded(build, out)
    assert set(site(plan, "block.bn").into) == {"stem", "block.first", "block.last"}
    bn = next(n.op for n in plan.before.nodes if n.name == "block.bn")
    assert isinstance(bn, Affine)
    assert site(plan, "block.bn").amplification == np.abs(bn.affine.scale).max()


@given(SEED, st.sampled_from([(), (1.0, -1.0), (-1.0, 1.0)]))
def test_a_batchnorm_of_any_sign_goes_where_padded_convolutions_read_it(
    seed: int, signs: tuple[float, ...]
) -> None:
    """The attention of MobileNetV4-Hybrid: arXiv:2404.10518."""
    build, x = _trunk(3, seed)
    y = build.affine(x, name="bn")
    one = build.conv(y, 3, (1, 1), name="one")
    two = build.conv(y, 3, (3, 3), pads=PADDED, groups=3, name="two")
    last = build.conv(two, 3, (1, 1), name="last")
    plan = assert_folded(build, build.relu(build.node(Add(signs), x, last)), one)
    assert site(plan, "bn").into == ("stem", "one", "two", "last")


def test_a_second_batchnorm_of_the_trunk_takes_the_shift_back() -> None:
    build, x = _trunk()
    one = build.conv(build.relu(build.affine(x, sign="plus", name="one")), 2, (1, 1))
    two = build.relu(build.affine(x, name="two"))
    plan = planned(build, one, two)
    assert site(plan, "one").outcome is Outcome.FOLDED
    assert "two" in site(plan, "one").into
    assert site(plan, "two").outcome is Outcome.KEPT


def test_a_scale_of_one_may_end_at_an_output_of_the_model() -> None:
    build, x = _trunk()
    y = build.node(Affine(_affine([1.0] * 3, [0.5, -0.5, 2.0])), x, name="bn")
    plan = planned(build, y, build.conv(x, 2, (1, 1), name="other"))
    assert site(plan, "bn").into == ("stem", "other")


# What keeps a trunk from carrying one


def _read_by(build: Build, x: str, case: str) -> list[str]:
    """Outputs of a graph in which something else reads, makes or is the trunk `x`."""
    match case:
        case "a padded convolution also reads the trunk":
            return [build.conv(x, 2, (3, 3), pads=PADDED)]
        case "an activation also reads the trunk":
            return [build.relu(x)]
        case "something unknown also reads the trunk":
            return [build.opaque(x)]
        case "the trunk is an output of the model":
            return [x]
    raise AssertionError


@pytest.mark.parametrize(
    "case",
    [
        "a padded convolution also reads the trunk",
        "an activation also reads the trunk",
        "something unknown also reads the trunk",
        "the trunk is an output of the model",
    ],
)
def test_a_trunk_carries_no_shift_when(case: str) -> None:
    build, x = _trunk()
    ends = _read_by(build, x, case)
    y = build.relu(build.affine(x, sign="plus", name="bn"))
    ends.append(build.conv(y, 2, (1, 1)))
    plan = planned(build, *ends, same="unknown" not in case)
    assert site(plan, "bn").outcome is Outcome.KEPT
    assert list(plan.changed()) == []


def _kept(build: Build, *ends: str, locked: dict[str, Refusal] | None = None) -> None:
    plan = planned(build, *ends, locked=locked)
    assert site(plan, "bn").outcome is Outcome.KEPT, str(plan)
    assert list(plan.changed()) == []


def test_the_input_of_the_model_carries_no_shift() -> None:
    build = Build()
    x = build.input(None, 3, 5, 5)
    y = build.relu(build.affine(x, sign="plus", name="bn"))
    _kept(build, build.conv(y, 2, (1, 1)), build.conv(x, 2, (1, 1)))


def test_a_trunk_under_an_activation_carries_no_shift() -> None:
    build, x = _trunk()
    x = build.relu(x)
    y = build.relu(build.affine(x, sign="plus", name="bn"))
    _kept(build, build.conv(y, 2, (1, 1)), build.conv(x, 2, (1, 1)))


def test_a_negative_scale_does_not_pass_the_activation() -> None:
    build, x = _trunk()
    y = build.relu(build.affine(x, sign="both", name="bn"))
    _kept(build, build.conv(y, 2, (1, 1)), build.conv(x, 2, (1, 1)))


@pytest.mark.parametrize("locked", ["stem", "below", "other"])
def test_a_locked_layer_takes_no_part(locked: str) -> None:
    build, x = _trunk()
    y = build.relu(build.affine(x, sign="plus", name="bn"))
    ends = build.conv(y, 2, (1, 1), name="below"), build.conv(x, 2, (1, 1), name="other")
    _kept(build, *ends, locked={locked: Refusal(Reason.SHARED_MODULE, "it serves two calls")})


@pytest.mark.parametrize(
    ("scale", "shift"), [(1e-4, 0.5), (0.0, 0.5)], ids=["a shift that is too large", "scale zero"]
)
def test_a_dead_channel_keeps_its_batchnorm(scale: float, shift: float) -> None:
    build, x = _trunk()
    y = build.node(Affine(_affine([scale, 1.0, 1.2], [shift, 0.3, 0.3])), x, name="bn")
    _kept(build, build.conv(build.relu(y), 2, (1, 1)), build.conv(x, 2, (1, 1)))


def test_an_affine_that_is_no_batchnorm_does_not_tell_the_size_of_its_input() -> None:
    build, x = _trunk()
    op = Affine(_affine([0.5] * 3, [0.3] * 3), batchnorm=False)
    y = build.relu(build.node(op, x, name="bn"))
    _kept(build, build.conv(y, 2, (1, 1)), build.conv(x, 2, (1, 1)))


def test_an_affine_never_takes_a_part_of_itself() -> None:
    build = Build()
    x = build.input(None, 4, 5)
    y = build.node(Affine(_affine([1.0] * 4, [0.1, 0.2, 0.3, 0.4])), x, name="bn")
    out = build.relu(build.add(*build.take(y, 1, (0, 1), (2, 3))))
    assert assert_kept(build, Reason.OTHER_OPERAND, out).name == "bn"


# Random trunks


def _random_trunk(choose: random.Random) -> tuple[Build, list[str]]:
    """Blocks of a trunk that other things read, scale, join and cut too."""
    build, x = _trunk(choose.choice([2, 4]), choose.randrange(1 << 30))
    ends = []
    for number in range(choose.randint(1, 4)):
        match choose.choice(["block", "block", "block", "plain", "end", "chain", "cut", "max"]):
            case "block":
                x = _block(build, x, f"b{number}", choose.choice(["plus", "plus", "both"]))
            case "plain":
                y = build.conv(build.affine(x), build.size(x, 1), (3, 3), pads=PADDED)
                x = build.node(Add(choose.choice([(), (1.0, -1.0), (-1.0, 1.0)])), y, x)
            case "end":
                ends.append(build.conv(x, 2, (1, 1)))
            case "chain":
                x = build.affine(build.affine(x, shift=False), holds="shift")
            case "cut":
                half = build.size(x, 1) // 2
                parts = build.take(x, 1, range(half), range(half, 2 * half))
                y = build.conv(build.relu(build.affine(parts[0], sign="plus")), half, (1, 1))
                x = build.concat(build.add(parts[1], y), parts[0])
            case "max":
                x = build.pool(x, "max", (1, 1))
    y = build.relu(build.affine(x, sign="plus"))
    ends.append(build.conv(y, 2, (1, 1)))
    if choose.random() < 0.7:
        ends.append(build.conv(x, 2, (1, 1)))
    return build, ends


@given(st.integers(0, 1 << 40))
def test_no_plan_of_any_trunk_changes_what_it_computes(seed: int) -> None:
    build, ends = _random_trunk(random.Random(seed))
    plan = make_plan(build.graph(*ends))
    event(f"{plan.affines.folded} of {plan.affines.found}")
    assert difference(build, plan) < 1e-9, f"{plan.before}\n{plan}"


# The scale up, the shift down


def _gated(build: Build) -> str:
    """A product of two computed values: a scale passes it, a shift does not."""
    x = build.conv(build.relu(build.input(None, 3, 5, 5)), 3, (1, 1), name="last")
    return build.multiply(x, build.relu(build.input(None, 3, 5, 5)))


def _summed(build: Build, x: str) -> str:
    """A sum with a value whose maker can take a shift: a shift passes it, a scale does not."""
    other = build.conv(build.relu(build.input(None, 3, 5, 5)), 3, (1, 1), name="other")
    return build.relu(build.add(x, other))


BEFORE = {
    "a product": _gated,
    "an activation": lambda b: b.relu(b.conv(b.input(None, 3, 5, 5), 3, (1, 1), name="last")),
    "an average with zeros": lambda b: b.pool(
        b.conv(b.relu(b.input(None, 3, 5, 5)), 3, (1, 1), name="last"),
        "avg",
        (3, 3),
        stride=(1, 1),
        pads=PADDED,
        count_include_pad=True,
    ),
}


@pytest.mark.parametrize("name", BEFORE)
def test_the_scale_goes_up_and_the_shift_down(name: str) -> None:
    build = Build()
    x = build.affine(BEFORE[name](build), sign="plus", name="bn")
    plan = assert_folded(build, _summed(build, x))
    assert site(plan, "bn").into == ("last", "other")


def test_a_scale_that_cannot_go_up_stays_with_its_shift() -> None:
    build = Build()
    x = build.relu(build.conv(build.input(None, 3, 5, 5), 3, (1, 1)))
    assert_kept(build, Reason.SHIFT, _summed(build, build.affine(x, name="bn")))


def test_a_shift_that_cannot_go_down_stays_with_its_scale() -> None:
    build = Build()
    x = build.affine(_gated(build), name="bn")
    out = build.relu(build.add(x, build.relu(build.input(None, 3, 5, 5))))
    assert_kept(build, Reason.SHIFT, out)


def test_a_value_that_another_reads_as_well_takes_no_scale() -> None:
    """SOLE."""
    build = Build()
    x = _gated(build)
    out = _summed(build, build.affine(x, name="bn"))
    assert_kept(build, Reason.OTHER_READERS, out, build.relu(x))


def test_what_has_one_part_is_not_taken_apart() -> None:
    assert apart(_affine([2.0], [0.0])) is None
    assert apart(_affine([1.0], [3.0])) is None
    parts = apart(_affine([2.0, 1.0], [3.0, 0.0]))
    assert parts is not None
    scale, shift = parts
    assert scale.scale.tolist() == [2.0, 1.0]
    assert not scale.shifts
    assert shift.shift.tolist() == [3.0, 0.0]
    assert np.all(shift.scale == 1)
