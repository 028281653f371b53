"""ONNX operators that have no float64 kernel here, computed by ONNX Runtime in float32.

Their inputs are rounded once and their results widened; all other operators stay in float64. So the
truth is off by about one operator's own rounding, far less than the floor of a whole model.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper
from onnx.reference.op_run import OpRun

from bnfold.runtimes.ort import OrtRunner

_IR_VERSION = 10


def substitute(domain: str, op_type: str) -> type[OpRun]:
    """The kernel for an operator of that name; importing this module imports onnx.reference."""
    return type(op_type, (_InFloat32,), {"op_domain": domain})


class _InFloat32(OpRun):
    """Runs its node alone in ONNX Runtime."""

    def _run(self, *inputs: Any, **attributes: Any) -> tuple[NDArray[Any], ...]:
        node = onnx.NodeProto()
        node.CopyFrom(self.onnx_node)
        given = [
            array.astype(np.float32) if array is not None and array.dtype == np.float64 else array
            for array in inputs
        ]
        names = [name for name in node.input if name]
        present = [array for name, array in zip(node.input, given, strict=True) if name]
        sample = dict(zip(names, present, strict=True))
        graph = helper.make_graph(
            [node],
            "one",
            [
                helper.make_tensor_value_info(
                    name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape
                )
                for name, array in sample.items()
            ],
            [onnx.ValueInfoProto(name=name) for name in node.output if name],
        )
        opsets = self.run_params["opsets"].items()
        imports = [helper.make_opsetid(domain, version) for domain, version in opsets]
        model = helper.make_model(graph, opset_imports=imports, ir_version=_IR_VERSION)
        made = OrtRunner(model.SerializeToString(), level="unoptimised")(sample)
        return tuple(
            array.astype(np.float64) if array.dtype == np.float32 else array
            for array in made.values()
        )
