"""Models that are quantized, or trained as if, and weights of no dimensions: refused by name."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.ao import quantization

import bnfold
from bnfold import Opening
from bnfold.errors import ModelError
from bnfold.formats.opening import open_model
from bnfold.formats.pytorch import aten
from bnfold.formats.torchscript.shapes import infer
from tests.conftest import Ended
from tests.formats.factories import small
from tests.formats.networks import trained

X = torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(0))
SHAPE = ("--input", "2x3x5x4")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.begin, self.end = quantization.QuantStub(), quantization.DeQuantStub()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.bn(self.conv(self.begin(x)))
        return self.end(self.head(x.mean((2, 3))))  # type: ignore[no-any-return]


class Rounded(nn.Module):
    """Rounds to a grid by an operator, without a layer for it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.fake_quantize_per_tensor_affine(x, 0.1, 0, -128, 127)
        return self.bn(self.conv(x))  # type: ignore[no-any-return]


def dynamic() -> nn.Module:
    return quantization.quantize_dynamic(Net().eval(), {nn.Linear}, torch.qint8)


def static() -> nn.Module:
    net = Net().eval()
    net.qconfig = quantization.get_default_qconfig("x86")  # type: ignore[assignment]
    net = quantization.prepare(net)
    net(X)
    return quantization.convert(net)


def in_training() -> nn.Module:
    net = Net().train()
    net.qconfig = quantization.get_default_qat_qconfig("x86")  # type: ignore[assignment]
    net = quantization.prepare_qat(net)
    net(X)
    return net.eval()


MAKERS: dict[str, Callable[[], nn.Module]] = {
    "dynamic": dynamic,
    "static": static,
    "in training": in_training,
    "an operator": lambda: Rounded().eval(),
}


@pytest.fixture(autouse=True)
def _engine() -> Any:
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = torch.backends.quantized.supported_engines[-1]
    yield
    torch.backends.quantized.engine = before


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("form", ["module", "graph"])
def test_modules_are_refused(kind: str, form: Any) -> None:
    with pytest.raises(ModelError, match="the model is quantized"):
        bnfold.fold(MAKERS[kind](), X, form=form)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("target", ["onnx", "torchscript", "pt2"])
def test_modules_are_not_exported(kind: str, target: str) -> None:
    with pytest.raises(ModelError, match="the model is quantized"):
        bnfold.export(MAKERS[kind](), X, to=[target])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize(
    "command",
    ["inspect", "fold", "export --to onnx", "export --to torchscript", "golden", "verify"],
)
def test_torchscript_is_refused(
    kind: str, command: str, bnfold: Callable[..., Ended], tmp_path: Path
) -> None:
    path, out = tmp_path / "q.pt", tmp_path / "out"
    torch.jit.trace(MAKERS[kind](), (X,), check_trace=False).save(str(path))
    name, *options = command.split()
    rest = {"inspect": [], "verify": [path]}.get(name, ["-o", out])
    ended = bnfold(name, path, *options, *rest, *SHAPE)
    assert ended.code == 3, ended
    assert "the model is quantized: it calls" in ended.err
    assert not out.exists()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["in training", "an operator"])
def test_programs_are_refused(kind: str) -> None:
    program = torch.export.export(MAKERS[kind](), (X,), strict=False)
    for act in (lambda: bnfold.fold(program), lambda: bnfold.export(program, to=["onnx"])):
        with pytest.raises(ModelError, match="the model is quantized: it calls"):
            act()
    with pytest.raises(ModelError, match="quantized"):
        open_model(program).truth()


@pytest.mark.filterwarnings("ignore")
def test_weights_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    state = small().state_dict()
    state["0.weight"] = torch.quantize_per_tensor(state["0.weight"], 0.1, 0, torch.qint8)
    torch.save(state, path)
    with pytest.raises(ModelError, match=r"0\.weight is of the type qint8"):
        open_model(path, Opening(factory="tests.formats.factories:small"))


PLACES = ("0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var")


def without_axes(place: str) -> nn.Module:
    net = small()
    path, _, name = place.rpartition(".")
    held = net.get_submodule(path)
    if name in held._parameters:
        held._parameters[name] = nn.Parameter(torch.tensor(1.5))
    else:
        held._buffers[name] = torch.tensor(1.5)
    return net


@pytest.mark.parametrize("place", PLACES)
def test_a_module_with_a_number_for_a_weight_is_refused(place: str) -> None:
    with pytest.raises(ModelError, match=f"{place} is a single number"):
        open_model(without_axes(place))


def test_a_number_beside_the_weights_is_none_of_them() -> None:
    net = small()
    net[0].register_buffer("calls", torch.tensor(0))
    assert bnfold.fold(net, X).passed


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("command", ["inspect", "fold"])
def test_torchscript_with_a_number_for_a_weight_is_refused(
    place: str, command: str, bnfold: Callable[..., Ended], tmp_path: Path
) -> None:
    path = tmp_path / "w.pt"
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(without_axes(place)), buffer)
    path.write_bytes(buffer.getvalue())
    ended = bnfold(command, path, *SHAPE)
    assert ended.code in (2, 3), ended
    assert ended.err.startswith("error: the TorchScript model does not run"), ended


@pytest.mark.parametrize(("shape", "made"), [((4,), None), ((), None), ((3, 4), (2, 3))])
def test_a_linear_operator_with_one_row_has_no_axis_of_results(
    shape: tuple[int, ...], made: tuple[int, ...] | None
) -> None:
    """torch allows a weight of one axis, or of none where nothing runs: no size is inferred."""
    ones = torch.ones(shape)
    weight = aten.Stored("w", shape, "float32", ones.numpy, ones)
    facts = aten.Facts({"x": (2, 4)}, {"x": "float32"})
    given = {"input": facts.tensor("x"), "weight": weight}
    assert infer(aten.Call("f", "linear", given, ("y",), facts)).shape == made


class Quantizable(nn.Module):
    """Floats still: what stands for operations that quantisation replaces."""

    def __init__(self) -> None:
        super().__init__()
        self.quant, self.dequant = (
            torch.ao.quantization.QuantStub(),
            torch.ao.quantization.DeQuantStub(),
        )
        self.add = torch.ao.nn.quantized.FloatFunctional()
        self.conv, self.bn = nn.Conv2d(3, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.quant(x)
        return self.dequant(self.add.add_relu(self.bn(self.conv(x)), x))  # type: ignore[no-any-return]


@pytest.mark.parametrize("form", ["module", "graph", "onnx", "torchscript", "pt2"])
def test_what_can_be_quantized_folds(form: Any, tmp_path: Path) -> None:
    torch.save(trained(Quantizable()).eval(), tmp_path / "m.pt")
    opening = Opening(allow=(f"{__name__}.Quantizable",))
    if form in ("module", "graph"):
        result: Any = bnfold.fold(tmp_path / "m.pt", "1x3x9x7", form=form, opening=opening)
    else:
        result = bnfold.export(tmp_path / "m.pt", "1x3x9x7", to=[form], opening=opening)[form]
    assert result.verification.passed
    assert result.plan.batchnorms.folded == 1
