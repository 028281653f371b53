"""The ONNX form of a model: load, read, write, save, run. torch is never imported.

onnx_files   from disk and back, external data included
onnx_values  shapes, types and constants before anything runs
onnx_ops     what each operator means
onnx_reader  the neutral graph
onnx_writer  a plan carried out on a copy
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from bnfold.algebra.graph import Graph
from bnfold.algebra.plan import Plan
from bnfold.algebra.planner import make_plan
from bnfold.algebra.refusal import Refusal
from bnfold.algebra.rounding import Weights
from bnfold.errors import ModelError
from bnfold.formats.capabilities import Damage, Decisions, Intermediates, Shown
from bnfold.formats.model import Format, Model
from bnfold.formats.onnx.bounds import (
    require_few_nodes,
    require_few_rounds,
    require_small_values,
)
from bnfold.formats.onnx.choices import Tail, bounds, cut, pairs
from bnfold.formats.onnx.damage import damages
from bnfold.formats.onnx.files import (
    TRAINING,
    external_tensors,
    is_large,
    load_model,
    parse_model,
    save_model,
)
from bnfold.formats.onnx.functions import inlined, plain_functions
from bnfold.formats.onnx.indices import integers_taken
from bnfold.formats.onnx.intermediates import giving, owners, showing, sources
from bnfold.formats.onnx.making import free_nodes
from bnfold.formats.onnx.part import part
from bnfold.formats.onnx.precision import in_precision
from bnfold.formats.onnx.preprocessing import preprocessed
from bnfold.formats.onnx.reader import Reading, read
from bnfold.formats.onnx.selection import selecting
from bnfold.formats.onnx.values import dtype_name, sizes
from bnfold.formats.onnx.writer import veto, write
from bnfold.formats.onnx.written import written
from bnfold.inputs import Inputs
from bnfold.preprocessing import Contract
from bnfold.proof.written import Written
from bnfold.protocol import DEFAULT, Protocol
from bnfold.runtimes import Integers, Runner, Sample, TensorSpec

logging.getLogger("onnx_ir").setLevel(logging.ERROR)  # what it warns of, reading finds


class OnnxModel(Model):
    """An ONNX model; `ir` is its onnx_ir form, `native` the protobuf message."""

    format = Format.ONNX

    def __init__(
        self, model: ir.Model, proto: onnx.ModelProto | None = None, *, external: bool = False
    ) -> None:
        self.ir = model
        self._proto = proto
        self._reading: Reading | None = None
        self._inlined = model
        self._external = external
        self._is_small = False
        require_few_nodes(model)
        require_few_rounds(model)
        if model.meta.get(TRAINING):
            self.notes = ("training_info is left out: it is about the weights before folding",)

    @property
    def external(self) -> bool:
        """Whether the weights came, and so are written, in a file of their own."""
        return self._external

    @classmethod
    def load(cls, path: str | Path) -> OnnxModel:
        """The model in the file at `path`. Raises ModelError."""
        model, files = load_model(Path(path))
        loaded = cls(model, external=len(files) > 1)
        loaded.stored = sum(file.size for file in files.values())
        return loaded

    @classmethod
    def from_proto(cls, proto: onnx.ModelProto) -> OnnxModel:
        """The model that a message in memory holds, weights included. Raises ModelError."""
        model = parse_model(proto, "the ModelProto")
        if any(True for _ in external_tensors(model)):
            hint = "open the model by its path"
            raise ModelError("the ModelProto leaves its weights in another file", hint)
        return cls(model, proto)

    @property
    def native(self) -> onnx.ModelProto:
        """The message; weights that lie outside the model's file are only referred to."""
        if self._proto is None:
            self._proto = ir.to_proto(self.ir)
        return self._proto

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return tuple(
            TensorSpec(value.name or "", dtype_name(value.dtype) or "object", sizes(value.shape))
            for value in self.ir.graph.inputs
            if not value.is_initializer()
        )

    def diagnose(self) -> str | None:
        try:
            proto = ir.to_proto(self.ir)
            for value in (*proto.graph.input, *proto.graph.output):
                if value.type.HasField("tensor_type"):  # runtimes need no shape, the checker does
                    value.type.tensor_type.shape.SetInParent()
            onnx.checker.check_model(proto)
        except Exception as error:  # a model can be too broken even to be checked
            lines = [line for line in str(error).splitlines() if line.strip()]
            return lines[0] if lines else type(error).__name__
        return None

    def read(self, sample: Sample | None) -> Graph:
        """The neutral graph, once and for all; `sample` is not needed."""
        return self._read().graph

    def veto(self, plan: Plan) -> Mapping[str, Refusal]:
        return veto(self._read(), plan)

    def free(self) -> frozenset[str]:
        return free_nodes(self._read())

    def write(self, plan: Plan, weights: Weights) -> OnnxModel:
        reading = self._read()
        folded = write(self._inlined, reading, plan, weights)
        return OnnxModel(folded, external=self._external)

    def save(self, path: Path) -> None:
        """Write to `path`; weights go to a file beside it if they came so, or past 2 GiB.

        That file is called NAME.HASH.data after its content. The model names it, so neither can be
        renamed alone: save the model under its final name in another folder to move it into place.
        """
        save_model(self.ir, Path(path), external=self._external)

    def damages(self) -> Iterator[Damage]:
        def made(make: Callable[[float], ir.Model], size: float) -> OnnxModel:
            return OnnxModel(make(size), external=self._external)

        for kind, where, make in damages(self.ir):
            yield Damage(kind, where, partial(made, make))

    def part(self, values: Sample, output: str) -> tuple[Model, dict[str, Any]] | None:
        if self._external or is_large(self.ir):
            return None
        proto, read = part(self.native, values, output)
        return OnnxModel.from_proto(proto), read

    @property
    def provable(self) -> bool:
        return True

    @contextmanager
    def written(self) -> Iterator[Written]:
        if self.origin is not None:
            yield written(self.ir)
            return
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            path = Path(folder) / "model.onnx"
            self.save(path)
            yield written(load_model(path)[0])

    def intermediates(self, provider: str) -> Intermediates:
        shown = OnnxModel(showing(self.ir), external=self._external)
        runner = shown._runner(provider)
        return Intermediates(runner, shown.truth(), sources(self.ir), owners(self.ir))

    def selecting(self, outputs: Sequence[str]) -> OnnxModel:
        made = OnnxModel(selecting(self.ir, outputs), external=self._external)
        made.notes = self.notes
        return made

    def preprocessed(self, contract: Contract, inputs: Inputs) -> OnnxModel:
        made = OnnxModel(preprocessed(self.ir, contract), external=self._external)
        made.notes = self.notes
        return made

    def cast(self, dtype: str) -> OnnxModel:
        made = in_precision(self.ir, dtype)
        if made is self.ir:
            return self
        cast = OnnxModel(made, external=self._external)
        cast.notes = self.notes
        return cast

    def bounds(self) -> tuple[float, ...]:
        return bounds(self.ir)

    def decisions(self) -> Decisions:
        whole = inlined(self.ir)
        found = cut(whole)
        if found is None:
            return Decisions()

        def shown(provider: str) -> Shown:
            chosen = OnnxModel(giving(whole, found.chosen_by), external=self._external)
            every = dict.fromkeys((*found.chosen_by, *found.read))
            exact = OnnxModel(giving(whole, every), external=self._external)
            return Shown(exact.truth(), chosen._runner(provider), Tail(found), found.positions)

        return Decisions(frozenset(found.positions), shown)

    def deciding(self, other: Model) -> tuple[Model, Model, list[str]] | None:
        if not isinstance(other, OnnxModel):
            return None
        one, its = inlined(self.ir), inlined(other.ir)
        if not (found := pairs(one, its)):
            return None
        shown = giving(one, [pair.one for pair in found])
        others = giving(its, [pair.other for pair in found])
        return (
            OnnxModel(shown, external=self._external),
            OnnxModel(others, external=other._external),
            [pair.what for pair in found],
        )

    def _runner(self, provider: str) -> Runner:
        """The runner of that name."""
        place = provider.removesuffix(" unoptimised")
        found = self.runners(Protocol(providers=(place,)))
        return next(runner for runner in found if runner.name == provider)

    def integers(self, sample: Sample) -> Mapping[str, Integers]:
        return integers_taken(self.ir)

    def truth(self) -> Runner:
        from bnfold.formats.onnx.float64 import Float64Runner

        self.require_small()
        return Float64Runner(self.ir)

    def runners(self, protocol: Protocol = DEFAULT) -> list[Runner]:
        """Every optimisation level of ONNX Runtime on each provider."""
        from bnfold.runtimes.ort import sessions

        self.require_small()
        if not (self._external or is_large(self.ir)):
            return [*sessions(self.native.SerializeToString(), protocol)]
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            path = Path(folder) / "model.onnx"
            self.save(path)
            return [*sessions(path, protocol)]

    def require_small(self) -> None:
        if not self._is_small:
            require_small_values(self.ir)
            self._is_small = True

    def _read(self) -> Reading:
        if self._reading is None:
            self.require_small()
            self._inlined = inlined(self.ir)
            self._reading = read(self._inlined)
            spared = inlined(self.ir, plain_functions(self.ir))
            if self._inlined is not self.ir and spared.functions:
                sparing = read(spared)
                if _gain(sparing) == _gain(self._reading):
                    self._inlined, self._reading = spared, sparing
        return self._reading


def _gain(reading: Reading) -> tuple[int, int]:
    """How many affines fold, and how many nodes go away."""
    plan = make_plan(reading.graph)
    return plan.affines.folded, len(plan.before.nodes) - len(plan.after.nodes)
