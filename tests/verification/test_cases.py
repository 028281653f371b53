"""The inputs of a verification: the same for the same seed, and each made for one mistake."""

from __future__ import annotations

import numpy as np
import pytest

from bnfold.runtimes import Integers, TensorSpec
from bnfold.verification.cases import probes

SPECS = (TensorSpec("x", "float32", ("N", 3, "H", 8)), TensorSpec("ids", "int64", ("N", 4)))
BASE = {"x": np.zeros((2, 3, 6, 8), np.float32), "ids": np.zeros((2, 4), np.int64)}


def test_the_same_seed_gives_the_same_numbers() -> None:
    first, again, other = (list(probes(SPECS, BASE, seed)) for seed in (1, 1, 2))
    assert [case.name for case in first] == [case.name for case in again]
    for one, two in zip(first, again, strict=True):
        for name in BASE:
            np.testing.assert_array_equal(one.sample[name], two.sample[name])
    assert not np.array_equal(first[0].sample["x"], other[0].sample["x"])


def test_names_types_and_shapes_stay() -> None:
    cases = {case.name: case.sample for case in probes(SPECS, BASE)}
    assert len(cases) == len(list(probes(SPECS, BASE)))
    for name, sample in cases.items():
        assert list(sample) == list(BASE)
        for key, array in BASE.items():
            assert sample[key].dtype == array.dtype
            if name in ("zeros", "ones", "border", "channels", "large", "noise"):
                assert sample[key].shape == array.shape


def test_what_each_case_is() -> None:
    cases = {case.name: case.sample["x"] for case in probes(SPECS, BASE)}
    assert not cases["zeros"].any()
    assert (cases["ones"] == 1).all()
    assert not cases["border"][:, :, 1:-1, 1:-1].any()
    assert cases["border"][:, :, [0, -1]].all()
    assert cases["border"][:, :, :, [0, -1]].all()
    flat = cases["channels"].reshape(*cases["channels"].shape[:2], -1)
    assert (flat == flat[:, :, :1]).all()
    assert len(np.unique(flat[:, :, 0])) == flat.shape[0] * flat.shape[1]
    assert cases["large"].std() > 50
    assert cases["small"].std() < 0.02
    sizes = np.abs(cases["huge"])
    assert sizes.max() > 5e3
    assert (sizes < 10).any()
    assert not np.array_equal(cases["noise"], cases["noise again"])
    assert cases["batch 1"].shape == (1, 3, 6, 8)
    assert cases["odd sizes"].shape == (2, 3, 7, 8)
    assert cases["below"].shape == (2, 3, 1, 8)
    assert cases["above"].shape == (1, 3, 12, 8)


def test_free_sizes_differ_from_one_another_and_lie_on_both_sides_of_the_example() -> None:
    """A candidate that takes height for width is right wherever they are the same."""
    specs = [TensorSpec("x", "float32", ("N", 3, "H", "W"))]
    base = {"x": np.zeros((3, 3, 32, 32), np.float32)}
    shapes = {case.name: case.sample["x"].shape for case in probes(specs, base)}
    assert {shape[0] for shape in shapes.values()} == {1, 2, 3, 5}
    varied = [shapes[name] for name in ("odd sizes", "below", "above")]
    assert all(height != width for _, _, height, width in varied)
    heights, widths = ({shape[axis] for shape in varied} for axis in (2, 3))
    assert min(heights) < 32 < max(heights)
    assert shapes["batch 1"] == (1, 3, 32, 16)
    assert max(widths) > 32
    assert {height > width for _, _, height, width in varied} == {True, False}


def test_what_an_original_cannot_run_has_a_plainer_case_instead() -> None:
    specs = [TensorSpec("x", "float32", ("N", 3, None, None))]
    base = {"x": np.zeros((3, 3, 8, 8), np.float32)}
    cases = {case.name: case for case in probes(specs, base)}
    odd, again = cases["odd sizes"], cases["noise again"]
    assert odd.sample["x"].shape == (3, 3, 11, 9)
    assert odd.instead is not None
    assert odd.instead.sample["x"].shape == (3, 3, 9, 9)
    assert again.instead is not None
    assert again.instead.sample["x"].shape == (3, 3, 8, 8)
    named = again.renamed(", seed 1")
    assert named.instead is not None
    assert (named.name, named.instead.name) == ("noise again, seed 1", "noise again, seed 1")


def test_fixed_sizes_are_not_varied() -> None:
    fixed = [TensorSpec("x", "float32", (2, 3, 6, 8))]
    names = [case.name for case in probes(fixed, {"x": BASE["x"]})]
    assert not {"batch 1", "odd sizes"} & set(names)


@pytest.mark.parametrize("dtype", ["int64", "bool", "uint8"])
def test_integers_are_zero_or_one_and_bytes_once_anything(dtype: str) -> None:
    base = {"ids": np.zeros((50, 40), dtype)}
    for case in probes([TensorSpec("ids", dtype, (50, 40))], base):
        found = set(np.unique(case.sample["ids"]).tolist())
        if dtype == "uint8" and case.name == "large":
            assert {0, 255} < found
        elif dtype == "int64" and case.name == "large":
            assert min(found) < -250
            assert max(found) > 250
            assert case.instead is not None
            assert set(np.unique(case.instead.sample["ids"]).tolist()) == {0, 1}
        else:
            assert found == {0, 1}


@pytest.mark.parametrize("dtype", ["uint8", "int32"])
def test_integers_that_pick_rows_stay_within_the_table(dtype: str) -> None:
    base = {"ids": np.zeros((50, 4), dtype)}
    spec = TensorSpec("ids", dtype, (50, 4), Integers(limit=7))
    seen: set[int] = set()
    for case in probes([spec], base):
        seen |= set(case.sample["ids"].flat)
    assert seen == set(range(-7 if dtype == "int32" else 0, 7))


def test_integers_take_what_the_model_compares_them_with() -> None:
    base = {"ids": np.zeros((50, 40), np.int64)}
    spec = TensorSpec("ids", "int64", (50, 40), Integers(marks=(1000,)))
    large = next(case for case in probes([spec], base) if case.name == "large").sample["ids"]
    assert {999, 1000, 1001} <= set(large.flat)
    assert large.min() < -250


def test_complex_noise_has_both_parts() -> None:
    base = {"x": np.zeros((50, 4), np.complex64)}
    noise = next(probes([TensorSpec("x", "complex64", (50, 4))], base)).sample["x"]
    assert noise.dtype == np.complex64
    assert min(noise.real.std(), noise.imag.std()) > 0.5


def test_a_free_size_is_varied_wherever_its_name_stands() -> None:
    specs = (
        TensorSpec("x", "float32", ("N", 5, "L")),
        TensorSpec("mask", "bool", ("N", "L")),
        TensorSpec("other", "float32", ("N", None)),
    )
    shapes = {"x": (3, 5, 8), "mask": (3, 8), "other": (3, 8)}
    base = {spec.name: np.zeros(shapes[spec.name], spec.dtype) for spec in specs}
    found = {
        case.name: [array.shape for array in case.sample.values()] for case in probes(specs, base)
    }
    assert found["batch 1"] == [(1, 5, 8), (1, 8), (1, 4)]
    assert found["odd sizes"] == [(3, 5, 9), (3, 9), (3, 8)]
    assert found["other length"] == [(3, 5, 8), (3, 8), (3, 9)]
    assert found["below"] == [(2, 5, 2), (2, 2), (2, 8)]
    assert found["above"] == [(1, 5, 8), (1, 8), (1, 16)]


@pytest.mark.parametrize("shape", [(), (3,), (2, 5), (2, 3, 4), (1, 2, 3, 1, 1)])
def test_any_rank(shape: tuple[int, ...]) -> None:
    for case in probes([TensorSpec("x", "float32", shape)], {"x": np.zeros(shape, np.float32)}):
        assert case.sample["x"].shape == shape
