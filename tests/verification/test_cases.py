"""The inputs of a verification: the same for the same seed, and each made for one mistake."""

from __future__ import annotations

import numpy as np
import pytest

from bnfold.run import TensorSpec
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
            if name not in ("batch 1", "odd sizes"):
                assert sample[key].shape == array.shape


def test_what_each_case_is() -> None:
    cases = {case.name: case.sample["x"] for case in probes(SPECS, BASE)}
    assert not cases["zeros"].any()
    assert (cases["ones"] == 1).all()
    assert not cases["border"][:, :, 1:-1, 1:-1].any()
    assert cases["border"][:, :, 0].all()
    flat = cases["channels"].reshape(*cases["channels"].shape[:2], -1)
    assert (flat == flat[:, :, :1]).all()
    assert len(np.unique(flat[:, :, 0])) == flat.shape[0] * flat.shape[1]
    assert cases["large"].std() > 50
    assert cases["small"].std() < 0.02
    assert not np.array_equal(cases["noise"], cases["noise again"])
    assert cases["batch 1"].shape == (1, 3, 6, 8)
    assert cases["odd sizes"].shape == (2, 3, 7, 8)


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
        else:
            assert found == {0, 1}


def test_bytes_that_pick_rows_stay_within_the_table() -> None:
    base = {"ids": np.zeros((50, 4), np.uint8)}
    for case in probes([TensorSpec("ids", "uint8", (50, 4), limit=7)], base):
        assert case.sample["ids"].max() < 7


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
    assert found["batch 1"] == [(1, 5, 8), (1, 8), (1, 8)]
    assert found["odd sizes"] == [(3, 5, 9), (3, 9), (3, 8)]
    assert found["other length"] == [(3, 5, 8), (3, 8), (3, 9)]


@pytest.mark.parametrize("shape", [(), (3,), (2, 5), (2, 3, 4), (1, 2, 3, 1, 1)])
def test_any_rank(shape: tuple[int, ...]) -> None:
    for case in probes([TensorSpec("x", "float32", shape)], {"x": np.zeros(shape, np.float32)}):
        assert case.sample["x"].shape == shape
