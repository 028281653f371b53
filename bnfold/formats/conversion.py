"""From one native form to another, with nothing folded or fused on the way.

nn.Module        -> ExportedProgram (torch.export), TorchScript (script, else trace)
ExportedProgram  -> ONNX (torch.onnx, its own rewrites off), TorchScript (trace)
TorchScript      -> ONNX (torch's older exporter: the newer one refuses ScriptModules)

The newer exporter writes ONNX from opset 18 on. For an older one, an ExportedProgram goes through
the older exporter as well, which traces it; nothing in a program depends on values.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import onnx
import onnx_ir as ir
import torch
from onnx_ir.passes.common import RemoveUnusedNodesPass
from torch.export import ExportedProgram

from bnfold.errors import BnfoldError, ExportError, UsageError
from bnfold.formats.model import Format, Model
from bnfold.formats.onnx.finishing import name_modules
from bnfold.formats.onnx.model import OnnxModel
from bnfold.formats.pytorch.exported_program import ExportedProgramModel
from bnfold.formats.pytorch.failure import cause_of
from bnfold.formats.pytorch.identifiers import AS_THEY_ARE, Identifiers
from bnfold.formats.pytorch.nn_module import ModuleModel
from bnfold.formats.pytorch.program_names import with_own_graph
from bnfold.formats.pytorch.quantization import QuantizedError
from bnfold.formats.torchscript.model import TorchScriptModel
from bnfold.inputs import Inputs
from bnfold.naming import unique
from bnfold.process_state import quiet
from bnfold.processes.child import RunLostError
from bnfold.processes.supervision import trying
from bnfold.protocol import Protocol
from bnfold.runtimes import Sample
from bnfold.runtimes.torch_eager import named_outputs, to_tensor
from bnfold.streams import without_stdout

DEFAULT_OPSET = 20

OLDEST_OF_PROGRAMS = 18
"""The first opset of torch's exporter for ExportedPrograms."""

NEWEST_OF_SCRIPTS = 20
"""The last opset that torch's exporter for TorchScript knows."""

_LOGGERS = ("torch", "torch.onnx", "onnxscript", "onnxscript.version_converter")
"""What exporters warn of is their own future."""

_INSTANCE_NORM, _BATCH_STATISTICS = torch.ops.aten.instance_norm.default, 5
"""With running statistics it is a BatchNorm; the exporter would repeat its parameters per image."""


def convert(
    model: Model, to: Format, inputs: Inputs, sample: Sample, opset: int | None = None
) -> Model:
    """`model` as a `to`; `sample` is run through it where the conversion needs an example.

    Raises UsageError if there is no way, ModelError if `model` does not run on `sample`,
    ExportError if the framework's exporter fails.
    """
    if model.format is to:
        return model
    given = sum(array.nbytes for array in sample.values())
    try:
        with quiet(*_LOGGERS), trying(f"conversion to {to}", given):  # a tracer runs the model
            return _convert(model, to, inputs, sample, opset or DEFAULT_OPSET)
    except (UsageError, QuantizedError, RunLostError):
        raise
    except Exception as error:
        _require_running(model, sample)
        if isinstance(error, ExportError):
            raise
        known = error if isinstance(error, BnfoldError) else None
        raise ExportError(
            f"the {model.format} cannot be exported to {to}: {known or cause_of(error)}",
            (known and known.hint) or "the whole error is shown with --debug",
        ) from error


def _require_running(model: Model, sample: Sample) -> None:
    """Raise ModelError if it is the model that fails, and no exporter."""
    model.runners(Protocol(levels=("unoptimised",)))[0](sample)


def _convert(model: Model, to: Format, inputs: Inputs, sample: Sample, opset: int) -> Model:
    match model, to:
        case ModuleModel(), Format.EXPORTED_PROGRAM:
            return model.capture(sample, inputs.dynamic)
        case ModuleModel(), Format.ONNX:
            return _convert(model.capture(sample, inputs.dynamic), to, inputs, sample, opset)
        case ModuleModel(), Format.TORCHSCRIPT:
            return TorchScriptModel.from_module(_scripted(model.native, sample))
        case ExportedProgramModel(), Format.ONNX:
            if opset < OLDEST_OF_PROGRAMS:
                result = _Traceable.of(model, inputs, sample).export(opset)
                result.notes = (f"opset {opset} is written by torch's older exporter",)
                return result
            return _to_onnx(model, inputs, opset)
        case ExportedProgramModel(), Format.TORCHSCRIPT:
            traced = _traced(model.native.module(check_guards=False), sample)
            return TorchScriptModel.from_module(traced)
        case TorchScriptModel(), Format.ONNX:
            return _Traceable.of(model, inputs, sample).export(opset)
    raise UsageError(
        f"there is no way from {model.format} to {to}", "start from the PyTorch model instead"
    )


def _to_onnx(model: ExportedProgramModel, inputs: Inputs, opset: int) -> Model:
    """By torch.onnx's exporter for ExportedPrograms. `optimize=False`: it must fold nothing."""
    model.require_float()
    names = [spec.name for spec in inputs.specs]
    given = with_own_graph(model.functional)
    for node in given.graph.nodes:
        if node.target is _INSTANCE_NORM and not node.args[_BATCH_STATISTICS]:
            node.target = torch.ops.aten.batch_norm.default  # of the same arguments
    program = torch.onnx.export(
        given,
        dynamo=True,
        optimize=False,
        verbose=False,
        input_names=names,
        opset_version=opset,
        external_data=False,
    )
    assert program is not None
    _drop_zero_biases(program.model)
    _name_weights(program.model, model.names)
    return _checked(program.model_proto, opset, inputs, model.names)


def _name_weights(model: ir.Model, names: Identifiers) -> None:
    """Call the weights as the original does: in ONNX any printable text is a name.

    A weight that is called like an input or a value, which have names of their own in torch, gets
    a number.
    """
    weights = list(model.graph.initializers.values())
    taken = {value.name for node in model.graph.all_nodes() for value in node.outputs}
    taken |= {value.name for value in model.graph.inputs if value not in weights}
    for value in weights:
        original = names.original(value.name or "")
        wanted = original if original.isprintable() else value.name or ""
        found = unique(wanted, taken, "_")
        if found != value.name:
            value.name = found
        taken.add(found)


def _drop_zero_biases(model: ir.Model) -> None:
    """torch's exporter gives a convolution without a bias one of zeros: to Conv3d, in a shape that
    no runtime takes."""
    for node in model.graph.all_nodes():
        if node.op_type == "Conv" and len(node.inputs) == 3 and _is_zero(node.inputs[2]):
            node.resize_inputs(2)
    RemoveUnusedNodesPass()(model)


def _is_zero(value: ir.Value | None) -> bool:
    """Whether the value is a constant zero, expanded to whatever shape."""
    while value is not None and (node := value.producer()) is not None:
        if node.op_type not in ("Expand", "CastLike"):
            break
        value = node.inputs[0]
    constant = None if value is None else ir.convenience.get_const_tensor(value)
    return constant is not None and not constant.numpy().any()


@dataclass(frozen=True, eq=False, slots=True)
class _Traceable:
    """What torch's exporter for TorchScript takes: a module, and a call of it."""

    module: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    inputs: Inputs

    @classmethod
    def of(
        cls, model: ExportedProgramModel | TorchScriptModel, inputs: Inputs, sample: Sample
    ) -> _Traceable:
        tensors = {name: to_tensor(array) for name, array in sample.items()}
        if isinstance(model, TorchScriptModel):
            model.require_float()
            return cls(model.native, tuple(tensors.values()), {}, inputs)
        return cls(_with_traced_sizes(model.native), *model.bound(tensors), inputs)

    def export(self, opset: int) -> Model:
        """Raises ExportError with the next opset that has a form of every operator."""
        try:
            return _checked(self._written(opset), opset, self.inputs)
        except torch.onnx.errors.OnnxExporterError as error:
            named = re.search(r"operator '?([\w:]+)", str(error))
            what = f"the operator {named[1]}" if named else "an operator"
            raise ExportError(
                f"torch's older exporter has no form of {what} in opset {opset}",
                self._next_that_works(opset),
            ) from error

    def _next_that_works(self, opset: int) -> str:
        """What to type instead."""
        for later in range(opset + 1, NEWEST_OF_SCRIPTS + 1):
            with suppress(torch.onnx.errors.OnnxExporterError):
                self._written(later)
                return f"use --opset {later}"
        if isinstance(self.module, torch.jit.ScriptModule):
            return "export the PyTorch model that it was made of"
        return f"use --opset {OLDEST_OF_PROGRAMS}"

    def _written(self, opset: int) -> onnx.ModelProto:
        """PRESERVE: the exporter must not fold. What it prints of a failure is left out."""
        with torch.no_grad():
            outputs = list(named_outputs(self.module(*self.args, **self.kwargs)))
        buffer: Any = io.BytesIO()
        with without_stdout():
            torch.onnx.export(
                self.module,
                self.args,
                buffer,
                kwargs=self.kwargs,
                dynamo=False,
                input_names=[spec.name for spec in self.inputs.specs],
                output_names=outputs,
                dynamic_axes={name: axes for name, axes in self.inputs.dynamic.items() if axes},
                opset_version=opset,
                do_constant_folding=False,
                training=torch.onnx.TrainingMode.PRESERVE,
            )
        return onnx.load_from_string(buffer.getvalue())


def _with_traced_sizes(program: ExportedProgram) -> torch.fx.GraphModule:
    """The program as a module that asks tensors for their sizes, as a trace can follow."""
    module: Any = program.module(check_guards=False)
    module._forward_pre_hooks.clear()  # they compare sizes, which a trace holds as tensors
    for node in module.graph.find_nodes(op="call_function", target=torch.ops.aten.sym_size.int):
        with module.graph.inserting_before(node):
            node.replace_all_uses_with(module.graph.call_method("size", node.args))
        module.graph.erase_node(node)
    module.recompile()
    return module  # type: ignore[no-any-return]


def _checked(
    proto: onnx.ModelProto, opset: int, inputs: Inputs, names: Identifiers = AS_THEY_ARE
) -> Model:
    """The exported model, with its free sizes named, once its opset is what was asked for.

    `names` lead from what the exporter called the modules to what the original does.
    """
    written = next(o.version for o in proto.opset_import if o.domain in ("", "ai.onnx"))
    if written != opset:
        raise ExportError(
            f"opset {opset} was asked for, the exporter wrote {written}", f"use --opset {written}"
        )
    _name_free_sizes(proto, inputs.dynamic)
    name_modules(proto, names.original)
    return OnnxModel.from_proto(proto)


def _name_free_sizes(proto: onnx.ModelProto, dynamic: Mapping[str, Mapping[int, str]]) -> None:
    """Give the symbols that the exporter invented the names of the user, everywhere."""
    renamed: dict[str, str] = {}
    for value in proto.graph.input:
        for axis, name in dynamic.get(value.name, {}).items():
            symbol = value.type.tensor_type.shape.dim[axis].dim_param
            if symbol:
                renamed[symbol] = name
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in renamed:
                dim.dim_param = renamed[dim.dim_param]


def _scripted(module: torch.nn.Module, sample: Sample) -> torch.jit.ScriptModule:
    """By torch.jit.script, which keeps control flow; by tracing where its language is too small."""
    try:
        scripted: torch.jit.ScriptModule = torch.jit.script(module)
    except Exception:  # script refuses with many types; tracing is the documented second way
        return _traced(module, sample)
    return scripted


def _traced(module: Any, sample: Sample) -> torch.jit.ScriptModule:
    tensors = tuple(to_tensor(array) for array in sample.values())
    with torch.no_grad():
        trace: Any = torch.jit.trace
        traced: torch.jit.ScriptModule = trace(module, tensors, strict=False, check_trace=False)
    return traced
