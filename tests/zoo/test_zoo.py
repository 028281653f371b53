"""Real architectures, whole, in every form: what folds, and that nothing else changes.

Each is verified by bnfold's own gate against float64. The expected counts stand with the
architectures, in `vision.py` and `sequence.py`. What was found is printed as a table when the
tests end.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import bnfold
from bnfold.run import Outputs, Runner, Sample
from tests.zoo.architecture import FORMS, Architecture
from tests.zoo.sequence import SEQUENCE
from tests.zoo.vision import VISION

ZOO = [*VISION, *SEQUENCE]

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

every = pytest.mark.parametrize("architecture", ZOO, ids=lambda a: a.name)


@every
@pytest.mark.parametrize("form", FORMS)
def test_architecture(
    architecture: Architecture, form: Any, record_property: pytest.RecordPropertyFixture
) -> None:
    net, x = architecture.make(), architecture.sample()
    result: Any
    if form in ("module", "graph"):
        result = bnfold.fold(net, x, form=form)
    else:
        result = bnfold.export(net, x, to=[form])[form]
    plan, verification = result.plan, result.verification
    counted = plan.batchnorms if architecture.affines is None else plan.affines
    record_property("zoo", [architecture.name, form, counted.found, counted.kept])
    assert verification.passed, verification.summary
    assert verification.policy == "floor"
    assert plan.batchnorms.found == architecture.batchnorms
    assert plan.batchnorms.kept == architecture.kept.get(form, 0), str(plan)
    if architecture.affines is not None:
        assert plan.affines.found > 0
        assert plan.affines.kept == architecture.affines.get(form, 0), str(plan)


@every
def test_the_numbers_hide_no_mistake(architecture: Architecture) -> None:
    """Both signs of gamma, no statistics or shift at its default; and it is the same every time."""
    net, again = architecture.make(), architecture.make()
    norms = [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert len(norms) == architecture.batchnorms
    for norm in norms:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        assert norm.weight.min() < 0 < norm.weight.max()
        assert (norm.running_mean != 0).all()
        assert (norm.running_var - 1).abs().min() > 1e-6
        assert (norm.bias != 0).all()
    state = again.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in net.state_dict().items())


def rms_error(run: Runner, truth: Runner, samples: list[Sample]) -> float:
    """Over all outputs and samples, each output in units of its own size."""

    def errors(found: Outputs, exact: Outputs) -> list[float]:
        return [
            float(np.mean((found[name].astype(np.float64) - values) ** 2) / np.mean(values**2))
            for name, values in exact.items()
        ]

    return float(np.sqrt(np.mean([errors(run(sample), truth(sample)) for sample in samples])))


def test_a_folded_network_is_as_exact_as_its_original() -> None:
    """The median over the zoo of folded error / unfolded error is about 1.
    """
    ratios = []
    for architecture in ZOO:
        result = bnfold.fold(architecture.make(), architecture.sample(), form="graph", verify=False)
        if not result.plan.affines.folded:
            continue
        samples = [{"x": architecture.sample(seed).numpy()} for seed in (1, 2)]
        truth = result.original.truth()
        before, after = (m.runners(["cpu"])[0] for m in (result.original, result.folded))
        ratios.append(rms_error(after, truth, samples) / rms_error(before, truth, samples))
    print([round(r,2) for r in ratios], np.median(ratios))
    assert 0.8 < float(np.median(ratios)) < 1.25
