"""Real architectures, whole, in every form: what folds, and that nothing else changes.

Each is verified by bnfold's own gate against float64. The expected counts stand with the
architectures, in `vision.py` and `sequence.py`. What was found is printed as a table when the
tests end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import nn

import bnfold
from bnfold.runtimes import Runner, Sample
from tests.forms import FORMS, fold_in
from tests.zoo.architecture import Architecture
from tests.zoo.sequence import SEQUENCE
from tests.zoo.table import cell
from tests.zoo.vision import VISION

ZOO = [*VISION, *SEQUENCE]

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """The networks are so small that a second thread only waits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


every = pytest.mark.parametrize("architecture", ZOO, ids=lambda a: a.name)


@every
@pytest.mark.parametrize("form", FORMS)
def test_architecture(
    architecture: Architecture, form: str, record_property: Callable[[str, object], None]
) -> None:
    found = fold_in(form, architecture.make(), architecture.sample())
    plan = found.plan
    record_property("zoo", (architecture.name, form, cell(found)))
    assert found.verification.truth == "float64"
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
        assert (norm.running_var != 1).all()
        assert (norm.bias != 0).all()
    state = again.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in net.state_dict().items())


def rms_error(run: Runner, truth: Runner, sample: Sample) -> float:
    """Over all outputs, each in units of its own size."""
    found = run(sample)
    errors = [
        np.mean((found[name].astype(np.float64) - exact) ** 2) / np.mean(exact**2)
        for name, exact in truth(sample).items()
    ]
    return float(np.sqrt(np.mean(errors)))


def test_a_folded_network_is_as_exact_as_its_original() -> None:
    """The median of folded error / unfolded error is 1, up to chance.

    Folding rounds each weight once more and each activation once less; what dominates both errors
    is the sum inside of a convolution, which stays. The ratios scatter by a fifth (the deviation of
    their logarithms), so the median of 24 does by a twentieth; five times that is granted. Weights
    that are off by four roundings instead of one give 1.6.
    """
    ratios = []
    for architecture in ZOO:
        if not architecture.batchnorms:
            continue
        x = architecture.sample()
        result = bnfold.fold(architecture.make(), x, verify=False)
        before, after = (m.runners()[0] for m in (result.original, result.folded))
        truth, sample = result.original.truth(), {"x": x.numpy()}
        ratios.append(rms_error(after, truth, sample) / rms_error(before, truth, sample))
    assert 0.8 < float(np.median(ratios)) < 1.25, sorted(ratios)
