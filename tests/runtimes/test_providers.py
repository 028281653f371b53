"""Execution providers: what they are called, what is missing, and where nodes really run."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import onnxruntime
import pytest

import bnfold as package
from bnfold.errors import EnvironmentLacksError, UsageError
from bnfold.protocol import Protocol
from bnfold.runtimes import ort, providers
from bnfold.runtimes.ort import TINY, OrtRunner
from bnfold.runtimes.providers import CPU, Provider, assigned, elsewhere, find, why_not
from tests.conftest import CHECKPOINTS, Ended

ONNX = CHECKPOINTS / "placement.onnx"
CUDA = "CUDAExecutionProvider"
Run = Callable[..., Ended]


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch) -> None:
    """A build of ONNX Runtime with CUDA and TensorRT, whichever is installed."""
    built = ["TensorrtExecutionProvider", CUDA, CPU]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: built)


def saying(monkeypatch: pytest.MonkeyPatch, errors: dict[str, str]) -> None:
    """Loading a library whose name holds a key fails with its value; any other loads."""

    def load(name: str, mode: int = 0) -> None:
        for part, error in errors.items():
            if part in name:
                raise OSError(error)

    monkeypatch.setattr(ctypes, "CDLL", load)
    monkeypatch.setattr(providers.Path, "is_file", lambda self: True)


@pytest.mark.usefixtures("build")
def test_names_and_their_options() -> None:
    assert find("cpu") == Provider(CPU, {})
    assert find("cuda") == Provider(CUDA, {"use_tf32": "0"})
    assert find("cuda tf32") == Provider(CUDA, {"use_tf32": "1"})
    assert find("tensorrt") == Provider("TensorrtExecutionProvider", {})
    assert providers.built_in() == ["cpu", "tensorrt", "cuda"] or providers.built_in()[0] == "cpu"


@pytest.mark.parametrize("name", ["gpu", "CPU", "cpu tf32", "", "tf32"])
def test_what_is_no_provider(name: str) -> None:
    with pytest.raises(UsageError, match="is no execution provider"):
        find(name)


@pytest.mark.usefixtures("build")
@pytest.mark.parametrize(
    ("name", "package_"),
    [("openvino", "onnxruntime-openvino"), ("dml", "onnxruntime-directml"), ("coreml", None)],
)
def test_a_provider_of_another_build_names_its_package(name: str, package_: str | None) -> None:
    with pytest.raises(EnvironmentLacksError, match="this build of onnxruntime has no") as caught:
        find(name)
    assert (package_ is None) == (caught.value.hint is None)
    assert package_ is None or package_ in str(caught.value.hint)


@pytest.mark.parametrize(
    ("name", "library", "origin"),
    [
        (CUDA, "libcublasLt.so.13", "nvidia-cublas"),
        (CUDA, "libcudnn.so.9", "nvidia-cudnn-cu13"),
        (CUDA, "libcurand.so.10", "nvidia-curand"),
        ("TensorrtExecutionProvider", "libnvinfer.so.10", "tensorrt"),
    ],
)
def test_the_missing_library_is_named(
    monkeypatch: pytest.MonkeyPatch, name: str, library: str, origin: str
) -> None:
    gone = f"{library}: cannot open shared object file: No such file or directory"
    saying(monkeypatch, {"providers_cuda": gone, "providers_tensorrt": gone})
    error = why_not(name)
    assert str(error) == f"{name} does not load: {library} (of {origin}) is missing"
    assert "onnxruntime-gpu[cuda,cudnn]" in str(error.hint)
    assert ("tensorrt" in str(error.hint)) == name.startswith("Tensorrt")


def test_another_fault_of_a_library_is_told_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    saying(monkeypatch, {"providers_cuda": "/a/b.so: undefined symbol: f"})
    assert str(why_not(CUDA)) == f"{CUDA} does not load: /a/b.so: undefined symbol: f"


def test_without_a_driver_or_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    saying(monkeypatch, {"libcuda.so.1": "gone"})
    assert "NVIDIA's driver (libcuda.so.1) is missing" in str(why_not(CUDA))
    saying(monkeypatch, {})
    assert f"fell back to {CPU}" in str(why_not(CUDA))
    assert "nvidia-smi" in str(why_not(CUDA).hint)


def test_nodes_are_counted_where_they_run() -> None:
    session = ort._session(TINY, "cpu", "optimised", {})
    assert assigned(session) == {CPU: ["Relu"]}
    assert elsewhere("cpu", CPU, assigned(session)) is None
    nodes = {CUDA: ["Conv", "Relu"], CPU: ["Shape", "Gather", "Shape"]}
    assert elsewhere("cuda", CUDA, nodes) == (
        "cuda: 3 of 5 nodes run elsewhere (Shape x2, Gather x1)"
    )
    assert elsewhere("cuda", CUDA, {}) is None


def test_a_session_with_no_node_where_it_was_asked_for_does_not_count() -> None:
    with pytest.raises(EnvironmentLacksError, match=f"no node of the model runs on {CUDA}"):
        elsewhere("cuda", CUDA, {CPU: ["Shape"]})


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, str]]]:
    """CUDA that is the CPU, and the options that it was given."""
    given: list[tuple[str, dict[str, str]]] = []
    real = ort._session

    def session(source: Any, provider: str, level: Any, options: Any, threads: Any = None) -> Any:
        given.append((provider, dict(options)))
        return real(source, "cpu", level, {}, threads)

    monkeypatch.setattr(ort, "_session", session)
    return given


def test_tf32_is_told_and_not_judged(pretended: list[tuple[str, dict[str, str]]]) -> None:
    verdict = package.verify(
        ONNX, ONNX, protocol=Protocol(providers=("cuda",), options={"cuda": {"device_id": "1"}})
    )
    assert verdict.passed
    assert {row.place.provider for row in verdict.rows} == {"cuda", "cuda unoptimised"}
    assert any(
        note.startswith("with TF32 on, the error on CUDA is up to ") for note in verdict.notes
    )
    assert {provider for provider, _ in pretended} == {"cuda", "cuda tf32"}
    assert all(options == {"device_id": "1"} for _, options in pretended)


def test_where_nodes_ran_is_in_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    class Fallen(OrtRunner):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            self.notes = ("cuda: 3 of 5 nodes run elsewhere (Shape x3)",)

    monkeypatch.setattr(ort, "OrtRunner", Fallen)
    verdict = package.verify(ONNX, ONNX)
    assert "cuda: 3 of 5 nodes run elsewhere (Shape x3)" in verdict.notes


@pytest.mark.parametrize("text", ["cuda", "cuda:device_id", ":a=1", "cuda:=1", "cuda:a="])
def test_an_option_that_is_none(bnfold: Run, text: str) -> None:
    ended = bnfold("verify", ONNX, ONNX, "--provider-option", text)
    assert ended.code == 2
    assert "cuda:device_id=1" in ended.err


def test_asked_for_and_not_there(bnfold: Run) -> None:
    assert bnfold("verify", ONNX, ONNX, "--providers", "gpu").code == 2
    assert bnfold("verify", ONNX, ONNX, "--providers", "coreml").code == 4
    ended = bnfold("verify", ONNX, ONNX, "--providers", "cpu", "--provider-option", "cuda:a=1")
    assert (ended.code, "nothing runs" in ended.err) == (2, True)


def test_doctor_says_what_is_missing_and_what_mends_it(
    bnfold: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = EnvironmentLacksError("libcudnn.so.9 is missing", "pip install it")
    monkeypatch.setattr(ort, "lacking", lambda name: error if name == "cuda" else None)
    ended = bnfold("doctor", "--format", "json")
    assert ended.code == 0
    found = {entry["what"]: entry for entry in ended.json["findings"]}
    assert found["provider cuda"]["state"] == "libcudnn.so.9 is missing"
    assert found["provider cuda"]["mend"] == "pip install it"
    assert found["provider cpu"]["fine"]
