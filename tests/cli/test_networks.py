"""The main job, on every trained network in every form it is kept in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

from models import NETWORKS
from models.forms import FORMS, Form, checkpoint_path, load_trained, save_forms
from tests.conftest import Ended

Run = Callable[..., Ended]

KEPT = {"convolutional_batch_statistics": 2}
"""BatchNorms that use batch statistics in eval; everywhere else none may be left."""


UNCHANGED = ("network_without_batch_norm", "convolutional_batch_statistics")
"""Nothing folds in them."""


class Forms:
    """Every network in every form, in `folder`, each written when it is asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, name: str, form: Form) -> Path:
        found = checkpoint_path(self._folder, name, form)
        if not found.exists():
            save_forms(load_trained(name), NETWORKS[name], self._folder, [form])
        return found


@pytest.fixture(scope="session")
def forms(tmp_path_factory: pytest.TempPathFactory) -> Forms:
    return Forms(tmp_path_factory.mktemp("forms"))


def options(name: str, form: str) -> list[str]:
    network = NETWORKS[name]
    shape = "x".join(map(str, network.input_shape))
    return {
        "state_dict": ["--model", network.address, "--input", f"Nx{shape}"],
        "module": ["--trust", "--input", f"2x{shape}"],
        "torchscript": ["--input", f"2x{shape}"],
        "onnx": [],
    }[form]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", NETWORKS)
def test_fold(bnfold: Run, forms: Forms, tmp_path: Path, name: str, form: str) -> None:
    source = forms.path(name, form)
    before = source.read_bytes()
    target = tmp_path / f"result{source.suffix}"
    ended = bnfold("fold", source, *options(name, form), "--format", "json", "-o", target)
    assert ended.code == 0, ended
    report = ended.json
    found = sum(
        isinstance(m, nn.modules.batchnorm._BatchNorm) for m in load_trained(name).modules()
    )
    kept = KEPT.get(name, 0)
    assert report["batchnorms"] == {"found": found, "folded": found - kept, "kept": kept}
    if name in UNCHANGED:
        assert report["verdict"] == "unchanged"
        assert target.read_bytes() == before
    else:
        assert report["verdict"] == "pass"
        assert report["verification"]["cases"]
        assert all(case["ratio"] <= 8 for case in report["verification"]["cases"])
    assert report["source"]["format"] == report["result"]["format"] == form
    assert source.read_bytes() == before
    assert count_batchnorms(target, form) == kept


@pytest.mark.parametrize("form", [*FORMS, "pt2"])
def test_nothing_to_fold_is_said_and_no_error(
    bnfold: Run, forms: Forms, tmp_path: Path, form: str
) -> None:
    source, flags = given("network_without_batch_norm", form, bnfold, forms, tmp_path)
    ended = bnfold("fold", source, *flags, "--require-folded", "-o", tmp_path / "result")
    assert ended.code == 0, ended
    assert "Nothing to fold: the model has no BatchNorm and no other affine." in ended.out
    assert bnfold("inspect", source, *flags, "--require-folded").code == 0


@pytest.mark.parametrize("form", [*FORMS, "pt2"])
def test_require_folded_fails_on_a_batchnorm_that_stays(
    bnfold: Run, forms: Forms, tmp_path: Path, form: str
) -> None:
    source, flags = given("convolutional_batch_statistics", form, bnfold, forms, tmp_path)
    target = tmp_path / "result"
    flags = [*flags, "--require-folded", "--format", "json"]
    ended = bnfold("fold", source, *flags, "-o", target)
    assert ended.code == 1, ended
    assert not target.exists()
    kept = [site for site in ended.json["sites"] if site["batchnorm"]]
    reason = "not-constant" if form == "onnx" else "batch-statistics"
    assert [site["reason"] for site in kept] == [reason] * 2
    assert [site["node"] for site in kept] == [site["name"] for site in kept]
    assert all("running statistics" in site["remedy"] for site in kept)
    assert bnfold("inspect", source, *flags).code == 1


def given(
    name: str, form: str, bnfold: Run, forms: Forms, tmp_path: Path
) -> tuple[Path, list[str]]:
    """A network in a form, and the options to open it; a .pt2 is made from the module."""
    if form != "pt2":
        return forms.path(name, form), options(name, form)
    source = tmp_path / f"{name}.pt2"
    module = forms.path(name, "module")
    flags = [*options(name, "module"), "--form", "graph", "-o", source]
    assert bnfold("fold", module, *flags).code == 0
    return source, []


def count_batchnorms(path: Path, form: str) -> int:
    """How many are in the file, as the plain library sees it."""
    if form == "onnx":
        return sum(node.op_type == "BatchNormalization" for node in onnx.load(path).graph.node)
    if form == "torchscript":
        graph = torch.jit.load(str(path)).inlined_graph
        return sum(node.kind() == "aten::batch_norm" for node in graph.nodes())
    if form == "module":
        loaded = torch.load(path, weights_only=False)
        return sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in loaded.modules())
    state = torch.load(path, weights_only=True)
    variances = [tensor for name, tensor in state.items() if name.endswith("running_var")]
    if variances:
        return sum(not bool((tensor == 1 - 1e-5).all()) for tensor in variances)
    return KEPT["convolutional_batch_statistics"] if any(".1.weight" in n for n in state) else 0


@pytest.mark.parametrize("form", FORMS)
def test_folding_twice_gives_the_same_bytes(
    bnfold: Run, forms: Forms, tmp_path: Path, form: str
) -> None:
    source = forms.path("placement", form)
    written = []
    for folder in ("one", "two"):
        target = tmp_path / folder / f"result{source.suffix}"
        target.parent.mkdir()
        ended = bnfold("fold", source, *options("placement", form), "-o", target)
        assert ended.code == 0, ended
        written.append(target.read_bytes())
    assert written[0] == written[1]


@pytest.mark.parametrize("form", FORMS)
def test_a_folded_result_verifies_against_its_source(
    bnfold: Run, forms: Forms, tmp_path: Path, form: str
) -> None:
    source = forms.path("batch_norm_network", form)
    target = tmp_path / f"result{source.suffix}"
    flags = options("batch_norm_network", form)
    assert bnfold("fold", source, *flags, "-o", target).code == 0
    ended = bnfold("verify", source, target, *flags)
    assert ended.code == 0, ended
    assert "pass" in ended.out


@pytest.mark.parametrize("form", FORMS)
def test_a_damaged_result_fails_verify(
    bnfold: Run, forms: Forms, tmp_path: Path, form: str
) -> None:
    """One bias of one layer off by a thousandth: far inside every fixed tolerance."""
    source = forms.path("placement", form)
    target = tmp_path / f"result{source.suffix}"
    flags = options("placement", form)
    assert bnfold("fold", source, *flags, "-o", target).code == 0
    damage(target, form)
    ended = bnfold("verify", source, target, *flags, "--format", "json")
    assert ended.code == 1, ended
    assert ended.json["verdict"] == "fail"


def damage(path: Path, form: str) -> None:
    if form == "onnx":
        model = onnx.load(path)
        bias = next(i for i in model.graph.initializer if len(i.dims) == 1)
        values = onnx.numpy_helper.to_array(bias).copy()
        values[0] += 1e-3
        bias.CopyFrom(onnx.numpy_helper.from_array(values, bias.name))
        onnx.save(model, path)
    elif form == "torchscript":
        module = torch.jit.load(str(path))
        for node in module.graph.nodes():
            if node.kind() == "aten::conv2d":
                next(iter(node.inputs()))
                list(node.inputs())[2].toIValue()[0] += 1e-3
                break
        module.save(str(path))
    elif form == "module":
        loaded = torch.load(path, weights_only=False)
        loaded.conv1.bias.data[0] += 1e-3
        torch.save(loaded, path)
    else:
        state = torch.load(path, weights_only=True)
        state["conv1.weight"][0] += 1e-2
        torch.save(state, path)


@pytest.mark.parametrize("form", ["module", "torchscript", "onnx"])
@pytest.mark.parametrize("name", ["placement", "batch_norm_network", "mnist_net"])
def test_export_to_onnx(bnfold: Run, forms: Forms, tmp_path: Path, name: str, form: str) -> None:
    source = forms.path(name, form)
    target = tmp_path / "out.onnx"
    ended = bnfold("export", source, *options(name, form), "-o", target, "--format", "json")
    assert ended.code == 0, ended
    assert ended.json["verdict"] == "pass"
    places = {case["provider"] for case in ended.json["results"][0]["verification"]["cases"]}
    assert {"cpu", "cpu unoptimised"} <= places
    onnx.checker.check_model(onnx.load(target), full_check=True)
    assert count_batchnorms(target, "onnx") == 0


def test_export_to_everything(bnfold: Run, forms: Forms, tmp_path: Path) -> None:
    source = forms.path("placement", "module")
    flags = ["--trust", "--input", "Nx3x32x32"]
    ended = bnfold("export", source, *flags, "--to", "onnx,torchscript,pt2", "-o", tmp_path)
    assert ended.code == 0, ended
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "placement.onnx",
        "placement.pt2",
        "placement.torchscript.pt",
    ]
    for result in ("placement.onnx", "placement.pt2", "placement.torchscript.pt"):
        ended = bnfold("verify", source, tmp_path / result, *flags)
        assert ended.code == 0, ended
