"""Traces of the networks that torch's other forms go through fold as far as these do."""

from __future__ import annotations

import pytest
import torch

from bnfold.algebra.plan import Outcome
from bnfold.formats.torchscript.model import TorchScriptModel
from bnfold.runtimes.torch_eager import to_tensor
from tests.formats.examples import EXAMPLES, Example
from tests.formats.networks import noise
from tests.formats.test_torchscript import fold

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

RECORDED = "value also read as a Python number"
"""What a trace records of it is another network: the number is a constant."""


@pytest.mark.parametrize(
    "example", [e for e in EXAMPLES if e.name != RECORDED], ids=lambda example: example.name
)
def test_each_trace_folds_as_far_as_algebra_allows(example: Example) -> None:
    x = noise(*example.shape, dtype=example.dtype)
    script = torch.jit.trace(example.make(), to_tensor(x), check_trace=False)
    model = TorchScriptModel.from_module(script)
    folded = fold(model, {model.inputs[0].name: x})
    done = [site.name for site in folded.plan.sites if site.outcome is Outcome.FOLDED]
    assert len(done) == len(example.module if example.graph is None else example.graph)
