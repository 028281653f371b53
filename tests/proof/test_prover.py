"""What is right is proved; what is off in one place is not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.proof.nets import (
    CONSTANTS,
    Array,
    float32,
    lined,
    model,
    norm,
    proof,
    scale_and_shift,
)

SCALE, SHIFT = scale_and_shift()
ABOVE, RAISED = scale_and_shift("positive")
W, C, W2, C2, D = (CONSTANTS[name].astype(np.float64) for name in ("w", "c", "w2", "c2", "d"))
CONV = "a = Conv <pads = [1, 1, 1, 1]> (x, w, c)"
ORIGINAL = f"""{CONV}
{norm("n", "a")}
r = Relu (n)
y = Conv (r, w2, c2)"""
FOLDED = """a = Conv <pads = [1, 1, 1, 1]> (x, w_new, c_new)
r = Relu (a)
y = Conv (r, w2, c2)"""
NEW = {"w_new": float32(W * lined(SCALE)), "c_new": float32(C * SCALE + SHIFT)}


def off(array: Array, places: int) -> Array:
    """The same with one element in the middle so many units in the last place away."""
    changed = array.copy()
    flat = changed.reshape(-1)
    index = flat.size // 2
    for _ in range(places):
        flat[index] = np.nextafter(flat[index], np.float32(np.inf) * np.sign(flat[index]))
    return changed


def test_a_folded_batchnorm_is_proved() -> None:
    found = proof(model(ORIGINAL), model(FOLDED, NEW))
    assert found.proved, found
    assert found.proved_nodes == found.nodes == 3


@pytest.mark.parametrize("name", ["w_new", "c_new", "w2", "c2"])
def test_a_number_two_places_off_is_not(name: str) -> None:
    given = {**NEW, "w2": CONSTANTS["w2"], "c2": CONSTANTS["c2"]}
    found = proof(model(ORIGINAL), model(FOLDED, {**given, name: off(given[name], 2)}))
    assert not found.proved
    assert "units in the last place" in found.summary


def test_float32_arithmetic_is_not_proved() -> None:
    """It is off by its own roundings, which are more than one."""
    scale, shift = float32(SCALE), float32(SHIFT)
    given = {"w_new": CONSTANTS["w"] * lined(scale), "c_new": CONSTANTS["c"] * scale + shift}
    assert not proof(model(ORIGINAL), model(FOLDED, given)).proved


WRONG: dict[str, tuple[str, dict[str, Any]]] = {
    "another epsilon": (ORIGINAL.replace("1e-3", "1e-5"), {}),
    "two channels swapped": (FOLDED, {**NEW, "w_new": NEW["w_new"][[1, 0, 2, 3, 4]]}),
    "another pad": (FOLDED.replace("[1, 1, 1, 1]", "[0, 1, 2, 1]"), NEW),
    "pads that make it larger": (FOLDED.replace("[1, 1, 1, 1]", "[1, 1, 2, 1]"), NEW),
    "no pads": (FOLDED.replace(" <pads = [1, 1, 1, 1]>", ""), NEW),
    "a stride": (FOLDED.replace("<pads", "<strides = [1, 2], pads"), NEW),
    "a dilation": (FOLDED.replace("Conv (r", "Conv <dilations = [1, 2]> (r"), NEW),
    "no activation": (FOLDED.replace("Relu", "Identity"), NEW),
    "another activation": (FOLDED.replace("Relu", "Sigmoid"), NEW),
    "a leaky activation": (FOLDED.replace("Relu", "LeakyRelu"), NEW),
    "no bias": (FOLDED.replace(", c_new", ""), NEW),
    "a bias for the scale": (FOLDED, {**NEW, "c_new": float32(SCALE)}),
    "an activation more": (f"{FOLDED}\nz = Relu (y)", NEW),
    "another input": (FOLDED.replace("(x,", "(z,").replace("a =", "z = Neg (x)\na =", 1), NEW),
    "a weight that overflows": (FOLDED, {**NEW, "w_new": NEW["w_new"] * np.inf}),
    "a weight that is no number": (FOLDED, {**NEW, "c_new": NEW["c_new"] * np.nan}),
    "height for width": (FOLDED, {**NEW, "w2": CONSTANTS["w2"].swapaxes(2, 3)}),
    "the folded norm once more": (ORIGINAL.replace("(x, w, c)", "(x, w_new, c_new)"), NEW),
    "half precision on the way": (
        FOLDED.replace(
            "r = Relu (a)", "h = Cast <to = 10> (a)\nk = Cast <to = 1> (h)\nr = Relu (k)"
        ),
        NEW,
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_candidate_is_not_proved(name: str) -> None:
    body, constants = WRONG[name]
    outputs = f"float[N, C, P, Q] {body.splitlines()[-1].split()[0]}"
    found = proof(model(ORIGINAL), model(body, constants, outputs=outputs))
    assert not found.proved
    assert found.open


NEGATED = {"w_new": float32(-W * lined(ABOVE)), "c_new": float32(-C * ABOVE)}
SCALED = {"w_new": float32(W * lined(ABOVE)), "c_new": float32(C * ABOVE)}
MIXED = {"w_new": float32(W * lined(SCALE)), "c_new": float32(C * SCALE)}
POOL = "MaxPool <kernel_shape = [3, 2], pads = [1, 0, 1, 1]>"
LEAKY = "LeakyRelu <alpha = 0.3>"


def through(f: str) -> tuple[str, str]:
    """A BatchNorm after `f`; and its scale before it, its shift behind."""
    after = f"{CONV}\nr = {f} (a)\n{norm('y', 'r', 'positive')}"
    before = "a = Conv <pads = [1, 1, 1, 1]> (x, w_new, c_new)"
    return after, f"{before}\nr = {f} (a)\ny = Add (r, raised)"


@pytest.mark.parametrize("f", ["Relu", LEAKY, POOL])
def test_a_scale_above_zero_passes(f: str) -> None:
    after, before = through(f)
    raised = {"raised": float32(RAISED).reshape(5, 1, 1)}
    found = proof(model(after), model(before, {**SCALED, **raised}))
    assert found.proved, found
    assert not proof(
        model(after), model(before, {**SCALED, "raised": off(raised["raised"], 2)})
    ).proved


@pytest.mark.parametrize("f", ["Relu", LEAKY, POOL])
@pytest.mark.parametrize("new", [MIXED, NEGATED], ids=["some", "all"])
def test_a_scale_below_zero_does_not(f: str, new: dict[str, Array]) -> None:
    """Behind it the scale is taken back, so that only what `f` does to it is wrong."""
    same = f"{CONV}\nr = {f} (a)\ny = Identity (r)"
    scale = SCALE if new is MIXED else -ABOVE
    before = "a = Conv <pads = [1, 1, 1, 1]> (x, w_new, c_new)"
    back = f"{before}\nr = {f} (a)\ny = Mul (r, back)"
    back_ = {"back": float32(1 / scale).reshape(5, 1, 1)}
    assert not proof(model(same), model(back, {**new, **back_})).proved
