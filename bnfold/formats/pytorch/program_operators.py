"""Which operators a program out of a file may call, and by which text it names them.

Admitted is what computes on tensors and sizes that it is given:

    aten, prims             by public name, if the schema takes and gives tensors, numbers and words
                            such as "reflect" alone
    aten._...               those that torch.export writes: other private ones leave out checks, of
                            bounds above all, that their public callers make
    quantized_decomposed    by schema, where torch's quantisation has been imported
    torchvision             those on boxes, where the user has imported it
    higher-order operators  those that call graphs of the program
    arithmetic              on sizes: Python's operators, torch.sym_*

Refused is what reads or writes files (from_file, save), takes a storage, a stream or memory as it
is (set_, data), takes packed weights on trust (fbgemm_..., quantized_..., mkldnn_...) or indices
(segment_reduce, sparse layouts, gradients), or changes the process.

A text is compared and looked up among torch's operators, never followed through attributes of
modules: other spellings of a path, such as "torch._ops.ops.aten.from_file.default", lead nowhere.
"""

from __future__ import annotations

import importlib
import math
import operator
import re
from collections.abc import Iterator
from typing import Any

import torch


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_PRIVATE = _words(
    """
    _adaptive_avg_pool2d _adaptive_avg_pool3d _add_relu _addmm_activation _aminmax _assert_async
    _assert_scalar _assert_tensor_metadata _batch_norm_no_update _batch_norm_with_update
    _batch_norm_with_update_functional _cdist_forward _chunk_cat _conj _conj_copy _conj_physical
    _convolution _convolution_mode _efficientzerotensor _embedding_bag _embedding_bag_forward_only
    _euclidean_dist _fft_c2c _fft_c2r _fft_r2c _functional_assert_async _functional_assert_scalar
    _functional_sym_constrain_range _functional_sym_constrain_range_for_size _fused_rms_norm
    _grouped_mm _int_mm _is_all_true _is_any_true _linalg_check_errors _linalg_det _linalg_eigh
    _linalg_slogdet _linalg_solve_ex _linalg_svd _local_scalar_dense _log_softmax _logcumsumexp
    _masked_softmax _native_batch_norm_legit _native_batch_norm_legit_functional
    _native_batch_norm_legit_no_training _native_multi_head_attention _neg_view _neg_view_copy
    _pdist_forward _prelu_kernel _reshape_copy _safe_softmax _scaled_dot_product_attention_math
    _scaled_dot_product_cudnn_attention _scaled_dot_product_efficient_attention
    _scaled_dot_product_flash_attention _scaled_dot_product_flash_attention_for_cpu _scaled_mm
    _shape_as_tensor _softmax _stack _standard_gamma _to_copy _to_cpu _trilinear
    _unique2 _unsafe_index _unsafe_masked_index _unsafe_view _upsample_bicubic2d_aa
    _upsample_bilinear2d_aa _upsample_nearest_exact1d _upsample_nearest_exact2d
    _upsample_nearest_exact3d _weight_norm _weight_norm_interface
    """
)

_REFUSED = re.compile(
    r"data|set|set_|set_data|resize_?|resize_as_?|slice_inverse"  # memory that it was not given
    r"|from_file|save|pin_memory|is_pinned|record_stream|get_gradients"
    r"|(fbgemm|quantized|cudnn|miopen|mkldnn|mps)_.*|to_mkldnn|lstm_mps"  # packed weights
    r"|(sparse|nested)_.*|segment_reduce|.*backward.*"  # indices that are taken on trust
)

_TYPES = frozenset({"Tensor", "int", "float", "bool", "number", "complex", "Device", "Generator"})
"""What an admitted operator takes and gives, alone, in lists, or optionally."""

_WORDS = _words(
    """
    UPLO api_name approximate assert_msg driver equation indexing interpolation mode norm ord p
    pad_mode padding padding_side reduce rounding_mode side
    """
)
"""The arguments that are a word; a text by another name may be that of a file."""

_FOREACH = "_foreach_"

_TORCHVISION = frozenset(
    {"deform_conv2d", "nms", "ps_roi_align", "ps_roi_pool", "roi_align", "roi_pool"}
)

_HIGHER_ORDER = _words(
    """
    associative_scan auto_functionalized auto_functionalized_v2 cond flex_attention hints_wrapper
    invoke_subgraph map_impl out_dtype scan strict_mode tag_activation_checkpoint while_loop wrap
    wrap_activation_checkpoint wrap_with_autocast wrap_with_set_grad_enabled
    """
)

_PYTHON = _words(
    """
    add and_ eq floordiv ge getitem gt le lshift lt mod mul ne neg or_ pos pow rshift sub truediv
    """
)

_SYMBOLIC = ("sym_float", "sym_int", "sym_ite", "sym_max", "sym_min", "sym_not", "sym_sum")

ARITHMETIC: dict[str, Any] = {
    **{f"_operator.{name}": getattr(operator, name) for name in _PYTHON},
    **{f"torch.{name}": getattr(torch, name) for name in _SYMBOLIC},
    "torch._sym_sqrt": torch.sym_sqrt,
    "math.trunc": math.trunc,
}
"""Functions on sizes and truth values, by the text that torch writes for them."""


def admitted(text: str) -> Any:
    """The operator that a program calls by `text`; None if it may not, or if there is none."""
    if text in ARITHMETIC:
        return ARITHMETIC[text]
    match text.split("."):
        case ["torch", "ops", "higher_order", name] if name in _HIGHER_ORDER:
            return _higher_order(name)
        case ["torch", "ops", library, name, overload] if _is_registered(library, name, overload):
            found = getattr(getattr(getattr(torch.ops, library), name), overload, None)
            return found if _is_harmless(found, library, name) else None
        case _:
            return None


def called(graph_module: torch.fx.GraphModule) -> Iterator[Any]:
    """What a loaded program calls, in its nested graphs too, and what is passed to be called."""
    for module in graph_module.modules():
        if not isinstance(module, torch.fx.GraphModule):
            continue
        for node in module.graph.nodes:
            if node.op.startswith("call_"):
                yield node.target
                yield from _callables((node.args, node.kwargs))


def is_admitted(target: Any) -> bool:
    """Whether an object that a loaded program calls is one that its text may name."""
    if isinstance(target, torch._ops.OpOverload):
        library, _, name = target._schema.name.partition("::")
        return admitted(f"torch.ops.{library}.{name}.{target._overloadname}") is target
    if isinstance(target, torch._ops.HigherOrderOperator):
        return admitted(f"torch.ops.higher_order.{target.__name__}") is target
    return any(target is known for known in ARITHMETIC.values())


def _callables(entry: Any) -> Iterator[Any]:
    waiting = [entry]
    while waiting:
        entry = waiting.pop()
        if isinstance(entry, list | tuple):
            waiting += entry
        elif isinstance(entry, dict):
            waiting += entry.values()
        elif callable(entry) and not isinstance(entry, torch.fx.Node):
            yield entry


def _higher_order(name: str) -> Any:
    """torch registers most of them when the module that defines them is imported."""
    importlib.import_module("torch._higher_order_ops")
    return torch._ops._higher_order_ops.get(name)


def _is_registered(library: str, name: str, overload: str) -> bool:
    """Whether there are kernels for it. TorchScript's own, such as aten::save, have none."""
    try:
        torch._C._dispatch_find_schema_or_throw(
            f"{library}::{name}", "" if overload == "default" else overload
        )
    except RuntimeError:
        return False
    return True


def _is_harmless(found: Any, library: str, name: str) -> bool:
    if not isinstance(found, torch._ops.OpOverload) or found._schema.name != f"{library}::{name}":
        return False
    match library:
        case "aten":
            listed = name in _PRIVATE or name.startswith(_FOREACH)
            known = listed or not name.startswith("_") or name.startswith("__")
        case "prims" | "quantized_decomposed":
            known = not name.startswith("_")
        case "torchvision":
            known = name in _TORCHVISION
        case _:
            known = False
    return known and not _REFUSED.fullmatch(name) and _is_plain(found._schema)


def _is_plain(schema: Any) -> bool:
    """Whether it takes and gives tensors, numbers and known words, and nothing else."""
    for argument in (*schema.arguments, *schema.returns):
        kind = re.sub(r"(?:Optional|List)\[|\]", "", str(argument.type))
        if kind == "str" and argument.name in _WORDS:
            continue
        if kind not in _TYPES:
            return False
    return True
