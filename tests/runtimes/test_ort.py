"""ONNX Runtime sessions: what they take, where they run, and what they say when they cannot."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import parser

from bnfold.errors import EnvironmentLacksError, ModelError, UsageError
from bnfold.protocol import LEVELS, Level
from bnfold.runtimes.ort import OrtRunner, available_providers

TEXT = """
<ir_version: 8, opset_import: ["": 17]>
g (float[N, 3] x, int64[2] i, bool flag) => (float[N, 3] y, int64[2] j) {
    y = Relu(x)
    j = Identity(i)
    unused = Not(flag)
}
"""


def serialised(text: str = TEXT) -> bytes:
    content: bytes = parser.parse_model(text).SerializeToString()
    return content


def sample(**changes: Any) -> dict[str, Any]:
    plain = {"x": np.ones((2, 3), np.float32), "i": np.arange(2), "flag": np.array(True)}
    return {**plain, **changes}


@pytest.mark.parametrize(
    ("level", "name"), [("unoptimised", "cpu unoptimised"), ("optimised", "cpu")]
)
def test_runs_and_names_itself(level: Level, name: str) -> None:
    runner = OrtRunner(serialised(), level=level)
    assert runner.name == name
    outputs = runner(sample())
    assert list(outputs) == ["y", "j"]
    assert outputs["y"].dtype == np.float32
    assert outputs["j"].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"x": np.ones((2, 4), np.float32)}, "'x' is 2x4:float32, wanted x=Nx3:float32"),
        ({"x": np.ones(3, np.float32)}, "'x' is 3:float32, wanted x=Nx3:float32"),
        ({"x": np.ones((2, 3))}, "'x' is 2x3:float64, wanted x=Nx3:float32"),
        ({"i": np.ones(2, np.float32)}, "'i' is 2:float32, wanted i=2:int64"),
        ({"z": np.ones(2)}, "the model has no input 'z'"),
    ],
    ids=["size", "rank", "type", "kind", "unknown"],
)
def test_wrong_inputs_are_named(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        OrtRunner(serialised(), level="unoptimised")(sample(**changes))
    assert caught.value.hint


def test_missing_input_is_named() -> None:
    given = sample()
    del given["i"]
    with pytest.raises(UsageError, match="the input 'i' is missing: given x, flag") as caught:
        OrtRunner(serialised(), level="unoptimised")(given)
    assert caught.value.hint == "give i=2:int64"


def test_model_that_does_not_load() -> None:
    broken = serialised().replace(b"Relu", b"Rolu")
    with pytest.raises(ModelError, match=r"ONNX Runtime \(cpu\) does not load the model: .*Rolu"):
        OrtRunner(broken, level="unoptimised")


def test_model_that_fails_while_running() -> None:
    text = """<ir_version: 8, opset_import: ["": 17]> g (float[N] x, float[M] z) => (float[K] y)
              { y = Add(x, z) }"""
    runner = OrtRunner(serialised(text), level="unoptimised")
    given = {"x": np.ones(2, np.float32), "z": np.ones(3, np.float32)}
    with pytest.raises(ModelError, match=r"ONNX Runtime \(cpu unoptimised\) failed"):
        runner(given)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ml_dtypes.bfloat16], ids=str)
def test_other_floating_types(dtype: Any) -> None:
    kind = {"float64": "double"}.get(np.dtype(dtype).name, np.dtype(dtype).name)
    text = f"""<ir_version: 8, opset_import: ["": 17]> g ({kind}[N] x) => ({kind}[N] y)
               {{ y = Identity(x) }}"""
    given = np.array([1.5, -2, 3], dtype)
    found = OrtRunner(serialised(text), level="unoptimised")({"x": given})["y"]
    assert found.dtype == given.dtype
    assert np.array_equal(found, given)


def test_external_data_by_path(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["": 17]> g (float[N, 3] x) => (float[N, 3] y)
              { y = Mul(x, w) }"""
    proto = parser.parse_model(text)
    weight = onnx.numpy_helper.from_array(np.array([1, 2, 3], np.float32), "w")
    proto.graph.initializer.append(weight)
    path = tmp_path / "m.onnx"
    how: dict[str, Any] = {"save_as_external_data": True, "location": "m.bin", "size_threshold": 0}
    onnx.save(proto, path, **how)
    assert (tmp_path / "m.bin").stat().st_size == 12
    found = OrtRunner(path, level="optimised")({"x": np.ones((1, 3), np.float32)})["y"]
    assert found.tolist() == [[1, 2, 3]]


def test_cpu_is_always_available() -> None:
    assert available_providers()["cpu"] is None


def test_unknown_provider() -> None:
    with pytest.raises(UsageError, match="'tpu' is no execution provider") as caught:
        OrtRunner(serialised(), "tpu", "optimised")
    assert str(caught.value.hint).startswith("this build has cpu")


def test_provider_that_was_not_built_in(monkeypatch: pytest.MonkeyPatch) -> None:
    only = ["CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: only)
    with pytest.raises(EnvironmentLacksError, match="no CUDAExecutionProvider") as caught:
        OrtRunner(serialised(), "cuda", "optimised")
    assert "pip install onnxruntime-gpu" in str(caught.value.hint)


def test_a_level_is_what_the_session_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    real = onnxruntime.InferenceSession
    told: list[Any] = []

    def session(model: Any, settings: Any, providers: Any) -> Any:
        told.append(settings.graph_optimization_level)
        return real(model, settings, providers=providers)

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    OrtRunner(serialised(), "cpu", "optimised")
    OrtRunner(serialised(), "cpu", "unoptimised")
    levels = onnxruntime.GraphOptimizationLevel
    assert told == [levels.ORT_ENABLE_ALL, levels.ORT_DISABLE_ALL]


def test_silent_fall_back_to_the_cpu_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime gives a CPU session, and no error, where CUDA does not load."""
    real = onnxruntime.InferenceSession

    def cpu_session(model: Any, settings: Any, providers: Any) -> Any:
        return real(model, settings, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(onnxruntime, "InferenceSession", cpu_session)
    built = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: built)
    with pytest.raises(EnvironmentLacksError, match="CUDAExecutionProvider does not load: "):
        OrtRunner(serialised(), "cuda", "optimised")


def test_nothing_is_written_to_stdout(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ModelError):
        OrtRunner(serialised().replace(b"Relu", b"Rolu"), level="unoptimised")
    available_providers()
    assert capfd.readouterr().out == ""


@pytest.mark.gpu
@pytest.mark.skipif(available_providers()["cuda"] is not None, reason="CUDA does not load here")
@pytest.mark.parametrize("level", LEVELS)
def test_cuda_without_tf32_is_as_exact_as_float32(level: Level) -> None:
    rng = np.random.default_rng(0)
    x, w = (rng.normal(size=(256, 256)).astype(np.float32) for _ in range(2))
    text = """<ir_version: 8, opset_import: ["": 17]> g (float[N, K] x, float[K, M] w)
              => (float[N, M] y) { y = MatMul(x, w) }"""
    exact = x.astype(np.float64) @ w.astype(np.float64)
    errors = {
        name: np.abs(OrtRunner(serialised(text), name, level)({"x": x, "w": w})["y"] - exact).max()
        for name in ("cuda", "cuda tf32")
    }
    # 256 products of numbers up to 4, each off by half of 2**-23: 256 * 16 * 6e-8 at most
    assert errors["cuda"] < 256 * 16 * 2.0**-24
    assert errors["cuda tf32"] > 10 * errors["cuda"]


def test_a_type_that_no_kernel_takes_is_lacking_here() -> None:
    text = """<ir_version: 8, opset_import: ["": 17]>
        g (double[1, 1, 4, 4] x, double[1, 1, 3, 3] w) => (double y) { y = Conv(x, w) }"""
    with pytest.raises(EnvironmentLacksError, match="lacks an operator in the type of") as caught:
        OrtRunner(serialised(text))
    assert "--no-verify" in (caught.value.hint or "")


def test_what_it_says_comes_without_its_source() -> None:
    proto = parser.parse_model(TEXT)
    proto.ir_version = 99
    with pytest.raises(ModelError, match="does not load the model: Unsupported model IR version"):
        OrtRunner(proto.SerializeToString())


def test_unoptimised_is_without_any_optimisation(monkeypatch: pytest.MonkeyPatch) -> None:
    levels: list[Any] = []
    real = onnxruntime.InferenceSession

    def session(model: Any, settings: Any, providers: Any) -> Any:
        levels.append(settings.graph_optimization_level)
        return real(model, settings, providers=providers)

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    for level in LEVELS:
        OrtRunner(serialised(), level=level)
    known = onnxruntime.GraphOptimizationLevel
    assert levels == [known.ORT_DISABLE_ALL, known.ORT_ENABLE_ALL]


def test_it_reports_to_nobody(tmp_path: Path) -> None:
    """Left to itself it writes a session of its telemetry into the temporary folder."""
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    environment.pop("ORT_DISABLE_TELEMETRY", None)
    code = "from bnfold.runtimes.ort import TINY, OrtRunner; OrtRunner(TINY)"
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    assert list(tmp_path.iterdir()) == []
