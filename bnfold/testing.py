"""For test suites: equivalence as an assertion, and a pytest plugin with a marker for GPU tests.

    from bnfold.testing import assert_equivalent

    def test_what_we_deploy_is_what_we_trained():
        assert_equivalent("model.pt", "deploy/model.onnx", "Nx3x224x224")

pytest loads the plugin by itself where bnfold is installed; it imports nothing until it is needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bnfold.protocol import DEFAULT, Protocol

if TYPE_CHECKING:
    import pytest

    from bnfold.formats.opening import Opening
    from bnfold.verification import Row, Verification

GPU_MARKER = "bnfold_gpu"


def assert_equivalent(
    reference: Any,
    candidate: Any,
    inputs: Any = None,
    *,
    protocol: Protocol = DEFAULT,
    opening: Opening | None = None,
) -> Verification:
    """Fail unless `candidate` is the same function as `reference`; arguments as `bnfold.verify`.

    Raises AssertionError with the table of the verification and the first place that failed, and
    BnfoldError if either model cannot be opened or run at all.
    """
    __tracebackhide__ = True
    from bnfold.verbs.verifying import verify

    verification = verify(reference, candidate, inputs, protocol=protocol, opening=opening)
    if not verification.passed:
        first = next((_told(row) for row in verification.rows if not row.passed), "nothing ran")
        raise AssertionError(f"not equivalent:\n{verification}\nfirst bad place: {first}")
    return verification


def _told(row: Row) -> str:
    return f"{row.place.provider}, {row.place.case}, {row.place.output}: {row.why}"


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known."""
    config.addinivalue_line(
        "markers",
        f"{GPU_MARKER}: needs ONNX Runtime's CUDA provider; skipped where it does not load",
    )


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test for the GPU where CUDA does not load, and say why it does not."""
    if item.get_closest_marker(GPU_MARKER) is None:
        return
    import pytest

    from bnfold.runtimes.ort import available_providers

    if why := available_providers()["cuda"]:
        pytest.skip(f"{GPU_MARKER}: {why}")
