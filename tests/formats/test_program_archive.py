"""A .pt2 is read without running it: what of its text is refused, and what opens and folds."""

from __future__ import annotations

import copy
import io
import json
import os
import time
import zipfile
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.export import Dim

import bnfold
from bnfold import Opening
from bnfold.archive import content
from bnfold.errors import ModelError, UntrustedError
from bnfold.formats.opening import open_model
from bnfold.formats.pytorch import program_archive
from tests.formats.examples import conv, norm
from tests.formats.networks import Function, trained

Members = dict[str, bytes]
Change = Callable[[Any], None]

QUICK = 5
"""Seconds of the processor's time within which a small file is refused; they take 0.01 to 0.1."""


class Plain(nn.Module):
    """A convolution with a free batch; a buffer and a constant beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.c, self.b = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.register_buffer("k", torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.c(x)) * self.k + torch.full((1,), 2.0)


class Branch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c, self.b = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.b(self.c(x))
        return torch.cond(x.sum() > 0, lambda y: y + 1, lambda y: y * 2, (y,))


def exported(module: nn.Module, *given: torch.Tensor, **how: Any) -> Members:
    program = torch.export.export(trained(module), given, **how)
    return members(program)


def members(program: torch.export.ExportedProgram) -> Members:
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={"notes.txt": "of its maker"})
    with zipfile.ZipFile(buffer) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture(scope="module")
def plain() -> Members:
    free = {"x": {0: Dim("N", min=1, max=64)}}
    return exported(Plain(), torch.randn(3, 3, 8, 9), dynamic_shapes=free)


@pytest.fixture(scope="module")
def branch() -> Members:
    return exported(Branch(), torch.randn(3, 3, 8, 9))


def packed(found: Mapping[str, bytes], path: Path, compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, written in found.items():
            archive.writestr(name, written)
    return path


def name_of(found: Members, part: str) -> str:
    return next(name for name in found if part in name)


def changed(found: Members, change: Change, part: str = "/models/") -> Members:
    """The archive with the JSON of one member changed."""
    name = name_of(found, part)
    entry = json.loads(found[name])
    change(entry)
    return {**found, name: json.dumps(entry).encode()}


def graph(program: Any) -> Any:
    return program["graph_module"]["graph"]


def body(program: Any) -> Any:
    """The graph of the first branch."""
    cond = next(node for node in graph(program)["nodes"] if node["target"].endswith(".cond"))
    return cond["inputs"][1]["arg"]["as_graph"]["graph"]


def calling(target: str, *inputs: Any, within: Callable[[Any], Any] = graph) -> Change:
    """A first node that calls `target`; its inputs are named where they are pairs."""

    def change(program: Any) -> None:
        where = within(program)
        pairs = (each if isinstance(each, tuple) else ("", each) for each in inputs)
        node = {
            "target": target,
            "inputs": [{"name": name, "arg": value, "kind": 1} for name, value in pairs],
            "outputs": [{"as_tensor": {"name": "evil"}}],
            "metadata": {},
            "is_hop_single_tensor_return": True,
            "name": "evil",
        }
        where["nodes"].insert(0, node)
        values = graph(program)["tensor_values"]
        where["tensor_values"]["evil"] = copy.deepcopy(next(iter(values.values())))

    return change


def refused(found: Members, folder: Path, kind: type[ModelError] = UntrustedError) -> str:
    """Opening it is refused at once, and leaves nothing behind; what is said."""
    path = packed(found, folder / "m.pt2")
    before, start = set(os.listdir()), time.thread_time()
    with pytest.raises(kind) as caught:
        open_model(path)
    assert time.thread_time() - start < QUICK
    assert type(caught.value) is kind
    assert set(os.listdir()) == before
    assert len(str(caught.value).splitlines()) == 1
    if kind is UntrustedError:
        assert "--trust" in str(caught.value.hint)
    return str(caught.value)


FILE = (
    ("filename", {"as_string": "mark"}),
    ("shared", {"as_bool": True}),
    ("size", {"as_int": 1000}),
)

SPELLINGS = [
    "torch.ops.aten.from_file.default",
    "torch._ops.ops.aten.from_file.default",
    "torch.functional.torch.ops.aten.from_file.default",
    "torch.nn.functional.torch.ops.aten.from_file.default",
]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


class TestOperators:
    @pytest.mark.parametrize("target", SPELLINGS)
    def test_a_file_by_any_spelling(self, target: str, plain: Members, tmp_path: Path) -> None:
        assert target in refused(changed(plain, calling(target, *FILE)), tmp_path)

    @pytest.mark.parametrize("target", SPELLINGS)
    def test_in_a_branch(self, target: str, branch: Members, tmp_path: Path) -> None:
        said = refused(changed(branch, calling(target, *FILE, within=body)), tmp_path)
        assert target in said

    @pytest.mark.parametrize("target", SPELLINGS)
    def test_handed_to_an_operator_that_calls_it(
        self, target: str, plain: Members, tmp_path: Path
    ) -> None:
        hop = "torch.ops.higher_order.auto_functionalized"
        said = refused(changed(plain, calling(hop, {"as_operator": target}, *FILE)), tmp_path)
        assert target in said

    @pytest.mark.parametrize(
        ("target", "argument"),
        [
            ("torch.os.system", "touch mark"),
            ("torch.ops.load_library", "mark.so"),
            ("torch.load", "mark"),
            ("torch.hub.load", "mark"),
            ("_operator.methodcaller", "mark"),
            ("math.factorial", "9"),
        ],
    )
    def test_functions(self, target: str, argument: str, plain: Members, tmp_path: Path) -> None:
        said = refused(changed(plain, calling(target, {"as_string": argument})), tmp_path)
        assert target in said

    @pytest.mark.parametrize("command", ["inspect", "fold", "verify", "golden", "bench", "export"])
    def test_every_command(
        self, command: str, plain: Members, tmp_path: Path, request: pytest.FixtureRequest
    ) -> None:
        """Exit 3, a sentence, and no file."""
        packed(changed(plain, calling(SPELLINGS[1], *FILE)), tmp_path / "m.pt2")
        packed(plain, tmp_path / "good.pt2")
        more = {"verify": ["good.pt2"], "golden": ["-o", "g"], "export": ["--to", "onnx"]}
        run = request.getfixturevalue("bnfold")  # the package has that name here
        ended = run(command, "m.pt2", *more.get(command, []))
        assert ended.code == 3, ended.err
        assert "operator" in ended.err
        assert {path.name for path in tmp_path.iterdir()} == {"m.pt2", "good.pt2"}

    def test_what_was_loaded_is_looked_at_again(
        self, plain: Members, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Should a text pass that should not: the operator itself is refused."""
        monkeypatch.setattr(program_archive, "check_program", lambda entry: None)
        found = changed(plain, calling(SPELLINGS[0], *FILE))
        assert "aten.from_file.default" in refused(found, tmp_path)


def with_size(text: str) -> Change:
    """The first size of every tensor, and a value of its own."""

    def change(program: Any) -> None:
        size = {"as_expr": {"expr_str": text, "hint": None}}
        for meta in graph(program)["tensor_values"].values():
            meta["sizes"][:1] = [size]
        graph(program)["sym_int_values"]["n"] = size

    return change


def with_symbols(number: str) -> Change:
    def change(program: Any) -> None:
        program["range_constraints"][number] = {"min_val": 1, "max_val": 2}

    return change


def with_arithmetic(target: str, *operands: Any, times: int = 1) -> Change:
    """Nodes that calculate from the size of the input, each from the one before."""

    def change(program: Any) -> None:
        nodes = []
        for i in range(times):
            before = {"as_sym_int": {"as_name": f"n{i}"}}
            arguments = [before if each == "n" else {"as_int": each} for each in operands]
            nodes.append(
                {
                    "target": target,
                    "inputs": [{"name": "", "arg": each, "kind": 1} for each in arguments],
                    "outputs": [{"as_sym_int": {"as_name": f"n{i + 1}"}}],
                    "metadata": {},
                    "is_hop_single_tensor_return": None,
                    "name": f"n{i + 1}",
                }
            )
        graph(program)["nodes"] += nodes

    return change


class TestSizes:
    @pytest.mark.parametrize(
        "text",
        [
            *("9**9**9**9", "2**10000000000", "(9**9**9)//1"),
            *("Integer(9)**Integer(9)**Integer(9)", "Pow(Integer(9), Integer(999999999))"),
            *("factorial(Integer(99999999))", "Symbol('s77').__class__", "s77", "exit()"),
            "Abs(" * 1000 + "Integer(1)" + ")" * 1000,
            "Add(" + ", ".join(["Integer(1)"] * 1000) + ")",
        ],
    )
    def test_formulas(self, text: str, plain: Members, tmp_path: Path) -> None:
        assert "a size is no plain formula" in refused(changed(plain, with_size(text)), tmp_path)

    def test_the_product_of_a_tensors_sizes(self, plain: Members, tmp_path: Path) -> None:
        """Each is short; multiplied out they are not."""
        sums = [f"Add({', '.join(f'Symbol({s!r})' for s in (f's{i}', f't{i}'))})" for i in range(9)]

        def change(program: Any) -> None:
            meta = next(iter(graph(program)["tensor_values"].values()))
            meta["sizes"] = [{"as_expr": {"expr_str": each, "hint": None}} for each in sums]

        assert "too large a formula" in refused(changed(plain, change), tmp_path)

    def test_sizes_that_take_sympy_too_long(self, plain: Members, tmp_path: Path) -> None:
        from tests.formats.test_program_formulas import hard

        def change(program: Any) -> None:
            program["graph_module"]["graph"]["sym_int_values"] |= {
                f"n{i}": {"as_expr": {"expr_str": each, "hint": None}}
                for i, each in enumerate(hard())
            }

        assert "too much for sympy" in refused(changed(plain, change), tmp_path)

    @pytest.mark.parametrize(
        "number",
        [
            "u10000000000",
            "u 10000000000",
            "u1_0000000000",
            "zuf9999999999",
            "u９９９９９９９９９９",
        ],
    )
    def test_numbers_of_symbols(self, number: str, plain: Members, tmp_path: Path) -> None:
        """torch counts up to them."""
        assert "no symbol" in refused(changed(plain, with_symbols(number)), tmp_path)

    def test_the_greatest_number_is_counted_to_in_time(
        self, plain: Members, tmp_path: Path
    ) -> None:
        start = time.thread_time()
        open_model(packed(changed(plain, with_symbols("u999999")), tmp_path / "m.pt2"))
        assert time.thread_time() - start < QUICK

    @pytest.mark.parametrize(
        ("target", "operands", "times"),
        [
            ("_operator.mul", "nn", 30),
            ("_operator.pow", "nn", 1),
            ("_operator.pow", (9, 999999999), 1),
            ("_operator.lshift", (1, 1 << 40), 1),
            ("_operator.lshift", "nn", 1),
            ("_operator.pow", (), 1),
        ],
    )
    def test_arithmetic_that_grows(
        self, target: str, operands: Any, times: int, plain: Members, tmp_path: Path
    ) -> None:
        change = with_arithmetic(target, *operands, times=times)
        assert "beyond measure" in refused(changed(plain, change), tmp_path)

    @pytest.mark.parametrize("axes", ["sizes", "strides"])
    def test_too_many_axes(self, axes: str, plain: Members, tmp_path: Path) -> None:
        def change(program: Any) -> None:
            meta = next(iter(graph(program)["tensor_values"].values()))
            meta[axes] = [{"as_int": 1}] * 65

        assert "a tensor has 65 axes" in refused(changed(plain, change), tmp_path, ModelError)


CODE = "__import__('os').mkdir('mark')"
BREAKS_OUT = f'a"), {CODE}, ("'


def signature(program: Any) -> Any:
    return program["graph_module"]["module_call_graph"][0]["signature"]


def with_spec(part: str, kind: str, context: Any) -> Change:
    def change(program: Any) -> None:
        spec = {"type": kind, "context": context, "children_spec": []}
        signature(program)[part] = json.dumps([1, spec])

    return change


def with_keyword(name: str) -> Change:
    """A keyword argument: what a plain text may say as the key of a dict, no function takes."""

    def change(program: Any) -> None:
        kinds = {"builtins.tuple": "null", "builtins.dict": json.dumps([name])}
        given = [{"type": k, "context": c, "children_spec": []} for k, c in kinds.items()]
        spec = {"type": "builtins.tuple", "context": "null", "children_spec": given}
        signature(program)["in_spec"] = json.dumps([1, spec])

    return change


def setting(*path: Any) -> Change:
    """A change of the entry at the end of a path; its last member is the value."""

    def change(program: Any) -> None:
        *keys, last, value = path
        for key in keys:
            program = program[key]
        if callable(value):
            value = value(program[last])
        program[last] = value

    return change


GRAPH = ("graph_module", "graph")
SPECS = ("graph_module", "signature", "input_specs", 0, "parameter")

TEXTS: dict[str, Change] = {
    "a guard": setting("guards_code", [f"L['x'].size()[0] == {CODE}"]),
    "a guard that calls": setting("guards_code", ["L['x'].storage().share_memory_()"]),
    "a guard that grows": setting("guards_code", ["L['x'].size()[0] == 9**9**9"]),
    "the name of an argument": lambda p: setting("forward_arg_names", [f"x={CODE}"])(signature(p)),
    "a keyword as an argument": lambda p: setting("forward_arg_names", ["class"])(signature(p)),
    "the name of an input": setting(*GRAPH, "inputs", -1, "as_tensor", "name", f"x={CODE}"),
    "the name of a node": setting(*GRAPH, "nodes", 0, "name", f"x={CODE}"),
    "a name with a dot": setting(*GRAPH, "nodes", 0, "name", "self.x"),
    "torch as a name": setting(*GRAPH, "nodes", 0, "name", "torch"),
    "a dunder as a name": setting(*GRAPH, "nodes", 0, "name", "__import__"),
    "the name of a result": setting(*GRAPH, "nodes", 0, "outputs", 0, "as_tensor", "name", CODE),
    "the name of a keyword": setting(*GRAPH, "nodes", 0, "inputs", 0, "name", f"x={CODE}"),
    "a key of values": setting(*GRAPH, "tensor_values", lambda v: {**v, CODE: v["conv2d"]}),
    "a device": setting(*GRAPH, "tensor_values", "conv2d", "device", "type", CODE),
    "the path of a parameter": setting(*SPECS, "parameter_name", BREAKS_OUT),
    "a class as the path of a parameter": setting(*SPECS, "parameter_name", "__class__.x"),
    "the path of a module": setting("graph_module", "module_call_graph", 0, "fqn", BREAKS_OUT),
    "the path that a node comes from": setting(
        *GRAPH, "nodes", 0, "metadata", "nn_module_stack", f"k,{BREAKS_OUT},torch.nn.Conv2d"
    ),
    "the function that a node comes from": setting(
        *GRAPH, "nodes", 0, "metadata", "source_fn_stack", "f,torch.__builtins__.x"
    ),
    "texts": setting(*GRAPH, "nodes", 0, "inputs", 0, "arg", {"as_strings": [BREAKS_OUT]}),
    "a constant input": setting(*GRAPH, "inputs", -1, {"as_string": f"' + {CODE} + '"}),
    "a constant in the signature": setting(
        *("graph_module", "signature", "input_specs", 0),
        {"constant_input": {"name": "a", "value": {"as_string": f"' + {CODE} + '"}}},
    ),
    "the key of an input": with_spec("in_spec", "builtins.dict", json.dumps([BREAKS_OUT])),
    "a keyword argument": with_keyword("a = print(1)"),
    "a keyword as a keyword argument": with_keyword("class"),
    "an enumeration as a key": with_spec(
        "in_spec",
        "builtins.dict",
        json.dumps([{"__enum__": 1, "fqn": "antigravity:X", "name": "x"}]),
    ),
    "a class of values": with_spec(
        "out_spec",
        "collections.defaultdict",
        {
            "default_factory_module": "antigravity",
            "default_factory_name": "x",
            "dict_context": [],
        },
    ),
    "a builtin that runs": with_spec(
        "out_spec",
        "collections.defaultdict",
        {"default_factory_module": "builtins", "default_factory_name": "eval", "dict_context": []},
    ),
    "the class of a tuple": with_spec("in_spec", "collections.namedtuple", f"x={CODE}"),
    "an object": setting(
        *("graph_module", "graph", "custom_obj_values"),
        {"o": {"name": "o", "class_fqn": "__torch__.Evil"}},
    ),
    "a version": setting("torch_version", CODE),
    "a verifier": setting("verifiers", [CODE]),
}


class TestTexts:
    @pytest.mark.parametrize("change", TEXTS.values(), ids=TEXTS)
    def test_what_could_become_code(self, change: Change, plain: Members, tmp_path: Path) -> None:
        refused(changed(plain, change), tmp_path)

    def test_names_of_weights(self, plain: Members, tmp_path: Path) -> None:
        def change(payloads: Any) -> None:
            payloads["config"][BREAKS_OUT] = payloads["config"].pop("c.weight")

        refused(changed(plain, change, "weights_config"), tmp_path)

    @pytest.mark.parametrize(
        "change",
        [
            setting("guards_code", 7),
            setting("guards_code", [["L"]]),
            setting("schema_version", "major", "8"),
            setting(*GRAPH, "nodes", 0, []),
            setting(*GRAPH, "nodes", 0, "inputs", 0, "arg", {"as_int": 1, "as_bool": True}),
            setting(*GRAPH, "nodes", 0, "inputs", 0, "arg", {"as_nothing": 1}),
            setting(*GRAPH, "nodes", 0, "inputs", 0, "arg", {"as_int": True}),
            setting(*GRAPH, "nodes", 0, "inputs", 0, "arg", {"as_int": 1 << 64}),
            setting(*GRAPH, "nodes", 0, "inputs", 0, "arg", {"as_int": "os.system"}),
            setting(*GRAPH, "nodes", 0, "inputs", 0, "arg", {"as_float": "os.system"}),
            setting(*GRAPH, "nodes", 0, "inputs", 0, "arg", {"as_bool": "os.system"}),
            setting(*GRAPH, "tensor_values", "conv2d", "dtype", 99),
            setting(*GRAPH, "tensor_values", "conv2d", "sizes", [{"as_int": "9"}]),
            setting("range_constraints", {"s77": {"min_val": "9**9", "max_val": None}}),
            setting(
                *(*GRAPH, "nodes", 0, "metadata", "from_node"),
                '[{"from_node": ' * 200 + "[]" + "}]" * 200,
            ),
            lambda p: signature(p).update(in_spec="[1, "),
            lambda p: signature(p).update(in_spec="[1, 7]"),
            lambda p: graph(p)["nodes"][0].pop("outputs"),
        ],
    )
    def test_what_is_not_as_torch_writes_it(
        self, change: Change, plain: Members, tmp_path: Path
    ) -> None:
        refused(changed(plain, change), tmp_path, ModelError)

    def test_structures_that_nest_without_end(self, plain: Members, tmp_path: Path) -> None:
        spec: Any = {"type": None, "context": None, "children_spec": []}
        for _ in range(300):
            spec = {"type": "builtins.list", "context": "null", "children_spec": [spec]}
        found = changed(plain, lambda p: signature(p).update(in_spec=json.dumps([1, spec])))
        assert "levels deep" in refused(found, tmp_path, ModelError)

    def test_json_that_nests_without_end(self, plain: Members, tmp_path: Path) -> None:
        name = name_of(plain, "/models/")
        refused({**plain, name: b"[" * 1_000_000}, tmp_path, ModelError)

    def test_texts_that_are_data(self, plain: Members, tmp_path: Path) -> None:
        """Messages, comments, and what the schema does not know."""

        def change(program: Any) -> None:
            node = graph(program)["nodes"][0]
            node["metadata"]["stack_trace"] = f'File "a b.py"\n  {CODE}'
            node["metadata"]["custom"] = json.dumps({"said": CODE})
            program["of a later version"] = CODE

        open_model(packed(changed(plain, change), tmp_path / "m.pt2"))


class TestTensors:
    def payload(self, **given: Any) -> Change:
        return lambda payloads: payloads["config"]["c.weight"].update(given)

    def meta(self, **given: Any) -> Change:
        return lambda payloads: payloads["config"]["c.weight"]["tensor_meta"].update(given)

    @pytest.mark.parametrize(
        "given",
        [
            {"sizes": [{"as_int": 1 << 50}] * 2, "strides": [{"as_int": 0}] * 2},
            {"sizes": [{"as_int": 1 << 50}] * 4},
            {"sizes": [{"as_int": 4}, {"as_int": 3}, {"as_int": 3}, {"as_int": 4}]},
            {"sizes": [{"as_int": -4}] * 4},
            {"strides": [{"as_int": -1}] * 4},
            {"storage_offset": {"as_int": 1}},
            {"storage_offset": {"as_int": 1 << 60}},
            {"dtype": 9999},
            {"sizes": [{"as_expr": {"expr_str": "Symbol('s0')", "hint": None}}] * 4},
            {"device": {"type": "nowhere", "index": None}},
        ],
    )
    def test_sizes_are_those_of_the_record(
        self, given: Any, plain: Members, tmp_path: Path
    ) -> None:
        refused(changed(plain, self.meta(**given), "weights_config"), tmp_path, ModelError)

    @pytest.mark.parametrize("name", ["nowhere", "../weights/weight_0", "/etc/passwd"])
    def test_records_are_those_of_the_archive(
        self, name: str, plain: Members, tmp_path: Path
    ) -> None:
        found = changed(plain, self.payload(path_name=name), "weights_config")
        refused(found, tmp_path, ModelError)

    def test_tensors_that_share_memory_still_do(self, plain: Members, tmp_path: Path) -> None:
        def change(payloads: Any) -> None:
            payloads["config"]["b.bias"]["path_name"] = payloads["config"]["b.weight"]["path_name"]

        model: Any = open_model(
            packed(changed(plain, change, "weights_config"), tmp_path / "m.pt2")
        )
        weight, bias = (model.native.state_dict[f"b.{name}"] for name in ("weight", "bias"))
        assert weight.data_ptr() == bias.data_ptr()


class Payload:
    def __reduce__(self) -> Any:
        return os.mkdir, ("mark",)


def pickled(entry: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(entry, buffer)
    return buffer.getvalue()


class TestPickles:
    def test_sample_inputs(self, plain: Members, tmp_path: Path) -> None:
        name = name_of(plain, "sample_inputs")
        said = refused({**plain, name: pickled(((Payload(),), {}))}, tmp_path)
        assert "mkdir" in said

    @pytest.mark.parametrize("kind", ["weights", "constants"])
    def test_a_folder_without_a_list(self, kind: str, plain: Members, tmp_path: Path) -> None:
        listed = name_of(plain, f"{kind}_config")
        rest = {name: written for name, written in plain.items() if name != listed}
        older = f"archive/data/{kind}/model.pt"
        assert "mkdir" in refused({**rest, older: pickled({"c.weight": Payload()})}, tmp_path)

    def test_a_weight(self, plain: Members, tmp_path: Path) -> None:
        found = changed(
            plain, lambda p: p["config"]["c.weight"].update(use_pickle=True), "weights_config"
        )
        place = json.loads(plain[name_of(plain, "weights_config")])["config"]["c.weight"]
        name = f"archive/data/weights/{place['path_name']}"
        assert "mkdir" in refused({**found, name: pickled(Payload())}, tmp_path)
        refused({**found, name: pickled([1])}, tmp_path, ModelError)

    @pytest.mark.parametrize("kind", ["weights", "constants", "sample_inputs"])
    def test_bytes_that_torch_would_unpickle(
        self, kind: str, plain: Members, tmp_path: Path
    ) -> None:
        within = pickled(pickled({"c.weight": Payload()}))
        rest = {n: written for n, written in plain.items() if f"{kind}_config" not in n}
        refused({**rest, f"archive/data/{kind}/model.pt": within}, tmp_path, ModelError)

    @pytest.mark.parametrize("entry", [7, "text", [1]])
    def test_what_is_no_arguments(self, entry: Any, plain: Members, tmp_path: Path) -> None:
        refused({**plain, name_of(plain, "sample_inputs"): pickled(entry)}, tmp_path, ModelError)

    def test_an_archive_in_the_archive_that_unpacks_to_more(
        self, plain: Members, tmp_path: Path
    ) -> None:
        inner = io.BytesIO()
        with zipfile.ZipFile(inner, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("m/data.pkl", b"\x80\x02).")
            archive.writestr("m/data/0", bytes(200 << 20))
        found = {**plain, name_of(plain, "sample_inputs"): inner.getvalue()}
        assert "more than its own size explains" in refused(found, tmp_path, ModelError)


class TestMembers:
    @pytest.mark.parametrize("name", ["models/other.txt", "MODELS/x.json", "models/model.json.x"])
    def test_a_second_program(self, name: str, plain: Members, tmp_path: Path) -> None:
        refused({**plain, f"archive/{name}": b"{}"}, tmp_path, ModelError)

    @pytest.mark.parametrize(
        "name",
        [
            *("data/aotinductor/model/x.so", "data/constants/custom_obj_0"),
            *("data/constants/OPAQUE_OBJ_0", "Data/AOTInductor/model/x.json"),
        ],
    )
    def test_code_and_objects(self, name: str, plain: Members, tmp_path: Path) -> None:
        assert name in refused({**plain, f"archive/{name}": b""}, tmp_path)

    @pytest.mark.parametrize("name", ["archive_format", "archive_version"])
    def test_another_format(self, name: str, plain: Members, tmp_path: Path) -> None:
        refused({**plain, f"archive/{name}": b"x"}, tmp_path, ModelError)

    def test_another_compression(self, plain: Members, tmp_path: Path) -> None:
        path = packed(plain, tmp_path / "m.pt2", zipfile.ZIP_BZIP2)
        with pytest.raises(ModelError, match="compressed in another way"):
            open_model(path)

    def test_a_member_is_unpacked_to_its_size_and_no_further(self, tmp_path: Path) -> None:
        """The header says 9 bytes, of 100 MB."""
        path = tmp_path / "m.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("large", bytes(100 << 20))
        raw = path.read_bytes()
        path.write_bytes(raw.replace((100 << 20).to_bytes(4, "little"), (9).to_bytes(4, "little")))
        with zipfile.ZipFile(path) as archive, pytest.raises(zipfile.BadZipFile):
            content(archive, "large")

    def test_a_member_that_ends_before_its_size_is_damaged(self, tmp_path: Path) -> None:
        """zipfile itself takes it for whole: the checksum is that of what is there."""
        path = tmp_path / "m.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("short", bytes(70_001))
        raw = path.read_bytes()
        path.write_bytes(
            raw.replace((70_001).to_bytes(4, "little"), (99_999).to_bytes(4, "little"))
        )
        with zipfile.ZipFile(path) as archive, pytest.raises(zipfile.BadZipFile, match="header"):
            content(archive, "short")

    def test_extra_files_are_kept(self, plain: Members, tmp_path: Path) -> None:
        open_model(packed(plain, tmp_path / "m.pt2")).save(tmp_path / "again.pt2")
        with zipfile.ZipFile(tmp_path / "again.pt2") as archive:
            name = next(name for name in archive.namelist() if name.endswith("extra/notes.txt"))
            assert archive.read(name) == b"of its maker"

    def test_trust_leaves_it_to_torch(self, plain: Members, tmp_path: Path) -> None:
        path = packed(
            {**plain, name_of(plain, "sample_inputs"): pickled(((Payload(),), {}))},
            tmp_path / "m.pt2",
        )
        open_model(path, Opening(trust=True))
        assert Path("mark").is_dir()


def older(found: Members) -> Members:
    """As torch wrote it before 2.8: four members, the tensors pickled."""
    state, constants = (
        {name: _stored(found, kind, entry) for name, entry in json.loads(text)["config"].items()}
        for kind in ("weights", "constants")
        for text in [found[name_of(found, f"{kind}_config")]]
    )
    return {
        "version": b"8.20",
        "serialized_exported_program.json": found[name_of(found, "/models/")],
        "serialized_state_dict.pt": pickled(state),
        "serialized_constants.pt": pickled(constants),
        "serialized_example_inputs.pt": found[name_of(found, "sample_inputs")],
        "extra_files/notes.txt": b"of its maker",
    }


def _stored(found: Members, kind: str, entry: Any) -> torch.Tensor:
    raw = bytearray(found[f"archive/data/{kind}/{entry['path_name']}"])
    integers = entry["tensor_meta"]["dtype"] == 5
    flat = torch.frombuffer(raw, dtype=torch.int64 if integers else torch.float32)
    tensor = flat.reshape([size["as_int"] for size in entry["tensor_meta"]["sizes"]])
    return nn.Parameter(tensor) if entry["is_param"] else tensor


class TestOlderFormat:
    def test_it_folds(self, plain: Members, tmp_path: Path) -> None:
        path = packed(older(plain), tmp_path / "m.pt2")
        assert torch.export.load(path).graph_signature
        result = bnfold.fold(path)
        assert result.passed
        assert result.plan.batchnorms.folded == 1

    @pytest.mark.parametrize(
        "change",
        [calling(SPELLINGS[1], *FILE), with_size("9**9**9**9"), TEXTS["a guard"]],
        ids=["operator", "size", "guard"],
    )
    def test_the_same_is_refused(self, change: Change, plain: Members, tmp_path: Path) -> None:
        refused(changed(older(plain), change, "exported_program"), tmp_path)

    @pytest.mark.parametrize("kind", ["state_dict", "constants", "example_inputs"])
    def test_pickles(self, kind: str, plain: Members, tmp_path: Path) -> None:
        found = {**older(plain), f"serialized_{kind}.pt": pickled({"c.weight": Payload()})}
        assert "mkdir" in refused(found, tmp_path)


class Loop(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c, self.b = conv(), norm()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        from torch._higher_order_ops.while_loop import while_loop

        y = self.b(self.c(x))
        again = while_loop(lambda i, y: i < 3, lambda i, y: (i + 1, y * 2), (torch.tensor(0), y))
        return again[1]


class Structured(nn.Module):
    """Inputs and outputs by keys that are no identifiers, and of many kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.c, self.b = conv(), norm()

    def forward(self, d: Any, mode: str = "a", *, scale: float = 2.0, mask: Any = None) -> Any:
        y = self.b(self.c(d["x y"])) * scale
        by_key: Any = defaultdict(list)
        by_key["größe"] = y
        return OrderedDict(first=[y, (d["l"][0], None)], second=by_key)


class Odd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        for name in ("block1-0", "0", "a b", "größe"):
            self.add_module(name, nn.Sequential(conv(3, 3, 1), norm(3)))

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        for block in self.children():
            input = torch.relu(block(input))
        return input


class Words(nn.Module):
    """Embedding, attention, layer norm: free batch and length."""

    def __init__(self) -> None:
        super().__init__()
        self.e = nn.Embedding(10, 8)
        self.l = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.c, self.b = nn.Conv1d(8, 6, 1), nn.BatchNorm1d(6)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.b(self.c(self.l(self.e(ids)).transpose(1, 2)))


class Counted(nn.Module):
    """Sizes that depend on values, with checks that tell."""

    def __init__(self) -> None:
        super().__init__()
        self.c, self.b = nn.Conv1d(1, 6, 3), nn.BatchNorm1d(6)

    def forward(self, x: torch.Tensor) -> Any:
        n = x.abs().max().int().item()
        torch._check(n >= 2)
        torch._check(n < 100)
        y = self.b(self.c(x.reshape(1, 1, -1)))
        return y, torch.zeros(n) + 1, x[x > 0]


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.l, self.g = nn.LSTM(4, 6, batch_first=True, bidirectional=True), nn.GRU(4, 12)
        self.c, self.b = nn.Conv1d(12, 6, 1), nn.BatchNorm1d(6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.c((self.l(x)[0] + self.g(x)[0]).transpose(1, 2)))


def pyramid(m: Any, x: torch.Tensor) -> Any:
    y = m.b(m.c(nn.functional.pad(x, (1, 2, 3, 4))))
    small = nn.functional.max_pool2d(y, 3, 2, 1, ceil_mode=True)
    up = nn.functional.interpolate(small, size=y.shape[2:], mode="bilinear")
    return up + y, nn.functional.adaptive_avg_pool2d(y, (3, 3)), y.flatten(2).sum(-1)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c, self.b = conv(3, 6, 1), norm()

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Any:
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.b(self.c(mixed)), torch.einsum("bhid,bhjd->bhij", q, k)


FREE = Dim.AUTO
IMAGE = (torch.randn(2, 3, 16, 18),)

NETWORKS: dict[str, Callable[[], Members]] = {
    "convolution": lambda: exported(
        nn.Sequential(conv(), norm(), nn.ReLU()),
        *IMAGE,
        dynamic_shapes=({0: Dim("N", min=1, max=64), 2: Dim("H", min=4, max=512), 3: FREE},),
    ),
    "derived sizes": lambda: exported(
        nn.Sequential(conv(), norm()),
        *IMAGE,
        dynamic_shapes=({3: 2 * Dim("half", min=4, max=200)},),
    ),
    "pyramid": lambda: exported(
        Function(pyramid, c=conv(), b=norm()),
        *IMAGE,
        dynamic_shapes=({0: FREE, 2: FREE, 3: FREE},),
    ),
    "attention": lambda: exported(Attention(), *torch.randn(3, 2, 3, 4, 5)),
    "words": lambda: exported(
        Words(), torch.randint(0, 9, (2, 5)), dynamic_shapes=({0: Dim.DYNAMIC, 1: Dim.DYNAMIC},)
    ),
    "branches": lambda: exported(Branch(), *IMAGE, dynamic_shapes=({0: Dim("N", max=64)},)),
    "loop": lambda: exported(Loop(), *IMAGE),
    "counted": lambda: exported(Counted(), torch.tensor([3.0, -1.0, 0.5, 7.0])),
    "recurrent": lambda: exported(Recurrent(), torch.randn(2, 3, 4)),
    "odd names": lambda: exported(Odd(), torch.randn(2, 3, 4, 5)),
    "structured": lambda: exported(
        Structured(),
        {"x y": IMAGE[0], "l": [torch.ones(1)]},
        kwargs={"scale": 3.0},
    ),
    "decomposed": lambda: members(
        torch.export.export(trained(Words()), (torch.randint(0, 9, (2, 5)),)).run_decompositions()
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_open_as_torch_opens_them_and_fold(name: str, tmp_path: Path) -> None:
    path = packed(NETWORKS[name](), tmp_path / "m.pt2")
    model: Any = open_model(path)
    ours, theirs = model.native, torch.export.load(path)
    assert str(ours.graph) == str(theirs.graph)
    assert ours.graph_signature == theirs.graph_signature
    assert ours.call_spec == theirs.call_spec
    assert str(ours.range_constraints) == str(theirs.range_constraints)
    assert ours._guards_code == theirs._guards_code
    for one, other in (
        (ours.state_dict, theirs.state_dict),
        (ours.constants, theirs.constants),
    ):
        assert list(one) == list(other)
        for key, tensor in one.items():
            assert type(tensor) is type(other[key])
            assert tensor.stride() == other[key].stride()
            np.testing.assert_array_equal(tensor.detach().numpy(), other[key].detach().numpy())
    if name != "derived sizes":  # which torch itself cannot decompose again, once loaded
        assert bnfold.fold(path, verify=False).plan.batchnorms.folded >= 1


def test_a_folded_program_is_one_that_opens(tmp_path: Path) -> None:
    path = packed(NETWORKS["pyramid"](), tmp_path / "m.pt2")
    result = bnfold.fold(path, "2x3x16x18")
    assert result.passed
    result.save(tmp_path / "folded.pt2")
    assert bnfold.verify(path, tmp_path / "folded.pt2", "2x3x16x18").passed
