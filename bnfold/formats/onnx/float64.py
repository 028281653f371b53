"""The truth of an ONNX model: every float of it in float64, evaluated without torch.

A copy of the model is widened - weights, constants, casts, declared types, bodies, functions - and
run by onnx.reference, with the kernels of `float64_kernels` in place of those that are slow or not
float64. An operator that has none is computed by ONNX Runtime in float32, and the runner says so in
its name. Else a node that makes less than float64 of float64 is an error.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import AttributeProto, TensorProto, numpy_helper

from bnfold.algebra.rounding import EPSILON
from bnfold.formats.onnx.files import parse_model
from bnfold.formats.onnx.values import dtype_name, sizes
from bnfold.process_state import quiet
from bnfold.processes.supervision import watched
from bnfold.runtimes import NotComputableError, Outputs, Sample, TensorSpec
from bnfold.runtimes.samples import check_sample
from bnfold.runtimes.sides import OF_ONNX, Sides

RANDOM = frozenset(
    {
        *("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike"),
        *("RandomUniform", "RandomUniformLike"),
    }
)
INEXACT = frozenset({"CausalConvWithState", "GridSample", "LinearAttention"})
"""Operators that onnx.reference computes in float32 inside."""

_KNOWN_DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml"})
"""What onnx.reference has kernels for."""

_SIZES = frozenset({"Shape", "Size"})

_NARROW = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16})
_TYPE_ATTRIBUTES = frozenset({"to", "dtype", "output_datatype", "output_dtype"})


class Float64Runner:
    """`model` in float64. Inputs of any floating type are taken; floating outputs are float64.

    `kernels` are OpRun classes for operators of the model's own.
    """

    def __init__(
        self, model: onnx.ModelProto | ir.Model, kernels: tuple[type[Any], ...] = ()
    ) -> None:
        if isinstance(model, onnx.ModelProto):
            model = parse_model(model, "the ModelProto")
        self.sides = Sides()
        self._model = model
        self._evaluator: Any = None
        self._kernels = kernels
        own = {(kernel.op_domain, kernel.__name__) for kernel in kernels}
        self._substituted = _substituted(model) - own
        self._specs = tuple(
            TensorSpec(value.name or "", _wide(dtype_name(value.dtype)), sizes(value.shape))
            for value in model.graph.inputs
            if not value.is_initializer()
        )

    @property
    def name(self) -> str:
        """float64, with the operators for which ONNX Runtime has to stand in."""
        if not self._substituted:
            return "float64"
        listed = ", ".join(sorted({op_type for _, op_type in self._substituted}))
        return f"float64, but for {listed}, in float32 by ONNX Runtime"

    @property
    def input_names(self) -> tuple[str, ...]:
        return tuple(spec.name for spec in self._specs)

    @watched
    def __call__(self, sample: Sample) -> Outputs:
        feeds = {
            name: array.astype(np.float64) if array.dtype.name in EPSILON else array
            for name, array in sample.items()
        }
        check_sample(self._specs, feeds)
        try:
            if self._evaluator is None:
                evaluator = _evaluator_class(self._substituted, self._kernels)
                self._evaluator = evaluator(_widened(self._model))
                self._evaluator.sides = self.sides
            self.sides.begin()
            with np.errstate(all="ignore"), quiet():
                made = self._evaluator.run(None, feeds)
        except MemoryError:
            raise
        except Exception as error:  # onnx.reference raises whatever its kernels raise
            raise NotComputableError(_explained(error)) from error
        outputs: Outputs = {}
        for value, array in zip(self._model.graph.outputs, made, strict=True):
            if not isinstance(array, np.ndarray):
                raise NotComputableError(f"the output {value.name} is not a tensor")
            outputs[value.name or ""] = array
        return outputs


def _wide(dtype: str | None) -> str:
    return "float64" if dtype in EPSILON else dtype or "object"


def _widened(model: ir.Model) -> onnx.ModelProto:
    copy = model.clone()
    for graph in copy.graphs():
        for value in graph.initializers.values():
            tensor = value.const_value
            if tensor is None or (dtype := dtype_name(tensor.dtype)) == "str":
                continue
            if dtype in EPSILON:
                value.const_value = ir.tensor(tensor.numpy().astype(np.float64), name=value.name)
                value.type = ir.TensorType(ir.DataType.DOUBLE)
            elif isinstance(tensor, ir.ExternalTensor):
                value.const_value = ir.tensor(tensor.numpy(), name=value.name)
    proto: onnx.ModelProto = ir.to_proto(copy)
    _widen_types(proto.graph)
    _widen_nodes(proto.graph.node)
    return proto


def _widen_nodes(nodes: Iterable[onnx.NodeProto]) -> None:
    for node in nodes:
        if node.op_type == "ConstantOfShape" and not node.attribute:
            node.attribute.append(onnx.helper.make_attribute("value", _tensor(np.zeros(1))))
        for attribute in node.attribute:
            _widen_attribute(node, attribute)


def _widen_attribute(node: onnx.NodeProto, attribute: AttributeProto) -> None:
    if attribute.ref_attr_name:
        return
    match attribute.type:
        case AttributeProto.INT if attribute.name in _TYPE_ATTRIBUTES and attribute.i in _NARROW:
            attribute.i = TensorProto.DOUBLE
        case AttributeProto.TENSOR if attribute.t.data_type in _NARROW:
            attribute.t.CopyFrom(_tensor(numpy_helper.to_array(attribute.t)))
        case AttributeProto.FLOAT if node.op_type == "Constant":
            node.attribute[0].CopyFrom(_value(np.array(attribute.f)))
        case AttributeProto.FLOATS if node.op_type == "Constant":
            node.attribute[0].CopyFrom(_value(np.array(attribute.floats)))
        case AttributeProto.GRAPH:
            _widen_types(attribute.g)
            _widen_nodes(attribute.g.node)
        case AttributeProto.GRAPHS:
            for graph in attribute.graphs:
                _widen_types(graph)
                _widen_nodes(graph.node)


def _widen_types(graph: onnx.GraphProto) -> None:
    for entry in (*graph.input, *graph.output, *graph.value_info):
        tensor = entry.type.tensor_type
        if tensor.elem_type in _NARROW:
            tensor.elem_type = TensorProto.DOUBLE


def _tensor(array: Any) -> TensorProto:
    return numpy_helper.from_array(np.asarray(array, np.float64))


def _value(array: Any) -> AttributeProto:
    return onnx.helper.make_attribute("value", _tensor(array))


@cache
def _evaluator_class(
    substituted: frozenset[tuple[str, str]], own: tuple[type[Any], ...] = ()
) -> Any:
    """The evaluator; made on first use, because onnx.reference is slow to import."""
    from onnx.reference import ReferenceEvaluator

    from bnfold.formats.onnx.float64_kernels import KERNELS

    kernels = [*KERNELS, *own]
    if substituted:
        from bnfold.formats.onnx.float64_substitutes import substitute

        kernels += [substitute(domain, op_type) for domain, op_type in sorted(substituted)]

    class Evaluator(ReferenceEvaluator):
        """Runs bodies and functions, those of operator schemas too, in float64 like the model.

        Its own `run` asks the message of each node for names at every run, and logs what it does.
        """

        sides: Sides | None = None

        def __init__(self, proto: Any, *args: Any, **options: Any) -> None:
            if isinstance(proto, onnx.FunctionProto):
                original, proto = proto, onnx.FunctionProto()
                proto.CopyFrom(original)
                _widen_nodes(proto.node)
            nodes = proto.graph.node if isinstance(proto, onnx.ModelProto) else proto.node
            self._calls = [_Call.of(node) for node in nodes]
            for call in self._calls:
                if call.op_type in RANDOM:
                    raise NotComputableError(f"{call.title} is random")
            super().__init__(proto, *args, **{**options, "new_ops": kernels})

        def run(  # type: ignore[override]
            self,
            output_names: Any,
            feed_inputs: Any,
            attributes: Any = None,
            intermediate: bool = False,
            **options: Any,
        ) -> Any:
            made = {"": None, **self.rt_inits_, **feed_inputs}
            for kernel, call in zip(self.rt_nodes_, self._calls, strict=True):
                also: dict[str, Any] = {"context": made} if kernel.need_context() else {}
                if attributes and kernel.has_linked_attribute:
                    also["linked_attributes"] = attributes
                results = kernel.run(*[made[name] for name in call.reads], **also)
                made.update(zip(call.makes, results, strict=False))
                _check_width(call, made)
            if self.sides is not None:
                _note_sides(self.sides, self._calls, feed_inputs, made)
            return (
                made if intermediate else [made[name] for name in output_names or self.output_names]
            )

    return Evaluator


def _substituted(model: ir.Model) -> frozenset[tuple[str, str]]:
    """Domain and name of every operator for which ONNX Runtime has to stand in."""
    own = {(domain, name) for domain, name, _ in model.functions}
    found = {(node.domain, node.op_type) for graph in model.graphs() for node in graph}
    return frozenset(
        (domain, op_type)
        for domain, op_type in found - own
        if domain not in _KNOWN_DOMAINS or (not domain and op_type in INEXACT)
    )


@dataclass(frozen=True, slots=True)
class _Call:
    """What every run looks at of a node, out of the message, which takes its time to read.

    `op_type` is that of a standard operator, else empty; `numbers` are its attributes of that type.
    """

    title: str
    op_type: str
    reads: tuple[str, ...]
    makes: tuple[str, ...]
    numbers: Mapping[str, float]

    @classmethod
    def of(cls, node: onnx.NodeProto) -> _Call:
        numbers = {a.name: a.f for a in node.attribute if a.type == AttributeProto.FLOAT}
        op_type = "" if node.domain else node.op_type
        return cls(_title(node), op_type, tuple(node.input), tuple(node.output), numbers)


def _note_sides(
    sides: Sides, calls: Iterable[_Call], given: Mapping[str, Any], made: Mapping[str, Any]
) -> None:
    """What the nodes that hang on the numbers that were given, not on their sizes, have reached."""
    hanging = set(given)
    for call in calls:
        if not call.op_type or call.op_type in _SIZES or hanging.isdisjoint(call.reads):
            continue
        hanging.update(call.makes)
        sides.work += sum(getattr(made.get(name), "size", 0) for name in call.makes)
        if (margins := OF_ONNX.get(call.op_type)) is not None:
            inputs = [made.get(name) if name else None for name in call.reads]
            if isinstance(inputs[0], np.ndarray) and inputs[0].dtype.kind != "O":
                sides.note(call.title, margins(inputs, call.numbers))


def _check_width(call: _Call, made: Mapping[str, Any]) -> None:
    narrow = any(_is_narrow(getattr(made.get(name), "dtype", None)) for name in call.makes)
    if narrow and any(getattr(made.get(name), "dtype", None) == np.float64 for name in call.reads):
        raise NotComputableError(f"{call.title} is not computed in float64 here")


@cache
def _is_narrow(dtype: np.dtype[Any] | None) -> bool:
    return dtype is not None and dtype.name in EPSILON and dtype != np.float64


def _title(node: onnx.NodeProto) -> str:
    return f"{node.name or (node.output[0] if node.output else '')} ({node.op_type})"


def _explained(error: Exception) -> str:
    """What failed and, if the traceback tells, at which node."""
    if isinstance(error, NotComputableError):
        return str(error)
    text = str(error).strip().splitlines()
    why = text[0] if text else type(error).__name__
    frame, node = error.__traceback__, None
    while frame is not None:
        node = getattr(frame.tb_frame.f_locals.get("self"), "onnx_node", node)
        frame = frame.tb_next
    return why if node is None else f"{_title(node)} has no float64 result: {why}"
