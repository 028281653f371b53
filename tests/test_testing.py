"""The assertion for test suites, and the pytest plugin, run by pytest itself."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib.metadata import entry_points

import pytest

from bnfold.errors import ModelError
from bnfold.testing import assert_equivalent
from tests.conftest import CHECKPOINTS, ROOT

pytest_plugins = ["pytester"]

ONNX = CHECKPOINTS / "placement.onnx"
INSTALLED = bool(entry_points(group="pytest11", name="bnfold"))
PLUGIN = (*(() if INSTALLED else ("-p", "bnfold.testing")), "--strict-markers")
"""pytest finds the plugin by itself only if bnfold was installed since it has one."""


def test_what_is_equivalent_passes_with_its_verification() -> None:
    assert assert_equivalent(ONNX, ONNX).passed


def test_what_is_not_fails_with_the_table_and_the_place() -> None:
    with pytest.raises(AssertionError) as caught:
        assert_equivalent(ONNX, CHECKPOINTS / "batch_norm_network.onnx")
    said = str(caught.value)
    assert "verified on" in said
    assert "first bad place: cpu unoptimised, noise, output: the candidate does not run" in said


def test_what_cannot_be_opened_is_no_failed_assertion() -> None:
    with pytest.raises(ModelError, match="does not exist"):
        assert_equivalent(ONNX, "no.onnx")


def test_inside_pytest(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        f"""
        from bnfold.testing import assert_equivalent

        def test_good():
            assert_equivalent({str(ONNX)!r}, {str(ONNX)!r})

        def test_bad():
            assert_equivalent({str(ONNX)!r}, {str(CHECKPOINTS / "batch_norm_network.onnx")!r})
        """
    )
    result = pytester.runpytest_inprocess(*PLUGIN)
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*verified on*output*worst case*", "*first bad place: *"])
    result.stdout.no_fnmatch_line("*bnfold/testing.py:*: AssertionError*")


@pytest.mark.parametrize("why", ["libcudnn.so.9 is missing", None])
def test_the_marker_skips_with_the_reason(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, why: str | None
) -> None:
    from bnfold.runtimes import ort

    monkeypatch.setattr(ort, "available_providers", lambda: {"cpu": None, "cuda": why})
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.bnfold_gpu
        def test_on_the_gpu():
            pass

        def test_anywhere():
            pass
        """
    )
    result = pytester.runpytest_inprocess(*PLUGIN, "-rs")
    result.assert_outcomes(passed=1 if why else 2, skipped=1 if why else 0)
    if why:
        result.stdout.fnmatch_lines([f"SKIPPED*bnfold_gpu: {why}"])


def test_the_plugin_is_declared_and_cheap() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    assert declared["pytest11"] == {"bnfold": "bnfold.testing"}
    code = "import sys, bnfold.testing; print(*sys.modules)"
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    loaded = {name.split(".")[0] for name in ended.stdout.split()}
    assert loaded & {"torch", "onnx", "onnxruntime", "numpy", "pytest", "rich"} == set()
