"""Running torch: names of outputs, and a truth that is float64 throughout."""

from __future__ import annotations

import copy
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bnfold.errors import ModelError, UsageError
from bnfold.runtimes import NotComputableError
from bnfold.runtimes.torch_eager import TorchRunner, named_outputs, to_array, to_tensor
from tests.formats.networks import Function, noise

SEQUENCE = noise(3, 7, 16)
IMAGE = noise(2, 4, 9, 7)
linear = nn.Linear(16, 8)
padded = nn.Linear(20, 8)


def with_zeros(m: Any, x: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    out = torch.zeros(x.shape[0], 7, 20, dtype=dtype)
    out[:, :, 2:18] = x
    out[..., 0] += 1 / 3
    return m.l(out)  # type: ignore[no-any-return]


def in_autocast(m: Any, x: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return m.l(x)  # type: ignore[no-any-return]


class Constants(nn.Module):
    """A buffer, and a tensor that .double() does not know of."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("known", torch.linspace(0.1, 1, 7))
        self.unknown = torch.linspace(0.3, 2, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.unknown.mul_(1.0)
        return x * self.known + self.unknown  # type: ignore[operator]


def doubled_constants() -> nn.Module:
    module = Constants().double()
    module.unknown = Constants().unknown.double()
    return module


CASES: list[tuple[str, nn.Module, Callable[[], nn.Module] | None, Any]] = [
    ("transformer layer", nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), None, SEQUENCE),
    (
        "transformer",
        nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), 2),
        None,
        SEQUENCE,
    ),
    (
        "multi-head attention",
        Function(
            lambda m, x: m.a(x, x, x, need_weights=False)[0],
            a=nn.MultiheadAttention(16, 4, batch_first=True),
        ),
        None,
        SEQUENCE,
    ),
    ("attention", Function(lambda m, x: F.scaled_dot_product_attention(x, x, x)), None, SEQUENCE),
    ("lstm", nn.LSTM(16, 8, 2, batch_first=True, bidirectional=True), None, SEQUENCE),
    ("gru", nn.GRU(16, 8, 2, batch_first=True), None, SEQUENCE),
    ("group norm", nn.GroupNorm(2, 4), None, IMAGE),
    ("layer norm", nn.LayerNorm(7), None, IMAGE),
    ("bilinear", nn.Upsample(scale_factor=1.7, mode="bilinear"), None, IMAGE),
    ("bicubic", nn.Upsample(scale_factor=1.7, mode="bicubic"), None, IMAGE),
    ("einsum", Function(lambda m, x: torch.einsum("nchw,ncij->nhwij", x, x)), None, IMAGE),
    ("fft", Function(lambda m, x: torch.fft.rfft2(x).abs()), None, IMAGE),
    (
        "casts",
        Function(lambda m, x: m.l(x.float()).half().float().sigmoid(), l=linear),
        lambda: Function(lambda m, x: m.l(x).sigmoid(), l=linear),
        SEQUENCE,
    ),
    (
        "zeros, assigned in place",
        Function(with_zeros, l=padded),
        lambda: Function(lambda m, x: with_zeros(m, x, torch.float64), l=padded),
        SEQUENCE,
    ),
    (
        "autocast",
        Function(in_autocast, l=linear),
        lambda: Function(lambda m, x: m.l(x), l=linear),
        SEQUENCE,
    ),
    ("tensors that are no buffers", Constants(), doubled_constants, IMAGE),
    (
        "integers times a number",
        Function(lambda m, x: x + torch.arange(7) * 0.1 + torch.linspace(0, 1, 7)),
        lambda: Function(
            lambda m, x: (
                x
                + torch.arange(7).double() * 0.1
                + torch.linspace(0, 1, 7).double() * 0
                + torch.linspace(0, 1, 7, dtype=torch.float64)
            )
        ),
        IMAGE,
    ),
    (
        "softmax in float32",
        Function(lambda m, x: torch.softmax(x, -1, dtype=torch.float32).type_as(x)),
        lambda: Function(lambda m, x: torch.softmax(x, -1)),
        IMAGE,
    ),
    (
        "a float32 result to write to",
        Function(lambda m, x: torch.empty_like(x, dtype=torch.float32).copy_(x) / 3),
        lambda: Function(lambda m, x: x / 3),
        IMAGE,
    ),
]


@pytest.mark.parametrize(("name", "module", "truth", "x"), CASES, ids=[case[0] for case in CASES])
def test_the_truth_is_float64_throughout(
    name: str, module: nn.Module, truth: Callable[[], nn.Module] | None, x: Any
) -> None:
    module = copy.deepcopy(module).eval()
    by_hand = copy.deepcopy(truth() if truth else module).double().eval()
    wide = TorchRunner(copy.deepcopy(module).double(), {"x": None}, wide=True)({"x": x})
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad():
            expected = named_outputs(by_hand(torch.from_numpy(x).double()))
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    assert list(wide) == list(expected)
    for key, value in expected.items():
        assert wide[key].dtype == value.dtype == np.float64
        np.testing.assert_allclose(wide[key], value, rtol=1e-12, atol=1e-12)


def test_torchs_settings_are_left_as_they_were() -> None:
    def settings() -> tuple[Any, ...]:
        return (
            torch.get_default_dtype(),
            torch.backends.mha.get_fastpath_enabled(),
            torch.backends.cudnn.allow_tf32,
            torch.backends.cuda.matmul.allow_tf32,
            torch.is_grad_enabled(),
        )

    def broken(x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no")

    before = settings()
    for wide in (False, True):
        with pytest.raises(ModelError, match="RuntimeError: no"):
            TorchRunner(broken, {"x": "x"}, wide=wide)({"x": IMAGE})
        TorchRunner(lambda x: x * 2, {"x": "x"}, wide=wide)({"x": IMAGE})
    assert settings() == before


def test_inputs_go_where_they_belong_in_any_order() -> None:
    runner = TorchRunner(lambda a, b, *, c: a - 2 * b + 3 * c, {"a": None, "b": None, "c": "c"})
    numbers = {name: np.float32(i) for i, name in enumerate("abc", 1)}
    for order in ("abc", "cba", "bca"):
        sample = {name: np.asarray(numbers[name]) for name in order}
        assert runner(sample)["output"] == 1 - 4 + 9


def test_the_input_is_not_written_to() -> None:
    x = IMAGE.copy()
    TorchRunner(lambda x: x.zero_(), {"x": "x"})({"x": x})
    np.testing.assert_array_equal(x, IMAGE)


Pair = namedtuple("Pair", ["left", "right"])


@dataclass
class Result:
    loss: Any
    logits: torch.Tensor
    note: str = "hello"


class TestOutputs:
    one, two = torch.ones(1), torch.ones(2)

    @pytest.mark.parametrize(
        ("result", "names"),
        [
            (one, ["output"]),
            ((one, two), ["output.0", "output.1"]),
            ([one, (two, None)], ["output.0", "output.1.output.0"]),
            ({"a": one, "b": {"c": two}}, ["a", "b.c"]),
            (Pair(one, two), ["left", "right"]),
            (Result(None, two), ["logits"]),
            ({"a.b": one, "a": {"b": two}}, ["a.b", "a.b#2"]),
            ((one, 3, True, 0.5, "text"), [f"output.{i}" for i in range(4)]),
        ],
        ids=["one", "tuple", "nested", "dict", "named", "dataclass", "same name", "numbers"],
    )
    def test_names(self, result: Any, names: list[str]) -> None:
        assert list(named_outputs(result)) == names

    def test_what_cannot_be_compared_is_refused(self) -> None:
        with pytest.raises(ModelError, match=r"output output\.1 is a object"):
            named_outputs((self.one, object()))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", "int64", "bool"])
def test_arrays_and_tensors_of_every_type(dtype: str) -> None:
    tensor = torch.tensor([[0.0, 1.0], [1.0, 3.0]]).to(getattr(torch, dtype))
    array = to_array(tensor.T)
    assert array.dtype.name == dtype
    assert torch.equal(to_tensor(array), tensor.T)


def test_conjugates_are_resolved() -> None:
    tensor = torch.tensor([1 + 2j]).conj()
    assert to_array(tensor)[0] == 1 - 2j


class Reusing(nn.Module):
    """Gives the same memory at every call."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("made", torch.zeros(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.made.copy_(x)  # type: ignore[operator, no-any-return]


def test_outputs_outlive_the_next_run() -> None:
    runner = TorchRunner(Reusing(), {"x": None})
    first = runner({"x": np.ones(3, np.float32)})["output"]
    runner({"x": np.zeros(3, np.float32)})
    assert first.tolist() == [1, 1, 1]


@pytest.mark.parametrize("wide", [False, True])
def test_what_a_model_raises_is_told_of_the_model(wide: bool) -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        raise TypeError("no such thing\nat all")

    how = "in float64" if wide else "as it is"
    with pytest.raises(ModelError, match=f"does not run {how}: TypeError: no such thing$"):
        TorchRunner(model, {"x": None}, wide=wide)({"x": np.zeros(2, np.float32)})


@pytest.mark.parametrize("error", [MemoryError, NotComputableError, UsageError])
def test_what_says_for_itself_what_it_means_is_passed_on(error: type[Exception]) -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        raise error("so")

    with pytest.raises(error, match="so"):
        TorchRunner(model, {"x": None})({"x": np.zeros(2, np.float32)})
