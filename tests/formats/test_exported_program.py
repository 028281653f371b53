"""The graph form: what it folds, that it is right, and that its signature stays."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import bnfold
from bnfold.algebra.checking import check
from bnfold.algebra.plan import Outcome, Plan
from bnfold.algebra.refusal import Reason
from bnfold.algebra.rounding import make_rounded_plan
from bnfold.errors import ModelError, UntrustedError
from bnfold.formats.pytorch.exported_program import ExportedProgramModel
from bnfold.formats.pytorch.nn_module import ModuleModel
from models import NETWORKS
from models.forms import load_trained
from tests.formats.examples import EXAMPLES, Example, conv, norm, pair
from tests.formats.networks import Basic, Function, K, excess, first, noise, trained


def fold(model: ExportedProgramModel) -> tuple[Plan, ExportedProgramModel]:
    plan, weights = make_rounded_plan(check(model.read()), model.locked(), model.veto)
    return plan, model.write(plan, weights)


def captured(module: nn.Module, sample: Any) -> ExportedProgramModel:
    return ModuleModel(module).capture(sample)


def batchnorm_calls(model: ExportedProgramModel) -> int:
    return sum("batch_norm" in str(node.target) for node in model.native.graph.nodes)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda e: e.name)
def test_each_network_folds_as_far_as_algebra_allows(example: Example) -> None:
    module = ModuleModel(example.make())
    sample = example.sample(module.inputs[0].name)
    model = module.capture(sample)
    before = {name: tensor.clone() for name, tensor in model.native.state_dict.items()}
    text = str(model.native.graph)
    outputs = first(model, sample)
    plan, folded = fold(model)
    done = tuple(site.name for site in plan.sites if site.outcome is Outcome.FOLDED)
    assert done == (example.module if example.graph is None else example.graph)
    assert excess(model, outputs, first(folded, sample), sample) <= K
    assert str(model.native.graph) == text
    for name, tensor in model.native.state_dict.items():
        assert torch.equal(tensor, before[name]), name
    kept = [s for s in plan.sites if s.op == "batch_norm" and s.outcome is Outcome.KEPT]
    assert batchnorm_calls(folded) == len(kept)


@pytest.mark.parametrize("name", NETWORKS)
def test_trained_networks(name: str) -> None:
    module = ModuleModel(load_trained(name))
    sample = {module.inputs[0].name: noise(2, *NETWORKS[name].input_shape)}
    model = module.capture(sample)
    plan, folded = fold(model)
    assert plan.batchnorms.folded == (0 if "batch_statistics" in name else plan.batchnorms.found)
    assert excess(model, first(model, sample), first(folded, sample), sample) <= K


class Everything(nn.Module):
    """Nested inputs, a constant among them, keyword-only and optional ones, nested outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.c, self.b = conv(), norm()
        self.register_buffer("p", torch.linspace(1, 2, 6).view(6, 1, 1), persistent=False)
        self.register_buffer("seen", torch.zeros(()))

    def forward(
        self, x: torch.Tensor, two: Any, factor: float, mask: Any = None, *, scale: torch.Tensor
    ) -> Any:
        y = self.b(self.c(x)) * self.p + two[0]
        return {"y": y * scale * factor, "rest": (two[1] * 2, None, torch.full((2,), 0.1))}


def everything() -> ExportedProgramModel:
    size = torch.export.Dim.DYNAMIC
    arguments = (torch.randn(2, 3, 8, 8), (torch.ones(1), torch.zeros(2)), 3.0)
    program = torch.export.export(
        trained(Everything()),
        arguments,
        {"scale": torch.ones(1)},
        dynamic_shapes={
            "x": {0: size, 2: size},
            "two": (None, None),
            "factor": None,
            "scale": None,
        },
    )
    return ExportedProgramModel(program)


SAMPLE = {
    "x": noise(4, 3, 9, 8),
    "two_0": noise(1),
    "two_1": noise(2),
    "scale": noise(1, seed=3),
}


class TestSignature:
    def test_inputs_outputs_and_free_sizes_stay(self) -> None:
        model = everything()
        plan, folded = fold(model)
        assert plan.batchnorms.folded == 1
        assert folded.inputs == model.inputs
        assert [spec.name for spec in folded.inputs] == list(SAMPLE)
        assert folded.native.call_spec == model.native.call_spec
        assert folded.native.range_constraints == model.native.range_constraints
        outputs = first(folded, SAMPLE)
        assert list(outputs) == list(first(model, SAMPLE))
        assert excess(model, first(model, SAMPLE), outputs, SAMPLE) <= K

    def test_it_is_called_as_before(self) -> None:
        _, folded = fold(everything())
        tensors = [torch.from_numpy(array) for array in SAMPLE.values()]
        result = folded.native.module()(tensors[0], (tensors[1], tensors[2]), 3.0, scale=tensors[3])
        assert result["y"].shape == (4, 6, 7, 6)
        assert result["rest"][1] is None

    def test_save_and_load_with_plain_torch(self, tmp_path: Path) -> None:
        _, folded = fold(everything())
        folded.save(tmp_path / "m.pt2")
        again = ExportedProgramModel(torch.export.load(tmp_path / "m.pt2"))
        assert again.inputs == folded.inputs
        for name, output in first(folded, SAMPLE).items():
            np.testing.assert_array_equal(first(again, SAMPLE)[name], output)

    def test_what_is_no_longer_read_is_not_stored(self) -> None:
        _, folded = fold(everything())
        assert set(folded.native.state_dict) == {"c.weight", "c.bias"}

    def test_fold_twice_is_fold_once(self) -> None:
        _, folded = fold(everything())
        plan, again = fold(folded)
        assert plan.affines.folded == 0
        for name, output in first(folded, SAMPLE).items():
            np.testing.assert_array_equal(first(again, SAMPLE)[name], output)

    def test_a_bias_that_was_not_there_is_named_after_its_layer(self) -> None:
        sample = {"input": noise(2, 3, 9, 7)}
        _, folded = fold(captured(trained(pair(conv(bias=False), norm())), sample))
        assert set(folded.native.state_dict) == {"0.weight", "0.bias"}

    def test_a_layer_called_twice_has_its_two_weights_saved(self, tmp_path: Path) -> None:
        module = Function(
            lambda m, x: m.b2(m.c(m.b1(m.c(x)))), c=conv(3, 3), b1=norm(3), b2=norm(3)
        )
        sample = {"x": noise(2, 3, 9, 7)}
        _, folded = fold(captured(trained(module), sample))
        assert len([n for n in folded.native.state_dict if "weight" in n]) == 2
        folded.save(tmp_path / "m.pt2")
        again = ExportedProgramModel.load(tmp_path / "m.pt2")
        np.testing.assert_array_equal(
            first(again, sample)["output"], first(folded, sample)["output"]
        )


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c, self.b, self.e = conv(), norm(), norm()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.b(self.c(x))
        return torch.cond(x.sum() > 0, lambda y: self.e(y) + 1, lambda y: y * 2, (y,))


def test_control_flow_is_kept_and_its_batchnorms_are_listed(tmp_path: Path) -> None:
    image = torch.from_numpy(noise(2, 3, 9, 7))
    model = ExportedProgramModel(torch.export.export(trained(Branches()), (image,)))
    plan, folded = fold(model)
    assert [(s.outcome, s.reason) for s in plan.sites] == [
        (Outcome.FOLDED, None),
        (Outcome.KEPT, Reason.NOT_LINEAR),
    ]
    folded.save(tmp_path / "m.pt2")
    again = ExportedProgramModel.load(tmp_path / "m.pt2")
    for sign in (1, -1):
        sample = {"x": sign * (np.abs(image.numpy()) + 0.1)}
        outputs = first(model, sample)
        assert excess(model, outputs, first(folded, sample), sample) <= K
        assert excess(model, outputs, first(again, sample), sample) <= K


def test_a_buffer_that_the_program_writes_is_no_constant() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c, self.b = conv(), norm()
            self.register_buffer("count", torch.ones(6, 1, 1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.count.add_(1)
            return self.b(self.c(x)) * self.count

    sample = {"x": noise(2, 3, 9, 7)}
    model = captured(trained(Counting()), sample)
    plan, folded = fold(model)
    assert [(site.name, site.outcome) for site in plan.sites] == [
        ("add", Outcome.KEPT),
        ("b", Outcome.FOLDED),
    ]
    assert "count" in folded.native.state_dict
    assert excess(model, first(model, sample), first(folded, sample), sample) <= K


class LargestMade(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The most numbers of a tensor that an operator made, rather than only told the shape of."""

    numbers = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> torch.Tensor:
        result = func(*args, **(kwargs or {}))
        if type(result) is torch.Tensor and result.device.type != "meta":
            self.numbers = max(self.numbers, result.numel())
        return result


def test_a_constant_that_is_far_larger_than_the_weights_is_not_computed() -> None:
    """Whoever runs the program needs it, not who reads it."""
    size = 1 << 25
    module = Function(
        lambda m, x: (m.b(m.c(x)), torch.full((size,), 2.0).double().sum()), c=conv(), b=norm()
    )
    program = torch.export.export(trained(module), (torch.randn(2, 3, 9, 7),))
    model = ExportedProgramModel(program)
    with LargestMade() as made:  # type: ignore[no-untyped-call]
        plan, _ = make_rounded_plan(model.read(), model.locked(), model.veto)
    assert plan.batchnorms.folded == 1
    assert 0 < made.numbers < size


def test_a_program_in_train_mode_is_kept() -> None:
    module = pair(conv(), norm())
    program = torch.export.export(module.train(), (torch.randn(2, 3, 9, 7),))
    plan, _ = fold(ExportedProgramModel(program))
    assert [site.reason for site in plan.sites] == [Reason.BATCH_STATISTICS]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "m.pt2"
    model = captured(trained(pair(conv(), norm())), {"input": noise(2, 3, 9, 7)})
    model.save(path)
    return path


def rewritten(path: Path, change: Callable[[str, bytes], bytes], **new: bytes) -> Path:
    """The archive with its records changed, and new ones beside them."""
    buffer = io.BytesIO(path.read_bytes())
    with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            target.writestr(name, change(name, source.read(name)))
        root = source.namelist()[0].split("/")[0]
        for name, content in new.items():
            target.writestr(f"{root}/data/constants/{name}", content)
    return path


class Payload:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


class TestHostile:
    def test_sample_inputs_are_not_run(self, saved: Path, tmp_path: Path) -> None:
        buffer = io.BytesIO()
        torch.save((Payload(tmp_path / "ran"), {}), buffer)
        rewritten(saved, lambda n, c: buffer.getvalue() if "sample_inputs" in n else c)
        with pytest.raises(ModelError):
            bnfold.fold(saved)
        assert not (tmp_path / "ran").exists()

    def test_pickled_weights_are_not_run(self, saved: Path, tmp_path: Path) -> None:
        buffer = io.BytesIO()
        torch.save(Payload(tmp_path / "ran"), buffer)

        def change(name: str, content: bytes) -> bytes:
            if name.endswith("weight_0"):
                return buffer.getvalue()
            if name.endswith("weights_config.json"):
                return content.replace(b'"use_pickle": false', b'"use_pickle": true')
            return content

        rewritten(saved, change)
        with pytest.raises(ModelError):
            bnfold.fold(saved)
        assert not (tmp_path / "ran").exists()

    @pytest.mark.parametrize("name", ["opaque_obj_0", "custom_obj_0"])
    def test_objects_are_refused(self, saved: Path, name: str) -> None:
        rewritten(saved, lambda n, c: c, **{name: b"\x80\x02."})
        with pytest.raises(UntrustedError, match=name):
            bnfold.fold(saved)

    @pytest.mark.parametrize(
        "expression",
        [
            "__import__('os').mkdir('MARKER')",
            "s0.__class__",
            "exec(chr(49))",
            "eval (chr(49))",
            "(lambda: 1)()",
            "[1].copy",
        ],
    )
    def test_sizes_that_are_code_are_refused(
        self, saved: Path, tmp_path: Path, expression: str
    ) -> None:
        expression = expression.replace("MARKER", str(tmp_path / "ran"))

        def change(name: str, content: bytes) -> bytes:
            if "models/" not in name:
                return content
            program = json.loads(content)
            meta = next(iter(program["graph_module"]["graph"]["tensor_values"].values()))
            meta["sizes"][0] = {"as_expr": {"expr_str": expression, "hint": None}}
            return json.dumps(program).encode()

        rewritten(saved, change)
        with pytest.raises(UntrustedError):
            bnfold.fold(saved)
        assert not (tmp_path / "ran").exists()

    def test_damage_is_one_sentence(self, saved: Path) -> None:
        rewritten(saved, lambda n, c: c[: len(c) // 2] if "models/" in n else c)
        with pytest.raises(ModelError, match=r"damaged exported program"):
            ExportedProgramModel.load(saved)


def test_free_sizes_survive_a_file(tmp_path: Path) -> None:
    result = bnfold.fold(trained(Basic()), "Nx4xHxW", form="graph")
    result.save(tmp_path / "m.pt2")
    again = bnfold.fold(tmp_path / "m.pt2", "Nx4xHxW", verify_anyway=True)
    assert again.passed
    assert again.verification is not None
    assert again.plan.batchnorms.found == 0
    assert {"batch 1", "odd sizes"} <= {row.place.case for row in again.verification.rows}
