"""The zoo on CUDA: folded models pass with TF32 off, and TF32 is what it costs, no more."""

from __future__ import annotations

import pytest

import bnfold
from bnfold.protocol import DEFAULT_K, Protocol
from bnfold.runtimes.ort import available_providers
from tests.zoo.architecture import Architecture
from tests.zoo.test_zoo import ZOO

WHY_NOT = available_providers()["cuda"]

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(WHY_NOT is not None, reason=f"{WHY_NOT}"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


@pytest.mark.parametrize("architecture", ZOO, ids=lambda a: a.name)
def test_architecture(architecture: Architecture) -> None:
    protocol = Protocol(providers=("cuda",))
    made = bnfold.export(architecture.make(), architecture.sample(), protocol=protocol)["onnx"]
    assert made.verification.passed, made.verification.summary
    assert {row.place.provider for row in made.verification.rows} >= {"cuda", "cuda unoptimised"}
    assert any("TF32" in note for note in made.verification.notes)


@pytest.mark.parametrize("architecture", ZOO[:4], ids=lambda a: a.name)
def test_tf32_is_seen(architecture: Architecture) -> None:
    """Judged by the floor of CUDA with TF32 off, TF32 fails: it rounds each factor to 11 bits."""
    from bnfold.formats.opening import open_model
    from bnfold.verbs.inputs import known_inputs
    from bnfold.verbs.verifying import judge_models

    made = bnfold.export(architecture.make(), architecture.sample(), to=["onnx"])["onnx"]
    model = open_model(made.model)
    exact = Protocol(providers=("cuda",), levels=("optimised",))
    inputs = known_inputs(model, None, exact)
    found = judge_models(model, model, inputs, exact)
    assert found.passed
    (note,) = [note for note in found.notes if "TF32" in note]
    assert float(note.split("up to ")[1].split()[0]) > DEFAULT_K
