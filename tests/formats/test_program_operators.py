"""Which operators a .pt2 may name: by what they are, whatever the spelling."""

from __future__ import annotations

import operator

import pytest
import torch
from torch._export.serde import serialize

from bnfold.formats.pytorch.program_operators import (
    _is_harmless,
    admitted,
    called,
    is_admitted,
)

SPELLINGS = [
    "torch.ops.aten.from_file.default",
    "torch._ops.ops.aten.from_file.default",
    "torch.functional.torch.ops.aten.from_file.default",
    "torch.ops.aten.from_file.out",
    "torch.ops.aten.from_file",
    "torch.ops.aten.save.default",
    "torch.ops.aten.save",
    "torch.ops.debugprims.load_tensor.default",
    "torch.ops.load_library",
    "torch.ops.aten.conv2d.default.__class__",
    "torch.ops.aten.conv2d.__init__",
    "torch.ops.aten.__class__.default",
    "torch.ops.aten.conv2d.default ",
    "torch.ops.aten..default",
    "torch._ops.ops.aten.relu.default",
    "torch.os.system",
    "torch.hub.load",
    "torch.load",
    "torch.jit.load",
    "_operator.attrgetter",
    "_operator.call",
    "_operatorx.add",
    "operator.add",
    "math.factorial",
    "math.trunc.__call__",
    "#extension:op",
    "",
]


@pytest.mark.parametrize("text", SPELLINGS)
def test_what_is_no_operator_of_the_list(text: str) -> None:
    assert admitted(text) is None


@pytest.mark.parametrize(
    "name",
    [
        *("aten.set_.source_Storage", "aten.set_.source_Tensor", "aten.set_data.default"),
        *("aten.data.default", "aten.record_stream.default", "aten.pin_memory.default"),
        *("aten.resize_.default", "aten._reshape_alias.default", "aten._print.default"),
        *("aten._index_put_impl_.default", "aten.segment_reduce.default"),
        *("aten._sparse_coo_tensor_unsafe.default", "aten.sparse_coo_tensor.indices_size"),
        *("aten.fbgemm_linear_fp16_weight.default", "aten.quantized_lstm.input"),
        *("aten.mkldnn_rnn_layer.default", "aten.embedding_dense_backward.default"),
        *("aten.max_pool2d_with_indices_backward.default", "aten._nested_view_from_buffer.default"),
        *("mkldnn.data_ptr.default", "prims.resize.default", "prims._make_token.default"),
        *("quantized.linear.default", "profiler._record_function_enter.default"),
        *("c10d.broadcast_.default", "_c10d_functional.all_reduce.default"),
        *("higher_order.call_torchbind", "higher_order.executorch_call_delegate"),
        *("higher_order.triton_kernel_wrapper_mutation", "higher_order.print"),
    ],
)
def test_operators_on_files_pointers_and_the_process(name: str) -> None:
    """Each of them exists, but for those of one platform or another."""
    assert admitted(f"torch.ops.{name}") is None


@pytest.mark.parametrize(
    "name",
    [
        *("aten.conv2d.default", "aten.conv2d.padding", "aten.batch_norm.default"),
        *("aten.einsum.default", "aten.pad.default", "aten.upsample_nearest2d.vec"),
        *("aten._softmax.default", "aten._assert_scalar.default", "aten.lstm.input"),
        *("aten.add_.Tensor", "aten.sym_size.int", "aten.item.default", "aten.index.Tensor"),
        *("aten.__and__.Tensor", "aten.meshgrid.indexing", "aten._foreach_add.List"),
        *("prims.convert_element_type.default", "prims.view_of.default"),
    ],
)
def test_operators_of_networks(name: str) -> None:
    found = admitted(f"torch.ops.{name}")
    assert str(found) == name
    assert is_admitted(found)


@pytest.mark.parametrize(
    "name", ["cond", "while_loop", "scan", "map_impl", "wrap_with_set_grad_enabled"]
)
def test_operators_that_call_graphs(name: str) -> None:
    found = admitted(f"torch.ops.higher_order.{name}")
    assert isinstance(found, torch._ops.HigherOrderOperator)
    assert is_admitted(found)


def test_everything_that_torch_calls_core_but_gradients_and_resize() -> None:
    names = torch._C._dispatch_get_all_op_names()
    pairs = (name.removeprefix("aten::").partition(".") for name in names if "aten::" in name)
    found = (getattr(getattr(torch.ops.aten, a), b or "default") for a, _, b in pairs)
    core = [each for each in found if torch.Tag.core in each.tags]
    refused = {str(each) for each in core if not is_admitted(each)}
    assert len(core) > 150
    assert {name for name in refused if "backward" not in name} == {"aten.resize_.default"}


def test_arithmetic_is_what_torch_writes_for_sizes() -> None:
    for function in serialize._SYM_OPS:
        text = serialize.GraphModuleSerializer.serialize_operator(None, function)
        assert admitted(text) is function


def test_objects_that_a_loaded_program_may_not_call() -> None:
    class Impostor:
        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = None  # type: ignore[assignment]

    for target in (torch.ops.aten.from_file.default, torch.ops.aten.relu, torch.load, print):
        assert not is_admitted(target)
    assert not is_admitted(operator.attrgetter)
    assert not is_admitted(Impostor())


def test_calls_in_nested_graphs_and_operators_that_are_passed_are_seen() -> None:
    inner = torch.fx.Graph()
    inner.call_function(torch.load, ("x",))
    inner.output(None)
    outer = torch.fx.Graph()
    body = outer.get_attr("body")
    outer.call_function(torch.ops.higher_order.wrap, (body, [torch.ops.aten.from_file.default]))
    outer.call_method("numpy", (body,))
    outer.output(None)
    root = torch.nn.Module()
    root.add_module("body", torch.fx.GraphModule(torch.nn.Module(), inner))
    found = list(called(torch.fx.GraphModule(root, outer)))
    assert torch.load in found
    assert torch.ops.aten.from_file.default in found
    assert "numpy" in found


@pytest.mark.parametrize(
    ("schema", "harmless"),
    [
        ("torchvision::nms(Tensor x) -> Tensor", True),
        ("torchvision::read_anything(Tensor x) -> Tensor", False),
        ("quantized_decomposed::a_test(Tensor x, int[]? y, ScalarType? z) -> Tensor[]", True),
        ("quantized_decomposed::a_test(Tensor x, *, str? rounding_mode=None) -> Tensor", True),
        ("quantized_decomposed::a_test(Tensor x, str filename) -> Tensor", False),
        ("quantized_decomposed::a_test(Tensor x, Stream y) -> Tensor", False),
        ("quantized_decomposed::a_test(Tensor x, Storage y) -> Tensor", False),
        ("quantized_decomposed::a_test(Tensor x) -> str", False),
        ("quantized_decomposed::_a_test(Tensor x) -> Tensor", False),
        ("somebodys::a_test(Tensor x) -> Tensor", False),
    ],
)
def test_operators_of_libraries_by_their_schema(schema: str, harmless: bool) -> None:
    library, _, rest = schema.partition("::")
    defined = torch.library.Library(library, "FRAGMENT")
    try:
        defined.define(rest)
        text = f"torch.ops.{library}.{rest.partition('(')[0]}.default"
        assert (admitted(text) is not None) == harmless
    finally:
        defined._destroy()


def test_what_was_found_is_what_was_named() -> None:
    relu = torch.ops.aten.relu
    assert _is_harmless(relu.default, "aten", "relu")
    assert not _is_harmless(relu.default, "aten", "neg")
    assert not _is_harmless(relu, "aten", "relu")
