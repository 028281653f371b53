"""A model with its preprocessing, and the inputs that it then takes."""

from __future__ import annotations

from dataclasses import replace

from bnfold.errors import UsageError
from bnfold.formats.model import Model
from bnfold.inputs import Inputs
from bnfold.preprocessing import Preprocessing
from bnfold.protocol import Protocol


def with_preprocessing(
    model: Model, inputs: Inputs | None, preprocessing: Preprocessing
) -> tuple[Model, Inputs]:
    """`inputs` are the network's. Raises UsageError where they do not suit the preprocessing."""
    if inputs is None:
        raise UsageError(
            "the sizes of the input have to be known to preprocess it",
            "give them as the network takes them, such as --input 1x3x224x224",
        )
    contract = preprocessing.of(inputs.specs)
    given = contract.inputs(inputs)
    return model.preprocessed(contract, given), given


def measured_by(protocol: Protocol, preprocessing: Preprocessing | None) -> Protocol:
    """What tells the inputs of the network: with preprocessing, nothing recorded is one."""
    return protocol if preprocessing is None else replace(protocol, recorded=())
