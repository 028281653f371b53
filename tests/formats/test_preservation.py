"""What a fold keeps of a file beside its numbers, as the plain library reads it; and equal bytes.

Control flow, types and the rest of what `forward` computes are held to the original elsewhere.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.export import Dim

import bnfold
from bnfold.errors import ModelError
from bnfold.formats.pytorch.pickles import unpickle
from bnfold.formats.pytorch.writing import save
from tests.conftest import ROOT
from tests.formats.factories import small
from tests.formats.networks import trained

X = torch.randn(4, 3, 10, 8, generator=torch.Generator().manual_seed(3))


class Stem(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, bias=False)
        self.bn = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))  # type: ignore[no-any-return]


class Labelled(nn.Module):
    """Attributes of every kind; `forward` reads `threshold` and writes `calls`."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = Stem()
        self.labels = ["cat", "dog"]
        self.index = {"cat": 0}
        self.threshold = 0.5
        self.calls = 0
        self.register_buffer("anchors", torch.arange(5.0))

    def forward(self, x: Tensor, mask: Tensor | None = None, times: int = 1) -> dict[str, Tensor]:
        self.calls += 1
        y = self.stem(x) * self.threshold
        if mask is not None:
            y = y * mask
        for _ in range(times):
            y = y + 1
        return {"y": y}

    @torch.jit.export  # type: ignore[untyped-decorator]
    def features(self, x: Tensor) -> Tensor:
        return self.stem(x)  # type: ignore[no-any-return]


def hook(module: Any, inputs: tuple[Tensor], output: Tensor) -> Tensor:
    return output * 2


class TestTorchScript:
    def test_attributes_methods_defaults_and_extra_files(self, tmp_path: Path) -> None:
        scripted: Any = torch.jit.script(trained(Labelled()))
        scripted.save(str(tmp_path / "m.pt"), _extra_files={"a.json": b"{}", "b": b"\xff\x00"})
        result = bnfold.fold(tmp_path / "m.pt", X)
        assert result.passed
        assert result.plan.batchnorms.folded == 1
        result.save(tmp_path / "f.pt")
        extra = {"a.json": "", "b": ""}
        load: Any = torch.jit.load
        loaded = load(str(tmp_path / "f.pt"), _extra_files=extra)
        assert extra == {"a.json": b"{}", "b": b"\xff\x00"}
        assert (loaded.labels, loaded.index, loaded.threshold) == (["cat", "dog"], {"cat": 0}, 0.5)
        assert loaded.training is False
        assert torch.equal(loaded.state_dict()["anchors"], torch.arange(5.0))
        assert loaded.original_name == "Labelled"
        mask = torch.rand(4, 4, 8, 6)
        for given in ((X,), (X, mask), (X, None, 3)):
            assert torch.allclose(loaded(*given)["y"], scripted(*given)["y"], atol=1e-5)
        assert loaded.calls == 3
        assert torch.equal(loaded.features(X), scripted.features(X))

    def test_what_is_not_kept_is_said(self) -> None:
        notes = bnfold.fold(torch.jit.script(trained(Labelled())), X).notes
        assert "the result has its 3 submodules written out in forward, without names" in notes
        assert "not folded, but kept as they are: the methods features" in notes

    def test_a_folded_model_keeps_them_when_folded_again(self) -> None:
        once = bnfold.fold(torch.jit.script(trained(Labelled())), X)
        twice = bnfold.fold(once.model, X)
        assert twice.model.labels == ["cat", "dog"]
        assert not any("submodules" in note for note in twice.notes)

    def test_hooks_on_the_whole_are_refused_and_those_inside_fold(self) -> None:
        stem, outer = trained(Stem()), nn.Sequential(trained(Stem()))
        for each in (stem, outer[0]):
            each.register_forward_hook(hook)
        with pytest.raises(ModelError, match="has hooks of its own"):
            bnfold.fold(torch.jit.script(stem), X)
        assert bnfold.fold(torch.jit.script(outer), X).passed


class Signature(nn.Module):
    """Nested inputs, a keyword, a constant argument; outputs in a dict of tuples."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = Stem(), Stem()
        self.register_buffer("idle", torch.arange(5.0))

    def forward(
        self, x: Tensor, pair: dict[str, list[Tensor]], *, mask: Tensor, flag: bool = True
    ) -> Any:
        a, b = self.left(x), self.right(pair["l"][0])
        return {"sum": a + b, "parts": (a * mask, [b, 3 if flag else 4])}


INPUTS = {"x": "4x3x10x8", "pair_l_0": "4x3x10x8", "mask": "4x4x1x1"}


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, dict[str, str]]:
    """A program, the folded one as torch loads it, and the extra files of that."""
    folder = tmp_path_factory.mktemp("programs")
    batch, height = Dim("batch", min=2, max=32), Dim("height", min=6, max=64)
    sizes = {0: batch, 2: height}
    program = torch.export.export(
        trained(Signature()),
        (X, {"l": [X + 1]}),
        {"mask": torch.ones(4, 4, 1, 1), "flag": True},
        dynamic_shapes={"x": sizes, "pair": {"l": [sizes]}, "mask": {0: batch}, "flag": None},
    )
    torch.export.save(program, folder / "m.pt2", extra_files={"labels.txt": "cat\ndog"})
    result = bnfold.fold(folder / "m.pt2", INPUTS)
    assert result.passed
    assert result.plan.batchnorms.folded == 2
    result.save(folder / "f.pt2")
    extra = {"labels.txt": ""}
    return program, torch.export.load(folder / "f.pt2", extra_files=extra), extra


class TestPrograms:
    def test_extra_files(self, programs: Any) -> None:
        assert programs[2] == {"labels.txt": "cat\ndog"}

    def test_signature(self, programs: Any) -> None:
        program, folded, _ = programs
        assert folded.call_spec == program.call_spec
        ours, theirs = folded.graph_signature, program.graph_signature
        assert ours.user_inputs == theirs.user_inputs
        assert ours.user_outputs == theirs.user_outputs
        assert "idle" in folded.state_dict
        assert not any("running" in name or "num_batches" in name for name in folded.state_dict)

    def test_free_sizes_their_ranges_and_what_relates_them(self, programs: Any) -> None:
        program, folded, _ = programs
        assert folded.range_constraints == program.range_constraints
        mask = torch.ones(4, 4, 1, 1)
        given = {
            "fits": ((X, {"l": [X]}, mask), None),
            "batch": ((X, {"l": [X[:3]]}, mask), "size"),
            "width": ((X[..., :7], {"l": [X[..., :7]]}, mask), "size"),
        }
        for args, problem in given.values():
            for each in (program, folded):
                if problem is None:
                    each.module()(*args[:2], mask=args[2], flag=True)
                else:
                    with pytest.raises(AssertionError, match=problem):
                        each.module()(*args[:2], mask=args[2], flag=True)

    def test_results_and_the_tree_of_modules(self, programs: Any) -> None:
        program, folded, _ = programs
        args, kwargs = (X, {"l": [X]}), {"mask": torch.ones(4, 4, 1, 1), "flag": True}
        wanted = program.module()(*args, **kwargs)
        for module in (folded.module(), torch.export.unflatten(folded)):
            got = module(*args, **kwargs)
            assert got["parts"][1][1] == 3
            assert torch.allclose(got["sum"], wanted["sum"], atol=1e-4)
            assert torch.allclose(got["parts"][0], wanted["parts"][0], atol=1e-4)

    def test_several_models_in_one_package_are_refused(self, tmp_path: Path) -> None:
        from torch.export.pt2_archive._package import package_pt2

        program = torch.export.export(trained(Stem()), (X,))
        package_pt2(
            str(tmp_path / "m.pt2"), exported_programs={"encoder": program, "decoder": program}
        )
        with pytest.raises(ModelError, match="holds 2 models: decoder, encoder"):
            bnfold.fold(tmp_path / "m.pt2")


SAVES = """
import sys
from pathlib import Path
import bnfold
target = Path(sys.argv[2])
for path in sorted(Path(sys.argv[1]).iterdir()):
    inputs = None if path.suffix == ".pt2" else "2x3x4x5"
    opening = bnfold.Opening(factory="tests.formats.factories:small")
    bnfold.fold(path, inputs, opening=opening, verify=False).save(target / path.name)
"""


class TestEqualBytes:
    def test_in_two_processes_that_hash_differently(self, tmp_path: Path) -> None:
        (source := tmp_path / "in").mkdir()
        module, program = trained(small()), torch.export.export(small(), (torch.ones(2, 3, 4, 5),))
        for name in ("a", "bb", "ccc", "dddd", "eeeee"):
            module.register_buffer(name, torch.ones(1), persistent=False)
        state = small().state_dict()
        torch.save(module, source / "module.pt")
        torch.save({"model": state, "seen": {"a", "bb", "ccc", "dddd"}}, source / "state.pt")
        save_file(state, source / "w.safetensors", dict.fromkeys("abcdef", "1"))
        torch.export.save(program, source / "program.pt2")
        scripted: Any = torch.jit.script(module)
        scripted.save(str(source / "script.pt"), _extra_files={"a": b"1", "b": b"2"})
        for seed in "12":
            (tmp_path / seed).mkdir()
            subprocess.run(
                [sys.executable, "-W", "ignore", "-c", SAVES, source, tmp_path / seed],
                cwd=ROOT,
                env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT), "PATH": ""},
                check=True,
                timeout=120,
            )
        names = sorted(path.name for path in source.iterdir())
        assert len(names) == 5
        for name in names:
            first, second = ((tmp_path / seed / name).read_bytes() for seed in "12")
            assert first == second, name

    @pytest.mark.parametrize("entry", [nn.Linear(2, 3), {"w": torch.ones(2), "s": {"a", 1}}])
    def test_under_any_name(self, entry: Any, tmp_path: Path) -> None:
        for name in ("a.pt", "another.pth"):
            save(entry, tmp_path / name)
        assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "another.pth").read_bytes()

    def test_sets_and_deep_nests_are_read_again(self, tmp_path: Path) -> None:
        deep: nn.Module = nn.Identity()
        for _ in range(100):
            deep = nn.Sequential(deep)
        save({"deep": deep, "set": {"a", "b"}}, tmp_path / "m.pt")
        found = torch.load(tmp_path / "m.pt", weights_only=False)
        assert found["set"] == {"a", "b"}
        assert repr(found["deep"]) == repr(deep)
        assert repr(unpickle(tmp_path / "m.pt")["deep"]) == repr(deep)
