"""A fold into another type: computed in float64 from the original, rounded once, judged by what
that type costs; and what has no place for it is told so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper
from safetensors.torch import load_file, save_file
from torch import nn

import bnfold
from bnfold.algebra.rounding import EPSILON, rounded
from bnfold.errors import EnvironmentLacksError, UsageError
from bnfold.formats.onnx.model import OnnxModel
from bnfold.verbs.targets import Conversion
from tests.conftest import Ended
from tests.formats.networks import trained
from tests.formats.onnx_nets import Net

Run = Callable[..., Ended]
HERE = "tests.verbs.test_precision"
X = torch.randn(2, 3, 9, 7, generator=torch.Generator().manual_seed(0))

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3)
        self.bn = nn.BatchNorm2d(5)
        self.head = nn.Conv2d(5, 4, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(self.bn(self.conv(image)).relu())  # type: ignore[no-any-return]


class Mixed(nn.Module):
    """Half layers around a float32 BatchNorm, between two casts."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3).half()
        self.bn = nn.BatchNorm2d(5)
        self.head = nn.Conv2d(5, 4, 1).half()

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(self.bn(self.conv(image).float()).half())  # type: ignore[no-any-return]


def net() -> Net:
    made = Net()
    x = made.bn(made.conv(made.input("x", 2, 3, 9, 7), 3, 5), 5)
    made.output(made.conv(made.node("Relu", x), 5, 4, (1, 1)))
    return made


FORMS: dict[str, Callable[[nn.Module], Any]] = {
    "module": lambda module: module,
    "traced": lambda module: torch.jit.trace(module, X),
    "scripted": torch.jit.script,
    "program": lambda module: torch.export.export(module, (X,)),
}


def weights_of(model: Any) -> list[str]:
    """The types of all floats that a folded model holds."""
    if isinstance(model, onnx.ModelProto):
        held = (numpy_helper.to_array(each).dtype.name for each in model.graph.initializer)
        return [name for name in held if name in EPSILON]
    if isinstance(model, torch.jit.ScriptModule):
        graph: Any = model.inlined_graph
        constants = [node.output().toIValue() for node in graph.findAllNodes("prim::Constant")]
        tensors = [each for each in constants if isinstance(each, torch.Tensor)]
    else:
        tensors = list(
            model.state_dict.values()
            if hasattr(model, "graph_signature")
            else model.state_dict().values()
        )
    return [str(each.dtype).removeprefix("torch.") for each in tensors if each.is_floating_point()]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_torch(form: str, dtype: Any) -> None:
    result = bnfold.fold(FORMS[form](trained(Block())), "2x3x9x7", dtype=dtype)
    assert result.verification is not None
    assert result.passed
    assert (result.plan.batchnorms.folded, result.plan.batchnorms.kept) == (1, 0)
    assert set(weights_of(result.model)) == {dtype}
    assert {spec.dtype for spec in result.folded.inputs} == {dtype}
    assert max(row.floor for row in result.verification.rows) > EPSILON[dtype] / 2  # of values ~ 1
    assert any(f"inputs are {dtype} now" in note for note in result.notes)


def test_onnx() -> None:
    result = bnfold.fold(net().proto(), dtype="float16")
    assert result.verification is not None
    assert result.passed
    assert result.plan.batchnorms.kept == 0
    assert set(weights_of(result.model)) == {"float16"}
    assert [spec.dtype for spec in result.folded.inputs] == ["float16"]
    assert max(row.floor for row in result.verification.rows) > EPSILON["float16"] / 2
    onnx.checker.check_model(result.model, full_check=True)


@pytest.mark.parametrize("form", FORMS)
def test_half_becomes_single(form: str) -> None:
    """Exactly the half weights, and the floor of float32."""
    half = trained(Block()).half()
    program = form == "program"
    made = torch.export.export(half, (X.half(),)) if program else FORMS[form](half.float()).half()
    narrow = bnfold.fold(made, "2x3x9x7")
    wide = bnfold.fold(made, "2x3x9x7", dtype="float32")
    assert wide.passed
    assert set(weights_of(wide.model)) == {"float32"}
    floors = [max(row.floor for row in r.verification.rows) for r in (narrow, wide)]  # type: ignore[union-attr]
    assert floors[1] < floors[0] / 100  # 13 bits are 8192; the worst cases differ


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_new_weights_are_rounded_once(dtype: Any) -> None:
    """Not those of a model that was rounded before it is folded."""
    module: Any = trained(Block())
    scale = module.bn.weight.double() / torch.sqrt(module.bn.running_var.double() + module.bn.eps)
    exact = (module.conv.weight.double() * scale[:, None, None, None]).detach().numpy()
    found = bnfold.fold(module, "2x3x9x7", dtype=dtype).model.conv.weight.detach()
    assert np.array_equal(found.double().numpy(), rounded(exact, dtype).astype(np.float64))
    twice: Any = bnfold.fold(module.to(getattr(torch, dtype)), "2x3x9x7").model
    assert not torch.equal(found, twice.conv.weight)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_so_are_those_of_a_normalisation(dtype: Any) -> None:
    module: Any = trained(nn.Sequential(nn.GroupNorm(6, 48), nn.BatchNorm2d(48)))
    norm, bn = module
    nn.init.normal_(norm.weight)
    exact = norm.weight.double() * bn.weight.double() / (bn.running_var.double() + bn.eps).sqrt()
    folded = bnfold.fold(module, "2x48x9x7", dtype=dtype)
    assert folded.plan.batchnorms.kept == 0
    found = folded.model[0].weight.detach().double().numpy()
    assert np.array_equal(found, rounded(exact.detach().numpy(), dtype).astype(np.float64))


def test_new_weights_of_onnx_are_rounded_once() -> None:
    proto = net().proto()
    w = {t.name: numpy_helper.to_array(t).astype(np.float64) for t in proto.graph.initializer}
    weight, scale, var = (w[proto.graph.node[n].input[i]] for n, i in ((0, 1), (1, 1), (1, 4)))
    exact = weight * (scale / np.sqrt(var + np.float32(1e-5)))[:, None, None, None]
    made = bnfold.fold(proto, dtype="float16").model
    held = {t.name: numpy_helper.to_array(t) for t in made.graph.initializer}
    assert np.array_equal(held[made.graph.node[0].input[1]], rounded(exact, "float16"))


@pytest.mark.parametrize("kind", ["pt", "safetensors"])
def test_weights_load_into_their_class(bnfold: Run, tmp_path: Path, kind: str) -> None:
    source, target = tmp_path / f"w.{kind}", tmp_path / f"o.{kind}"
    module = trained(Block())
    (torch.save if kind == "pt" else save_file)(module.state_dict(), source)
    options = ("--model", f"{HERE}:Block", "--input", "2x3x9x7", "--half", "-o", target)
    ended = bnfold("fold", source, *options)
    assert ended.code == 0, ended
    state = torch.load(target) if kind == "pt" else load_file(target)
    assert {t.dtype for t in state.values() if t.is_floating_point()} == {torch.float16}
    other = Block().half().eval()
    other.load_state_dict(state, strict=True)
    with torch.no_grad():
        exact, made = module.double()(X.double()), other(X.half())
    assert (made - exact).abs().max() < 16 * EPSILON["float16"] * exact.abs().max()


def test_a_type_that_it_has_already_changes_nothing(bnfold: Run, tmp_path: Path) -> None:
    source = tmp_path / "relu.onnx"
    made = Net()
    made.output(made.node("Relu", made.input("x", 2, 3)), rank=2)
    onnx.save(made.proto(), source)
    assert bnfold("fold", source, "--float", "-o", tmp_path / "o.onnx").code == 0
    assert (tmp_path / "o.onnx").read_bytes() == source.read_bytes()


@pytest.mark.parametrize("command", ["fold", "export"])
def test_two_types_at_once(bnfold: Run, tmp_path: Path, command: str) -> None:
    onnx.save(net().proto(), tmp_path / "n.onnx")
    ended = bnfold(command, tmp_path / "n.onnx", "--half", "--float", "-o", tmp_path / "o.onnx")
    assert (ended.code, ended.out) == (2, "")
    assert "--float and --half contradict each other" in ended.err
    assert not (tmp_path / "o.onnx").exists()


def test_no_type() -> None:
    wrong: Any = "float8"
    with pytest.raises(UsageError, match="'float8' is no type that a model is written in"):
        bnfold.fold(net().proto(), dtype=wrong)


def test_an_onnx_file_is_exported_in_half() -> None:
    made = bnfold.export(net().proto(), how=Conversion(dtype="float16"))["onnx"]
    assert made.verification.passed
    assert set(weights_of(made.model)) == {"float16"}


def loud(module: Any) -> Any:
    with torch.no_grad():
        module.conv.weight[1, 0, 0, 0] = 7e4  # the largest of float16 is 65504
    return module


@pytest.mark.parametrize("form", [*FORMS, "onnx"])
def test_a_weight_that_the_type_cannot_hold(form: str) -> None:
    module = loud(trained(Block()))
    made = net()
    made.weights[0].CopyFrom(numpy_helper.from_array(np.full((5, 3, 3, 3), 7e4, np.float32), "w0"))
    model = made.proto() if form == "onnx" else FORMS[form](module)
    with pytest.raises(UsageError, match=r"numbers up to 7e\+04, which float16 cannot hold") as why:
        bnfold.fold(model, "2x3x9x7", dtype="float16")
    assert why.value.hint == "use --bfloat16"


def test_an_operator_without_the_type() -> None:
    with pytest.raises(UsageError, match=r"Conv_0 \(Conv\) has no bfloat16 in opset 17") as why:
        bnfold.fold(net().proto(), dtype="bfloat16")
    assert "--opset 22" in (why.value.hint or "")


def test_a_type_that_the_runtime_lacks() -> None:
    made = net()
    made.opset, made.ir = 22, 10
    with pytest.raises(EnvironmentLacksError, match="lacks an operator in the type of the model"):
        bnfold.fold(made.proto(), dtype="bfloat16")
    unverified = bnfold.fold(made.proto(), dtype="bfloat16", verify=False)
    assert {t.data_type for t in unverified.model.graph.initializer} == {TensorProto.BFLOAT16}


def test_casts_between_layers() -> None:
    """A module's own code keeps them; its graph does not."""
    module = trained(Mixed())
    (site,) = bnfold.fold(module, "2x3x9x7:float16", verify=False).plan.sites
    assert site.remedy == "fold it in one type: --float or --half, a module with --form graph"
    with pytest.raises(
        UsageError, match="in the type that was asked for, Mixed does not run"
    ) as no:
        bnfold.fold(module, "2x3x9x7:float16", dtype="float32")
    assert "--form graph" in (no.value.hint or "")
    for dtype in ("float32", "float16"):
        folded = bnfold.fold(module, "2x3x9x7:float16", form="graph", dtype=dtype)  # type: ignore[arg-type]
        assert folded.passed
        assert folded.plan.batchnorms.folded == 1


def test_a_float32_batchnorm_of_half_values_folds_as_it_is() -> None:
    module: Any = trained(Block()).half()
    module.bn.float()
    result = bnfold.fold(module, "2x3x9x7:float16")
    assert result.passed
    assert result.plan.batchnorms.folded == 1


class Sizes(nn.Module):
    """Code that names a type, and free sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        y = self.bn(self.conv(image))
        return y + torch.ones(y.shape[0], 1, 1, 1, dtype=torch.float32)  # type: ignore[no-any-return]


def test_a_type_that_a_program_names_changes_and_sizes_stay_free() -> None:
    batch = torch.export.Dim("N", min=2, max=64)
    program = torch.export.export(trained(Sizes()), (X,), dynamic_shapes=({0: batch},))
    result = bnfold.fold(program, dtype="float16")
    assert result.passed
    assert not isinstance(result.folded.inputs[0].shape[0], int)  # type: ignore[index]
    made = result.model.module()(X[:1].repeat(5, 1, 1, 1).half())
    assert (made.dtype, made.shape[0]) == (torch.float16, 5)


def test_a_type_that_a_script_names_changes() -> None:
    result = bnfold.fold(torch.jit.script(trained(Sizes())), "2x3x9x7", dtype="float16")
    assert result.passed
    assert result.model(X.half()).dtype == torch.float16


def assert_runs_in_half(made: Net) -> onnx.ModelProto:
    result = bnfold.fold(made.proto(), dtype="float16", verify_anyway=True)
    assert result.passed
    onnx.checker.check_model(result.model, full_check=True)
    proto: onnx.ModelProto = result.model
    kinds = {v.type.tensor_type.elem_type for v in (*proto.graph.input, *proto.graph.output)}
    assert TensorProto.FLOAT not in kinds
    return proto


def test_what_an_operator_takes_in_one_type_alone_stays() -> None:
    made = Net()
    x = made.conv(made.input("x", 2, 3, 9, 7), 3, 4)
    scales = made.weight([1, 1, 1.7, 2.3])
    made.output(made.node("Resize", x, "", scales, mode="linear"))
    proto = assert_runs_in_half(made)
    kept = {t.name: t.data_type for t in proto.graph.initializer}
    assert kept[scales] == TensorProto.FLOAT
    assert {n.op_type for n in proto.graph.node} == {"Conv", "Resize"}


def test_scales_that_are_computed_are_cast_back() -> None:
    made = Net()
    x = made.conv(made.input("x", 2, 3, 9, 7), 3, 4)
    scales = made.node("Mul", made.weight([1, 1, 1.5, 2]), made.input("s", 1))
    made.output(made.node("Resize", x, "", scales, mode="nearest"))
    result = bnfold.fold(
        made.proto(), {"x": X.numpy(), "s": np.ones(1, np.float32)}, dtype="float16"
    )
    assert result.passed
    assert [n.op_type for n in result.model.graph.node].count("Cast") == 1


def test_an_operator_without_half_is_computed_between_two_casts() -> None:
    made = Net(opset=13)  # CumSum takes float16 from opset 14 on
    x = made.conv(made.input("x", 2, 3, 9, 7), 3, 4)
    first = made.node("CumSum", x, made.weight(1, np.int64))
    second = made.node("CumSum", first, made.weight(2, np.int64))
    made.output(second)
    proto = assert_runs_in_half(made)
    kinds = [node.op_type for node in proto.graph.node]
    assert kinds == ["Conv", "Cast", "CumSum", "CumSum", "Cast"]
    assert proto.graph.output[0].name == second


def test_a_fill_value_becomes_the_largest_number() -> None:
    made = Net()
    x = made.conv(made.input("x", 2, 3, 9, 7), 3, 4)
    made.output(made.node("Max", x, made.weight(-1e9)))
    proto = assert_runs_in_half(made)
    numbers = [numpy_helper.to_array(t) for t in proto.graph.initializer]
    assert [float(n) for n in numbers if n.ndim == 0] == [-65504.0]


def test_bodies_and_constants_are_cast_too() -> None:
    made = Net()
    x = made.conv(made.input("x", 2, 3, 9, 7), 3, 4)
    value = made.node("Constant", value_floats=[2.0])
    filled = made.node("ConstantOfShape", made.weight([1], np.int64))
    cast = made.node("Cast", made.weight([3], np.int64), to=TensorProto.FLOAT)
    branches = {}
    for name, kind in (("then_branch", "Add"), ("else_branch", "Mul")):
        inner = Net()
        inner.output(
            inner.node(kind, x, inner.weight([0.5], name=f"half_{kind}"), made=f"its_{kind}")
        )
        branches[name] = inner.proto().graph
    chosen = made.node("If", made.input("c", elem=TensorProto.BOOL), **branches)
    for each in (value, filled, cast):
        chosen = made.node("Add", chosen, each)
    made.output(chosen)
    assert_runs_in_half(made)


def test_external_data_stay_outside(tmp_path: Path) -> None:
    path = tmp_path / "n.onnx"
    made = Net()
    made.output(made.bn(made.conv(made.input("x", 2, 3, 9, 7), 3, 64), 64))
    onnx.save(made.proto(), path, save_as_external_data=True, size_threshold=0)
    result = bnfold.fold(path, dtype="float16")
    result.save(tmp_path / "o.onnx")
    assert OnnxModel.load(tmp_path / "o.onnx").external
    assert len([*tmp_path.glob("o.onnx*.data")]) == 1
