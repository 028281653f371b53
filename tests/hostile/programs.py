"""Exported programs (.pt2): operators by any spelling, formulas, names, pickles within, sizes."""

from __future__ import annotations

import copy
import functools
import json
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tests.hostile.case import HARMLESS, OPENED, REFUSED, RUN, RUNNING, TORCH, Corpus
from tests.hostile.payload import EXPRESSION, MARK, NAMES, joined
from tests.hostile.pickles import OPERATIONS

CORPUS = Corpus("program", TORCH)

STATIC = tuple(command for command in TORCH if command != "export torchscript")
"""Without what no program of free sizes goes through, however harmless it is."""

Members = dict[str, bytes]
Json = dict[str, Any]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c, self.b = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.b(self.c(x))
        return y.reshape(x.shape[0] * 2, -1) + torch.full((1,), 2.0)


@functools.cache
def archive() -> Members:
    """The members of a small program with a free batch."""
    batch = {"x": {0: torch.export.Dim("N", min=1, max=64)}}
    program = torch.export.export(Net().eval(), (torch.zeros(2, 3, 8, 8),), dynamic_shapes=batch)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.pt2"
        torch.export.save(program, path)
        with zipfile.ZipFile(path) as members:
            return {name: members.read(name) for name in members.namelist()}


MODEL = "m/models/model.json"


def older(members: Members) -> Members:
    """The same in the archive of torch before 2.8."""
    weights = {
        name: torch.zeros([size["as_int"] for size in entry["tensor_meta"]["sizes"]])
        for name, entry in json.loads(members["m/data/weights/model_weights_config.json"])[
            "config"
        ].items()
    }
    with tempfile.TemporaryDirectory() as folder:
        torch.save(weights, Path(folder) / "w")
        torch.save({}, Path(folder) / "c")
        torch.save(((torch.zeros(2, 3, 8, 8),), {}), Path(folder) / "s")
        files = {name: (Path(folder) / name).read_bytes() for name in "wcs"}
    return {
        "serialized_exported_program.json": members[MODEL],
        "serialized_state_dict.pt": files["w"],
        "serialized_constants.pt": files["c"],
        "serialized_example_inputs.pt": files["s"],
        "version": b"8.20",
    }


def changed(change: Callable[[Json], None], old: bool = False) -> Callable[[Path], Path]:
    """The program with its description changed."""

    def make(folder: Path) -> Path:
        members = dict(archive())
        description = json.loads(members[MODEL])
        change(description)
        members[MODEL] = json.dumps(description).encode()
        return joined(older(members) if old else members, folder / "m.pt2")

    return make


def with_members(old: bool = False, **more: bytes | None) -> Callable[[Path], Path]:
    """The program with members put in place of others; None takes one out."""

    def make(folder: Path) -> Path:
        members = older(archive()) if old else dict(archive())
        for name, content in more.items():
            if content is None:
                members.pop(name)
            else:
                members[name] = content
        return joined(members, folder / "m.pt2")

    return make


def replaced(before: str, after: str, old: bool = False) -> Callable[[Path], Path]:
    """The program with a text in its description replaced everywhere."""

    def change(description: Json) -> None:
        text = json.dumps(description)
        assert before in text, before
        changed_text = text.replace(before, after)
        description.clear()
        description.update(json.loads(changed_text))

    return changed(change, old)


def calling(target: str, **arguments: Json) -> Callable[[Json], None]:
    """A node that calls `target` before all others."""

    def change(description: Json) -> None:
        graph = description["graph_module"]["graph"]
        graph["nodes"].insert(
            0,
            {
                "target": target,
                "inputs": [{"name": k, "arg": v, "kind": 1} for k, v in arguments.items()],
                "outputs": [{"as_tensor": {"name": "evil"}}],
                "metadata": {},
                "is_hop_single_tensor_return": True,
                "name": "evil",
            },
        )
        values = graph["tensor_values"]
        values["evil"] = copy.deepcopy(next(iter(values.values())))

    return change


FILE = {
    "filename": {"as_string": MARK},
    "shared": {"as_bool": True},
    "size": {"as_int": 1000},
}
SPELLINGS = (
    "torch.ops.aten.from_file.default",
    "torch._ops.ops.aten.from_file.default",
    "torch.functional.torch.ops.aten.from_file.default",
    "torch.nn.functional.torch.ops.aten.from_file.default",
    "torch._C._VariableFunctions.from_file",
    "torch.from_file",
    "torch.ops.aten.from_file",
    "torch.ops.aten.from_file.out",
    "torch.ops._dir.__class__",
    "torch.UntypedStorage.from_file",
)
for spelling in SPELLINGS:
    short = spelling.startswith(("torch.ops.aten.from_file.default", "torch._ops"))
    CORPUS.add(
        f"{spelling} as an operator",
        changed(calling(spelling, **FILE)),
        commands=TORCH if short else OPENED,
    )
TEXT = {"as_string": MARK}
CALLS: dict[str, Json] = {
    "torch.os.system": {"command": {"as_string": f"touch {MARK}"}},
    "torch.sys.modules.__getitem__": {"key": TEXT},
    "torch.ops.load_library": {"path": TEXT},
    "torch._C._jit_set_bailout_depth": {"depth": {"as_int": 1}},
    "torch.load": {"f": TEXT},
    "torch.hub.load": {"repo_or_dir": TEXT, "model": TEXT},
    "torch.jit.load": {"f": TEXT},
    "torch.classes.load_library": {"path": TEXT},
    "torch.set_num_threads": {"int": {"as_int": 99}},
    "torch.manual_seed": {"seed": {"as_int": 99}},
    "torch.serialization.add_safe_globals": {"safe_globals": TEXT},
    "torch._dynamo.config.patch": {"a": TEXT},
    "torch.compile": {"model": TEXT},
    "torch.ops.debugprims.load_tensor.default": {"fname": TEXT},
    "torch.ops.aten.save.default": {"item": TEXT, "filename": TEXT},
    "torch.ops.profiler._record_function_enter_new.default": {"name": TEXT},
    "torch.ops.aten._print.default": {"s": TEXT},
    "torch.ops.aten.data_ptr": {"self": TEXT},
    "torch.ops.inductor._alloc_from_pool.default": {"base": TEXT},
    "torch.ops.c10d.barrier.default": {"tensor": TEXT},
    "torch.ops.higher_order.triton_kernel_wrapper_functional": {"kernel_idx": {"as_int": 0}},
    "torch.ops.higher_order.run_with_rng_state": {"state": TEXT},
    "torch.ops.nowhere.nothing.default": {"self": TEXT},
    "_operator.attrgetter": {"attr": {"as_string": "__class__"}},
    "_operator.methodcaller": {"name": {"as_string": "numpy"}},
    "_operator.__builtins__.__getitem__": {"key": {"as_string": "exec"}},
    "math.factorial": {"x": {"as_int": 10_000_000}},
    "math.__loader__.load_module": {"name": {"as_string": "antigravity"}},
    "#nowhere:op": {"x": TEXT},
    "os.system": {"command": {"as_string": f"touch {MARK}"}},
    "builtins.eval": {"x": {"as_string": EXPRESSION}},
}
for target, arguments in CALLS.items():
    CORPUS.add(
        f"{target} as an operator",
        changed(calling(target, **arguments)),
        commands=TORCH if target == "torch.os.system" else OPENED,
    )
CORPUS.add(
    "torch.os.system as an operator, older",
    changed(calling("torch.os.system", **CALLS["torch.os.system"]), old=True),
)
CORPUS.add(
    "an empty tensor of 40 GB",
    changed(
        calling(
            "torch.ops.aten.ones.default",
            size={"as_ints": [100_000, 100_000]},
        )
    ),
    commands=RUN,
    codes=RUNNING,
)

SYMBOL = "Symbol('s77', positive=True, integer=True)"
FORMULAS = (
    "9**9**9**9",
    "2**10000000000",
    "Integer(9)**Integer(9)**Integer(9)",
    "Pow(Integer(9), Pow(Integer(9), Integer(9)))",
    "(9**9**9)//1",
    "9" * 100_000,
    "(" * 500 + "1" + ")" * 500,
    "-" * 20_000 + "1",
    "1+" * 20_000 + "1",
    EXPRESSION,
    "Integer(1).__class__",
    "Symbol('a', positive=__import__('os').mkdir('mark'))",
    "Factorial(Integer(10)**9)",
    "Sum(Integer(1), (Symbol('i'), 1, 10**12))",
    "Lambda(x, x)",
    "factorial(10**8)",
    "FloorDiv(Integer(1), Integer(0))",
    "Mod(Integer(10)**Integer(100000000), Integer(7))",
    "Max(*range(10**9))",
    "{1: 2}",
    "'" + "a" * 50 + "'",
    "oo",
    "nan",
    "1e999999999",
    "Float('1e-999999999', 1000000)",
    "Rational(1, 0)",
)
for i, formula in enumerate(FORMULAS):
    CORPUS.add(
        f"a size of {formula[:40]}",
        replaced(SYMBOL, formula.replace('"', '\\"'), old=i == 3),
        commands=TORCH if i == 0 else OPENED,
    )


def guarded(guard: str) -> Callable[[Json], None]:
    def change(description: Json) -> None:
        description["guards_code"] = [guard]

    return change


GUARDS = (
    f"L['x'].size()[0] == {EXPRESSION}",
    "L['x'].storage().share_memory_()",
    "L['x'].size()[0] == 9**9**9**9",
    "L['x'].size()[0] == 1 " + "and 1 " * 50_000,
    "(" * 300 + "1" + ")" * 300,
    "L['x'].size()[0] == 'a' * 10**11",
    "True\nimport antigravity",
    "[L for L in range(10**12)]",
    "L['" + "n" * 100_000 + "'].size()[0] == 1",
)
for guard in GUARDS:
    CORPUS.add(
        f"a guard: {guard[:50]!r}",
        changed(guarded(guard)),
        commands=OPENED,
        codes=HARMLESS if "'nnn" in guard else (2, 3),
    )


def spec(**context: Any) -> Callable[[Json], None]:
    def change(description: Json) -> None:
        signature = description["graph_module"]["module_call_graph"][0]["signature"]
        entry = {"type": "builtins.tuple", "context": json.dumps(context), "children_spec": []}
        signature["in_spec"] = json.dumps([1, entry])

    return change


def spec_text(text: str) -> Callable[[Json], None]:
    def change(description: Json) -> None:
        description["graph_module"]["module_call_graph"][0]["signature"]["in_spec"] = text

    return change


def named_tuple(description: Json) -> None:
    description["treespec_namedtuple_fields"] = {EXPRESSION: {"field_names": ["a b", "class"]}}


def at(*path: Any, value: Any) -> Callable[[Json], None]:
    """Something else at a place in the description."""

    def change(description: Json) -> None:
        *way, last = path
        place: Any = description
        for key in way:
            place = place[key]
        place[last] = value

    return change


GRAPH = ("graph_module", "graph")
META: Json = {"dtype": 7, "sizes": [{"as_int": 1 << 62}], "requires_grad": False,
              "device": {"type": "cpu", "index": None}, "strides": [{"as_int": -1}],
              "storage_offset": {"as_int": 1 << 62}, "layout": 7}  # fmt: skip
CHANGES: dict[str, Callable[[Json], None]] = {
    "an enum to import": spec(__enum__=True, fqn="antigravity:X", name="x"),
    "a factory to import": spec(
        default_factory_module="antigravity", default_factory_name="x"
    ),
    "inputs nested 10,000 deep": spec_text("[" * 10_000 + "]" * 10_000),
    "a schema of another version": at("schema_version", "major", value=10**30),
    "an opset that is a text": at("opset_version", "aten", value=EXPRESSION),
    "a range without end": at("range_constraints", "s77", value={"min_val": 1, "max_val": 10**400}),
    "a range that is empty": at("range_constraints", "s77", value={"min_val": 9, "max_val": 1}),
    "an input of 2^62": at(*GRAPH, "tensor_values", "x", value=META),
    "a type that does not exist": at(*GRAPH, "tensor_values", "x", "dtype", value=99),
    "a device that does not exist": at(
        *GRAPH, "tensor_values", "x", "device", "type", value="file:///x"
    ),
    "no nodes": at(*GRAPH, "nodes", value=[]),
    "outputs that nothing gives": at(*GRAPH, "outputs", value=[{"as_tensor": {"name": "no"}}]),
    "a graph that is a number": at("graph_module", "graph", value=3),
    "nodes that read what comes later": lambda d: d["graph_module"]["graph"]["nodes"].reverse(),
    "nodes of one name": lambda d: d["graph_module"]["graph"]["nodes"].append(
        copy.deepcopy(d["graph_module"]["graph"]["nodes"][1])
    ),
    "an epsilon of -1": lambda d: at("inputs", 7, "arg", "as_float", value=-1e9)(
        d["graph_module"]["graph"]["nodes"][2]
    ),
    "a parameter that is not there": at(
        "graph_module", "signature", "input_specs", 0, "parameter", "parameter_name", value="no"
    ),
}  # fmt: skip
CORPUS.add("a named tuple of its own", changed(named_tuple), commands=OPENED, codes=HARMLESS)
for what, change in CHANGES.items():
    codes = RUNNING if "epsilon" in what else REFUSED
    CORPUS.add(what, changed(change), commands=OPENED, codes=codes)
    if what.startswith(("an enum", "a range w")):
        CORPUS.add(f"{what}, older", changed(change, old=True), commands=OPENED)


PLACES = {
    "a parameter": "c.weight",
    "an input": "x",
    "a value": "conv2d",
    "a submodule": "b.running_mean",
}
for place, before in PLACES.items():
    for what in ("closing double quotes", "new lines", "a dunder", "escapes", "a format"):
        CORPUS.add(
            f"the name of {place}: {what}",
            lambda d, b=before, w=what: renamed(b, NAMES[w])(d),
            commands=OPENED,
            codes=HARMLESS,
        )


def renamed(before: str, after: str) -> Callable[[Path], Path]:
    """The program with one name replaced by another, in its description and its weights."""
    old, new = json.dumps(before), json.dumps(after)

    def make(folder: Path) -> Path:
        members = {
            name: content.replace(old.encode(), new.encode()) if name.endswith(".json") else content
            for name, content in archive().items()
        }
        return joined(members, folder / "m.pt2")

    return make


def pickled(name: str) -> bytes:
    """A file of torch.save that makes a mark."""
    from tests.hostile.pickles import zipped

    with tempfile.TemporaryDirectory() as folder:
        return zipped(OPERATIONS[name], Path(folder) / "x").read_bytes()


PICKLES = {
    "weights": "m/data/weights/model.pt",
    "constants": "m/data/constants/model.pt",
    "sample inputs": "m/data/sample_inputs/model.pt",
}
for what, name in PICKLES.items():
    CORPUS.add(
        f"{what} that run code",
        lambda d, n=name: with_members(**{n: pickled("GLOBAL and REDUCE")})(d),
        codes=HARMLESS,
        commands=STATIC if what == "weights" else OPENED,
    )
for name in ("serialized_state_dict", "serialized_constants", "serialized_example_inputs"):
    CORPUS.add(
        f"{name} that run code, older",
        lambda d, n=name: with_members(True, **{f"{n}.pt": pickled("GLOBAL and REDUCE")})(d),
        codes=HARMLESS,
        commands=OPENED,
    )


def weight(**entries: Any) -> Callable[[Path], Path]:
    """The first weight with something else said of it."""

    def make(folder: Path) -> Path:
        members = dict(archive())
        where = "m/data/weights/model_weights_config.json"
        config = json.loads(members[where])
        config["config"]["c.weight"].update(entries)
        members[where] = json.dumps(config).encode()
        members["m/data/weights/evil"] = pickled("GLOBAL and REDUCE")
        return joined(members, folder / "m.pt2")

    return make


META_OF_WEIGHT = {**META, "sizes": [{"as_int": n} for n in (4, 3, 1, 1)]}
WEIGHTS = {
    "a weight that is pickled": weight(use_pickle=True, path_name="evil"),
    "a weight at a path": weight(path_name="../../../../etc/passwd"),
    "a weight at an absolute path": weight(path_name="/etc/passwd"),
    "a weight with strides of -1": weight(
        tensor_meta={**META_OF_WEIGHT, "strides": [{"as_int": -1}] * 4}
    ),
    "a weight of 2^62": weight(tensor_meta=META),
    "a weight past its end": weight(
        tensor_meta={**META_OF_WEIGHT, "strides": [{"as_int": 1000}] * 4}
    ),
    "a weight of 4 EB that is empty": weight(path_name="../constants/empty", tensor_meta=META),
    "a weight with a formula for a size": weight(
        tensor_meta={**META_OF_WEIGHT, "sizes": [{"as_expr": {"expr_str": EXPRESSION}}]}
    ),
}
for what, make in WEIGHTS.items():
    CORPUS.add(what, make, commands=OPENED, codes=HARMLESS)

MEMBERS: dict[str, dict[str, bytes | None]] = {
    "no version": {"m/archive_version": None},
    "a version of 10^30": {"m/archive_version": b"1" + b"0" * 30},
    "no description": {MODEL: b""},
    "a description of a million levels": {MODEL: b"[" * 1_000_000},
    "a description that is a number": {MODEL: b"7"},
    "a number of 100,000 digits": {MODEL: b'{"schema_version": ' + b"9" * 100_000 + b"}"},
    "a description of a million keys": {
        MODEL: b"{" + b",".join(b'"%d":0' % i for i in range(300_000)) + b"}"
    },
    "an opaque object": {"m/data/constants/opaque_obj_0": b"\x80\x02" + OPERATIONS["eval"] + b"."},
    "a custom object": {"m/data/constants/custom_obj_0": b"PK"},
    "compiled code": {"m/data/aotinductor/model/a.so": b"\x7fELF"},
    "an extra file that leaves": {"m/extra/../../../mark": b"x"},
    "an extra file of a name that is absolute": {"m/extra//tmp/mark": b"x"},
    "big-endian bytes": {"m/byteorder": b"big"},
    "a second model": {"m/models/other.json": b"{}"},
}
for what, members in MEMBERS.items():
    CORPUS.add(what, with_members(**members), commands=OPENED, codes=HARMLESS)
