"""Folded weights in their own class: what it loads computes the same, or is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import bnfold
from bnfold import Opening
from bnfold.algebra.refusal import Reason
from bnfold.errors import ModelError, UsageError
from bnfold.formats.pytorch.class_form import neutral, shift_of
from tests.formats import factories
from tests.formats.networks import noise, trained

HERE = "tests.formats.factories"
IMAGE = torch.from_numpy(noise(2, 3, 9, 7))

FOLDED = {
    "Net": 1,
    "row": 2,
    "dropped": 1,
    "transposed": 1,
    "with_statistics": 1,
    "Branches": 2,
    "Features": 1,
    "Aliased": 1,
}
"""How many BatchNorms fold in their own class."""

UNPLACED = {
    "tied": "0.weight has no place",
    "normed": "0.weight has no place",
    "two_norms": "0.bias has no place",
    "before_conv": "1.bias has no place",
    "pooled": "0.bias has no place",
    "scaled": "its class computes it in any case",
}
"""Those of which nothing does, and why."""

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


def fold(
    folder: Path, factory: str, dtype: torch.dtype = torch.float32, **wishes: Any
) -> tuple[nn.Module, Any, Path]:
    """The network as it was trained, the fold of its weights, and the file with the result."""
    module = trained(getattr(factories, factory)()).eval().to(dtype)
    torch.save(module.state_dict(), folder / "w.pt")
    opening = Opening(factory=f"{HERE}:{factory}")
    result = bnfold.fold(folder / "w.pt", "2x3x9x7", opening=opening, **wishes)
    result.save(folder / "f.pt")
    return module, result, folder / "f.pt"


def run(module: nn.Module, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    with torch.no_grad():
        return module.eval()(IMAGE.to(dtype))  # type: ignore[no-any-return]


def loaded(factory: str, path: Path, *, strict: bool, dtype: Any = torch.float32) -> nn.Module:
    """The class with the weights of a file, as anybody loads them."""
    module = getattr(factories, factory)().to(dtype)
    module.load_state_dict(torch.load(path, weights_only=True), strict=strict)
    return module  # type: ignore[no-any-return]


def near(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Within what a few roundings to its type may do to a number of its size."""
    step = torch.finfo(expected.dtype).eps
    error = (found.double() - expected.double()).abs().max()
    assert error <= 32 * step * expected.double().abs().max()


@pytest.mark.parametrize(
    ("factory", "dtype"),
    [*((factory, torch.float32) for factory in FOLDED), *(("row", dtype) for dtype in DTYPES[1:])],
    ids=str,
)
def test_its_own_class_loads_it(factory: str, dtype: torch.dtype, tmp_path: Path) -> None:
    module, result, path = fold(tmp_path, factory, dtype)
    assert result.plan.batchnorms.folded == FOLDED[factory]
    for strict in (True, False):
        made = loaded(factory, path, strict=strict, dtype=dtype)
        near(run(made, dtype), run(module, dtype))
        scales = [shift_of(norm) is not None for norm in norms(made)]
        assert sum(scales) == FOLDED[factory]


@pytest.mark.parametrize("factory", [*FOLDED, *UNPLACED])
def test_what_bnfold_loads_is_the_folded_network(factory: str, tmp_path: Path) -> None:
    _, result, path = fold(tmp_path, factory)
    found = bnfold.load(path, f"{HERE}:{factory}")
    assert torch.equal(run(found), run(result.model))
    assert len([*norms(found)]) == result.plan.batchnorms.kept
    again = bnfold.fold(path, "2x3x9x7", opening=Opening(factory=f"{HERE}:{factory}"))
    assert again.plan.batchnorms.folded == 0
    assert again.plan.batchnorms.found == result.plan.batchnorms.kept
    again.save(tmp_path / "again.pt")
    first, second = (torch.load(p, weights_only=True) for p in (path, tmp_path / "again.pt"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("factory", UNPLACED)
def test_what_the_class_has_no_place_for_stays(factory: str, tmp_path: Path) -> None:
    module, result, path = fold(tmp_path, factory)
    assert torch.equal(run(loaded(factory, path, strict=True)), run(module))
    sites = [site for site in result.plan.sites if UNPLACED[factory] in (site.why or "")]
    assert sites
    for site in sites:
        assert Reason.NO_PLACE in [each.reason for each in site.obstacles]
        assert "--compact" in str(site.remedy)


@pytest.mark.parametrize("factory", [*FOLDED, *UNPLACED])
def test_a_compact_file_is_for_bnfold_alone(factory: str, tmp_path: Path) -> None:
    module, result, path = fold(tmp_path, factory, compact=True)
    assert result.plan.affines.folded > 0
    for strict in (True, False):
        with pytest.raises(RuntimeError, match="size mismatch"):
            loaded(factory, path, strict=strict)
    found = bnfold.load(path, getattr(factories, factory))
    assert torch.equal(run(found), run(result.model))
    near(run(found), run(module))


def test_a_compact_file_stops_who_loads_a_part_of_it(tmp_path: Path) -> None:
    _, _, path = fold(tmp_path, "row", compact=True)
    state = torch.load(path, weights_only=True)
    part = factories.row()[1]
    with pytest.raises(RuntimeError, match="size mismatch for weight"):
        part.load_state_dict({"weight": state["1.weight"]}, strict=False)


def test_what_was_written_for_the_class_can_be_made_compact(tmp_path: Path) -> None:
    _, result, path = fold(tmp_path, "row")
    opening = Opening(factory=f"{HERE}:row")
    compact = bnfold.fold(path, "2x3x9x7", opening=opening, compact=True)
    assert [type(m) for m in compact.model].count(nn.Conv2d) == 1
    compact.save(tmp_path / "c.pt")
    near(run(bnfold.load(tmp_path / "c.pt", f"{HERE}:row")), run(result.model))


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("eps", [0.0, 1e-12, 1e-6, 1e-5, 3e-5, 1e-4, 1e-3, 2e-3, 1e-2, 0.1, 0.5])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_neutral_is_exact(dtype: torch.dtype, eps: float, affine: bool) -> None:
    """x + t with one rounding, bit by bit, in every layout that has a kernel of its own."""
    numbers = neutral(eps, dtype, affine=affine)
    if numbers is None:
        assert dtype in (torch.float16, torch.bfloat16)  # there 1 - eps is too coarse
        assert eps > 2e-3 or not affine
        return
    norm = nn.BatchNorm2d(5, eps=eps, affine=affine).eval().to(dtype)
    shift = torch.randn(5, generator=torch.Generator().manual_seed(1)).to(dtype)
    with torch.no_grad():
        norm.running_var.fill_(numbers[1])
        if affine:
            norm.weight.fill_(numbers[0])
            norm.bias.copy_(shift)
        else:
            norm.running_mean.copy_(-shift)
    spread = torch.logspace(-4, 4, 9)
    x = (torch.randn(7, 5, 11, 9, generator=torch.Generator().manual_seed(2)) * spread).to(dtype)
    wide = torch.promote_types(dtype, torch.float32)
    for given in (x, x.contiguous(memory_format=torch.channels_last), x[:1, :, :1, :1]):
        exact = given.to(wide) + shift.to(wide)[:, None, None]
        with torch.no_grad():
            assert torch.equal(norm(given), exact.to(dtype))
    found = shift_of(norm)
    assert found is not None
    assert torch.equal(found, shift)


def test_neutral_without_numbers() -> None:
    assert neutral(2.0, torch.float32, affine=True) is None


def test_what_cannot_be_neutral_stays(tmp_path: Path) -> None:
    """Without a weight of its own nothing in half precision multiplies by exactly 1."""
    module = trained(factories.Net(affine=False)).eval().half()
    torch.save(module.state_dict(), tmp_path / "w.pt")
    opening = Opening(factory=f"{HERE}:Net", factory_args={"affine": False})
    found = bnfold.fold(tmp_path / "w.pt", "2x3x9x7", opening=opening)
    assert found.plan.batchnorms.kept == 1
    assert "its class computes it in any case" in str(found.plan.sites[0].why)


def test_a_class_with_an_epsilon_of_its_own(tmp_path: Path) -> None:
    module, result, path = fold(tmp_path, "other_epsilon")
    assert result.plan.batchnorms.kept == 1
    assert torch.equal(run(loaded("other_epsilon", path, strict=True)), run(module))


@pytest.mark.parametrize("role", ["weight", "running_mean", "running_var"])
def test_a_norm_that_was_trained_on_is_not_taken_out(role: str, tmp_path: Path) -> None:
    """The file says that it is neutral; its numbers are believed."""
    _, _, path = fold(tmp_path, "Net")
    state = torch.load(path, weights_only=True)
    state[f"bn.{role}"] += 0.25
    torch.save(state, path)
    found = bnfold.load(path, f"{HERE}:Net")
    assert [type(norm) for norm in norms(found)] == [nn.BatchNorm2d]
    assert torch.equal(run(found), run(loaded("Net", path, strict=True)))


def test_a_norm_that_was_given_a_shift_is_not_taken_out(tmp_path: Path) -> None:
    """Its convolution has a bias, so that the shift would be lost."""
    _, _, path = fold(tmp_path, "scaled_and_normed")
    state = torch.load(path, weights_only=True)
    state["1.bias"] += 0.25
    torch.save(state, path)
    found = bnfold.load(path, f"{HERE}:scaled_and_normed")
    assert torch.equal(run(found), run(loaded("scaled_and_normed", path, strict=True)))


def test_the_class_is_judged_as_well(tmp_path: Path) -> None:
    _, result, _ = fold(tmp_path, "Net")
    places = {row.place.provider for row in result.verification.rows}
    assert places == {"torch cpu", "torch cpu in its class"}


@pytest.mark.parametrize("compact", [False, True])
def test_how_to_load_it_is_told(compact: bool, tmp_path: Path) -> None:
    _, result, path = fold(tmp_path, "Net", compact=compact)
    who, how = result.notes
    assert ("refuses" in who) is compact
    line = f"bnfold.load({str(path)!r}, '{HERE}:Net')"
    assert how.endswith(f": {line}")
    assert isinstance(eval(line, {"bnfold": bnfold}), factories.Net)  # as people paste it


@pytest.mark.parametrize("compact", [False, True])
def test_prefixes_metadata_and_averages(compact: bool, tmp_path: Path) -> None:
    module = trained(factories.Net()).eval()
    averaged = trained(factories.Net(), seed=5).state_dict()
    state = {f"module.{name}": tensor for name, tensor in module.state_dict().items()}
    torch.save({"state_dict": state, "ema_state_dict": averaged, "epoch": 3}, tmp_path / "w.pt")
    save_file(state, tmp_path / "w.safetensors", metadata={"licence": "mine"})
    for name in ("w.pt", "w.safetensors"):
        opening = Opening(factory=f"{HERE}:Net")
        result = bnfold.fold(tmp_path / name, "2x3x9x7", opening=opening, compact=compact)
        result.save(tmp_path / f"f.{name}")
        near(run(bnfold.load(tmp_path / f"f.{name}", factories.Net)), run(module))
    whole = torch.load(tmp_path / "f.w.pt", weights_only=True)
    assert all(
        torch.equal(whole["ema_state_dict"][key], tensor) for key, tensor in averaged.items()
    )
    for found in (whole["state_dict"], load_file(tmp_path / "f.w.safetensors")):
        own = {name.removeprefix("module."): tensor for name, tensor in found.items()}
        made = factories.Net()
        if compact:
            with pytest.raises(RuntimeError, match="size mismatch"):
                made.load_state_dict(own, strict=False)
        else:
            made.load_state_dict(own, strict=True)
            near(run(made), run(module))


def test_what_a_state_dict_says_of_its_versions_stays(tmp_path: Path) -> None:
    module, _, path = fold(tmp_path, "Net")
    found = torch.load(path, weights_only=True)
    assert found._metadata == module.state_dict()._metadata  # type: ignore[attr-defined]


def test_a_folded_file_is_verified_and_exported(tmp_path: Path) -> None:
    _, _, path = fold(tmp_path, "Net")
    opening = Opening(factory=f"{HERE}:Net")
    assert bnfold.verify(tmp_path / "w.pt", path, "2x3x9x7", opening=opening).passed
    _, plan = bnfold.inspect(path, "2x3x9x7", opening=opening)
    assert plan.batchnorms.found == 0
    made = bnfold.export(path, "2x3x9x7", to=["pt2"], opening=opening)
    assert made.passed


def test_compact_is_for_weights(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a module is loaded without a class"):
        bnfold.fold(factories.Net(), "2x3x9x7", compact=True)


def test_load_wants_weights(tmp_path: Path) -> None:
    torch.jit.script(factories.small()).save(tmp_path / "s.pt")
    with pytest.raises(UsageError, match="no weights"):
        bnfold.load(tmp_path / "s.pt", factories.small)


def test_load_says_which_factory_does_not_fit(tmp_path: Path) -> None:
    _, _, path = fold(tmp_path, "Net")
    with pytest.raises(ModelError, match="does not fit small"):
        bnfold.load(path, factories.small)


def test_arguments_of_the_factory(tmp_path: Path) -> None:
    module = trained(factories.Net(8)).eval()
    torch.save(module.state_dict(), tmp_path / "w.pt")
    found = bnfold.load(tmp_path / "w.pt", factories.Net, {"channels": 8})
    np.testing.assert_array_equal(run(found), run(module))


def norms(module: nn.Module) -> Iterator[nn.Module]:
    kinds = nn.modules.batchnorm._NormBase
    return (each for each in module.modules() if isinstance(each, kinds))
