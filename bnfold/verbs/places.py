"""Where models can run here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from bnfold.formats.model import Format
from bnfold.protocol import Protocol


def placed(protocol: Protocol, formats: Sequence[Format]) -> Protocol:
    """The protocol with its providers named, be they asked for or what loads."""
    if protocol.providers is not None:
        return protocol
    return replace(protocol, providers=tuple(loadable(formats)))


def loadable(formats: Sequence[Format]) -> Iterator[str]:
    """The providers that load here, of those that models of any of the formats could run on."""
    yield "cpu"
    if Format.ONNX in formats:
        from bnfold.runtimes.ort import available_providers

        if available_providers().get("cuda", "not listed") is None:
            yield "cuda"
