"""What a model can be converted to, and how that is asked for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from bnfold.errors import UsageError
from bnfold.formats.model import OF_TORCH, Format, Model
from bnfold.inputs import Inputs
from bnfold.runtimes import Sample, TensorSpec
from bnfold.verbs.precision import Precision

TARGETS: Mapping[str, Format] = {
    "onnx": Format.ONNX,
    "torchscript": Format.TORCHSCRIPT,
    "pt2": Format.EXPORTED_PROGRAM,
}
SUFFIXES = {"onnx": ".onnx", "torchscript": ".torchscript.pt", "pt2": ".pt2"}

BFLOAT16_OPSET = 22
"""The first opset of ONNX whose convolutions take bfloat16."""

OLDEST_OPSET = 7
"""The first opset that ONNX Runtime has the operators of."""

OLDEST_IR = 4
"""The first version of the ONNX file in which weights need not be inputs."""

UNTHINKABLE = 1000
"""No opset and no version comes near; far larger numbers end the libraries that read them."""

LAYOUTS = {2: "NC", 3: "NCL", 4: "NCHW", 5: "NCDHW"}
"""The letters of the axes of an input, by its rank."""

_AXIS = re.compile(r"(?P<input>[^:=]+):(?P<axis>[0-9]+)(?:=(?P<name>[A-Za-z_]\w*))?")


@dataclass(frozen=True, slots=True)
class Conversion:
    """How a model is converted.

    opset          of ONNX; None: 20, in bfloat16 22, or that of a model that is ONNX already
    ir_version     of ONNX; None: what the exporter chooses
    dynamic        axes that stay free: letters of the layout ("N", "H"), or input:axis[=name]
    input_names    of the ONNX model, in order; the model's own by default
    output_names   likewise
    dtype          the type of all weights and inputs; None: as they are
    simplify       by onnxsim, before folding
    keep_going     fold the model unsimplified if onnxsim fails
    external_data  keep the weights of ONNX in a file of their own; past 2 GiB they always are
    meta           what the metadata of ONNX say besides, for who loads it: {"stride": "32"}
    """

    opset: int | None = None
    ir_version: int | None = None
    dynamic: tuple[str, ...] = ()
    input_names: tuple[str, ...] = ()
    output_names: tuple[str, ...] = ()
    dtype: Precision | None = None
    simplify: bool = True
    keep_going: bool = False
    external_data: bool = False
    meta: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for what, least, value in (
            ("opset", OLDEST_OPSET, self.opset),
            ("IR version", OLDEST_IR, self.ir_version),
        ):
            if value is not None and not least <= value <= UNTHINKABLE:
                raise UsageError(f"{value} is no {what}", f"give a number from {least} on")
        for key in self.meta:
            if not key or key.startswith("bnfold."):
                raise UsageError(
                    f"{key!r} is no key for metadata of yours", "bnfold's own begin with bnfold."
                )


AS_IT_IS = Conversion(simplify=False)


def require_target(name: str) -> None:
    if name not in TARGETS:
        raise UsageError(f"{name!r} is no target", f"choose from {', '.join(TARGETS)}")


def converted(
    original: Model, target: str, inputs: Inputs, sample: Sample, how: Conversion
) -> Model:
    """`original` in the format of `target`, nothing folded; itself if it is in that format.

    Raises UsageError if there is no way, ExportError if the framework's exporter fails.
    """
    to = TARGETS[target]
    if original.format is Format.ONNX:
        if to is not Format.ONNX:
            hint = "start from the PyTorch model instead"
            raise UsageError(f"an ONNX model cannot be converted to {to}", hint)
        from bnfold.formats.onnx.model import OnnxModel
        from bnfold.formats.onnx.opsets import at_opset

        assert isinstance(original, OnnxModel)
        return at_opset(original, how.opset)
    if original.format not in OF_TORCH:
        hint = "start from a PyTorch or an ONNX model instead"
        raise UsageError(f"a {original.format} cannot be converted to {to}", hint)
    from bnfold.formats.conversion import convert

    opset = how.opset or (BFLOAT16_OPSET if how.dtype == "bfloat16" else None)
    return convert(original, to, inputs, sample, opset)


def freed(inputs: Inputs, axes: tuple[str, ...]) -> Inputs:
    """The inputs with more of their sizes free, as Conversion.dynamic says."""
    names: dict[str, dict[int, str]] = {spec.name: {} for spec in inputs.specs}
    for text in axes:
        for name, axis, symbol in _axes(inputs, text):
            names[name][axis] = symbol
    return inputs.of(tuple(_freed(spec, names[spec.name]) for spec in inputs.specs))


def require_free(model: Model, inputs: Inputs) -> None:
    """Raise UsageError if a size is to be free that was fixed when the model was captured."""
    if model.format not in (Format.ONNX, Format.EXPORTED_PROGRAM):
        return
    own = {spec.name: spec.shape or () for spec in model.inputs}
    for spec in inputs.specs:
        for axis, (size, wanted) in enumerate(
            zip(own.get(spec.name, ()), spec.shape or (), strict=False)
        ):
            if isinstance(size, int) and not isinstance(wanted, int):
                raise UsageError(
                    f"the size of {spec.name} on axis {axis} is {size} in the {model.format} model",
                    "free it where that is made: export the PyTorch model with --dynamic",
                )


def _axes(inputs: Inputs, text: str) -> list[tuple[str, int, str]]:
    """Input, axis and name of the sizes that `text` names."""
    ranks = {spec.name: len(spec.shape or ()) for spec in inputs.specs}
    if found := _AXIS.fullmatch(text):
        name, axis = found["input"], int(found["axis"])
        if name not in ranks:
            raise UsageError(f"--dynamic {text}: no input {name!r}", _listed(inputs))
        if axis >= ranks[name]:
            raise UsageError(f"--dynamic {text}: {name} has {ranks[name]} axes", _listed(inputs))
        return [(name, axis, found["name"] or f"{name}_{axis}")]
    places = [
        (name, LAYOUTS[rank].index(text), text)
        for name, rank in ranks.items()
        if text in LAYOUTS.get(rank, "")
    ]
    if not places:
        hint = f"{_listed(inputs)}; axes are called NC, NCL, NCHW or NCDHW, or input:axis=name"
        raise UsageError(f"--dynamic {text}: no input has an axis of that name", hint)
    return places


def _listed(inputs: Inputs) -> str:
    return f"the model takes {', '.join(map(str, inputs.specs))}"


def _freed(spec: TensorSpec, names: Mapping[int, str]) -> TensorSpec:
    shape = tuple(names.get(axis, size) for axis, size in enumerate(spec.shape or ()))
    return replace(spec, shape=shape) if names else spec
