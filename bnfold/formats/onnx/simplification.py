"""Simplify an ONNX model with onnxsim: constants folded, shapes inferred, no-ops removed.

onnxsim's own fusions into convolutions are off: what folds, bnfold folds, in float64, and what it
keeps, it keeps for a reason.
"""

from __future__ import annotations

from bnfold.errors import ExportError, first_line
from bnfold.formats.onnx.model import OnnxModel
from bnfold.streams import silent

FUSIONS = ("fuse_bn_into_conv", "fuse_add_bias_into_conv")


def simplified(model: OnnxModel) -> OnnxModel:
    """A new, simpler model. Raises ExportError if onnxsim fails."""
    import onnxsim

    model.require_small()
    try:
        with silent():
            proto, _ = onnxsim.simplify(model.native, skipped_optimizers=[*FUSIONS], certify=False)
    except Exception as error:
        reason = first_line(error)
        raise ExportError(
            f"onnxsim cannot simplify the model: {reason}",
            "export without it: --no-simplify",
        ) from error
    modules = {node.name: node.metadata_props for node in model.native.graph.node if node.name}
    for node in proto.graph.node:  # onnxsim drops what nodes say of themselves
        if node.name in modules and not node.metadata_props:
            node.metadata_props.extend(modules[node.name])
    return OnnxModel.from_proto(proto)
