"""Every entry of a program's text, by the schema that torch reads it with, checked for what it is.

What torch makes of a text in a `.pt2`, and what is admitted here (program_operators.py says which
operators, program_formulas.py which sizes and guards):

    target, as_operator        looked up                     an operator of the list
    expr_str                   evaluated by sympy            a size
    guards_code                executed                      a comparison of sizes
    names of values            Python code of torch.fx       an identifier
    names of tensors           getattr("..."), in code       no quote, backslash or line break
    keys of inputs             in a message, in code         the same
    constant inputs            in guards, in code            the same
    structure of inputs        may import a class            tuples, lists, dicts and their like
    numbers of symbols         counted up to                 six digits
    source_fn_stack            looked up in torch            a path of public names
    stack_trace, custom, ...   kept                          anything

What the schema has no place for, torch never looks at. A text of a kind that is not listed has to
be an identifier, so what a later schema adds is closed until somebody opens it.
"""

from __future__ import annotations

import dataclasses
import json
import keyword
import re
import types
import typing
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

from torch._export.serde import schema
from torch._export.serde.union import _Union

from bnfold.formats.pytorch import program_formulas as formulas
from bnfold.formats.pytorch.program_formulas import Cost, FormulaError
from bnfold.formats.pytorch.program_operators import ARITHMETIC, admitted

_MOST_AXES = 64
"""torch's own limit for most of its operators."""

_DEEPEST = 100
"""Levels of a nested structure of inputs, and of what a node was made from."""

_INTEGERS = range(-(1 << 63), 1 << 64)

_TAKEN = frozenset({"self", "torch", "math", "_operator", *keyword.kwlist})
"""What the code that torch.fx writes calls other things by."""

_PLAIN = re.compile(r"[\w.:@+\-/<>=]*")
_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_<]\w*>?)*")

_FACTORIES = frozenset({"bool", "dict", "float", "int", "list", "set", "str", "tuple"})
"""The builtins that a defaultdict may make its values with."""

_NOT_FINITE = ("Infinity", "-Infinity", "NaN")


class EntryError(ValueError):
    """An entry is not what the schema says: the file is damaged."""


class SuspectError(Exception):
    """An entry could do more than describe a model; says what, and gives the text."""

    def __init__(self, what: str, text: str) -> None:
        shown = text if len(text) <= 200 else f"{text[:200]}..."
        super().__init__(f"{what}: {shown!r}")
        self.text = text


def check_program(entry: Any) -> None:
    """Raise SuspectError or EntryError unless a program's JSON is that of a mere model."""
    checks = _Checks()
    checks.walk(schema.ExportedProgram, entry, ())
    try:
        formulas.check_time(checks.sizes)
    except FormulaError as error:
        raise SuspectError(
            "its sizes are formulas that are too much for sympy", str(error)
        ) from None


def check_payloads(entry: Any) -> None:
    """The same for the list of tensors beside a program."""
    _Checks().walk(schema.PayloadConfig, entry, ())


class _Checks:
    """One walk over the entries of a text. A place is the fields that lead to an entry."""

    def __init__(self) -> None:
        self.sizes: dict[str, Cost] = {}
        """Every size that was met, and what it costs."""

    def walk(self, kind: Any, entry: Any, place: tuple[str, ...]) -> None:
        kind, optional = _stripped(kind)
        if entry is None and optional:
            return
        if isinstance(kind, type) and issubclass(kind, _Union):
            self._union(kind, entry, place)
        elif dataclasses.is_dataclass(kind):
            self._record(kind, entry, place)
        elif typing.get_origin(kind) is list:
            for each in _typed(entry, list, place):
                self.walk(typing.get_args(kind)[0], each, place)
        elif typing.get_origin(kind) is dict:
            for key, each in _typed(entry, dict, place).items():
                self._text(key, (*place, "key"))
                self.walk(typing.get_args(kind)[1], each, (*place, f"[{key}]"))
        else:
            self._leaf(kind, entry, place)

    def _union(self, kind: type, entry: Any, place: tuple[str, ...]) -> None:
        if (
            not isinstance(entry, dict)
            or len(entry) != 1
            or (name := next(iter(entry))) not in (hints := _hints(kind))
        ):
            raise EntryError(f"{_shown(place)} is none of the kinds of {kind.__name__}")
        self.walk(hints[name], entry[name], (*place, f"{kind.__name__}.{name}"))

    def _record(self, kind: Any, entry: Any, place: tuple[str, ...]) -> None:
        fields = _typed(entry, dict, place)
        for name, hint in _hints(kind).items():
            if name in fields:
                self.walk(hint, fields[name], (*place, f"{kind.__name__}.{name}"))
        if kind is schema.TensorMeta:
            self._tensor(fields)
        elif kind is schema.Graph:
            _check_arithmetic(fields)

    def _leaf(self, kind: Any, entry: Any, place: tuple[str, ...]) -> None:
        if kind is str:
            self._text(_typed(entry, str, place), place)
        elif kind is bool:
            if place[-1] != "Argument.as_none":
                _typed(entry, bool, place)
        elif kind is float:
            if isinstance(entry, bool) or not isinstance(entry, int | float | str):
                raise EntryError(f"{_shown(place)} is no number")
            if isinstance(entry, str) and entry not in _NOT_FINITE:
                raise EntryError(f"{_shown(place)} is no number")
        elif isinstance(entry, bool) or not isinstance(entry, int) or entry not in _INTEGERS:
            raise EntryError(f"{_shown(place)} is no whole number of 64 bits")

    def _tensor(self, fields: dict[str, Any]) -> None:
        sizes = fields.get("sizes", ())
        axes = max(len(sizes), len(fields.get("strides", ())))
        if axes > _MOST_AXES:
            raise EntryError(f"a tensor has {axes} axes")
        try:
            formulas.applied("mul", [self._cost(size) for size in sizes])
        except FormulaError:
            raise SuspectError("a tensor's size is too large a formula", str(sizes)) from None

    def _cost(self, size: dict[str, Any]) -> Cost | float:
        if "as_int" in size:
            number: int = size["as_int"]
            return number
        return self.sizes[size["as_expr"]["expr_str"]]

    def _text(self, text: str, place: tuple[str, ...]) -> None:
        """By the innermost field, or by the one whose keys or values these are."""
        field = next(each for each in reversed(place) if "." in each and each[0].isupper())
        if field == "SymExpr.expr_str":
            self._size(text)
        elif field == "Argument.as_string" and "NamedArgument.arg" in place:
            return  # an argument of an operator, which code writes by its repr
        elif field.endswith(".metadata"):
            if place[-1] != "key":
                _check_comment(place[-1][1:-1], text)
        else:
            is_key = place[-1] == "key"
            _CHECKS.get(f"{field} key" if is_key else field, _check_identifier)(text)

    def _size(self, text: str) -> None:
        if text not in self.sizes:
            try:
                self.sizes[text] = formulas.size(text)
            except FormulaError as error:
                raise SuspectError(f"a size is no plain formula ({error})", text) from None


def _check_operator(text: str) -> None:
    if admitted(text) is None:
        raise SuspectError("it calls an operator that bnfold does not let a file call", text)


def _check_guard(text: str) -> None:
    try:
        formulas.check_guard(text)
    except FormulaError as error:
        raise SuspectError(f"a guard is no comparison of sizes ({error})", text) from None


def _check_identifier(text: str) -> None:
    if text and (not text.isidentifier() or text in _TAKEN or text.startswith("__")):
        raise SuspectError("a name in it is no plain name", text)


def _check_plain(text: str) -> None:
    if not _PLAIN.fullmatch(text):
        raise SuspectError("a text in it is no plain name", text)


def _check_quoted(text: str) -> None:
    """A text that code has between quotes."""
    if not formulas.is_harmless_text(text):
        raise SuspectError("a name in it would end the quotes that code puts it in", text)


def _check_address(text: str) -> None:
    """A tensor's path through modules, such as "block1-0.conv.weight": data, which code quotes."""
    _check_quoted(text)
    if any(part.startswith("__") for part in text.split(".")):
        raise SuspectError("a tensor has the path of something else", text)


def _check_symbol(text: str) -> None:
    """A symbol, or a formula that is none of the numbered ones whose number torch counts up to."""
    if not formulas.is_symbol(text) and (text.startswith(("u", "z")) or not text.isascii()):
        raise SuspectError("a range is that of no symbol", text)
    _check_quoted(text)


def _check_keyword(text: str) -> None:
    """The name of an operator's argument, such as "self"."""
    if text and not text.isidentifier():
        raise SuspectError("an argument has no plain name", text)


def _check_object(text: str) -> None:
    raise SuspectError("it needs an object that only its own code can make", text)


def _check_structure(text: str) -> None:
    """The nesting of inputs or outputs, which names classes and their keys."""
    try:
        _, spec = json.loads(text) if text else (1, None)
    except (ValueError, TypeError) as error:
        raise EntryError(f"the structure of its inputs is damaged: {error}") from None
    waiting = [(spec, 0)]
    while waiting:
        spec, depth = waiting.pop()
        if depth > _DEEPEST:
            raise EntryError(f"the structure of its inputs nests {depth} levels deep")
        if spec is None:
            continue
        fields = _typed(spec, dict, ("in_spec",))
        if fields.get("type") is not None:
            _check_plain(_typed(fields["type"], str, ("in_spec",)))
        _check_context(fields.get("context"))
        waiting += [(each, depth + 1) for each in fields.get("children_spec", ())]


def _check_inputs(text: str) -> None:
    """The nesting of inputs: the keys of keyword arguments become those of a function in code."""
    _check_structure(text)
    spec = json.loads(text)[1] if text else None
    _, *keywords = (spec or {}).get("children_spec", ())
    for each in keywords:
        context = (each or {}).get("context")
        names = json.loads(context) if isinstance(context, str) else None
        for name in names if isinstance(names, list) else ():
            _check_identifier(_typed(name, str, ("in_spec",)))


def _check_context(context: Any) -> None:
    """The keys of a dict, or the class of a named tuple; never a class to import."""
    if isinstance(context, dict):
        factory = context.get("default_factory_module"), context.get("default_factory_name")
        if factory[0] != "builtins" or factory[1] not in _FACTORIES:
            raise SuspectError("it would import", ".".join(map(str, factory)))
        context = context.get("dict_context")
    elif isinstance(context, str):
        try:
            context = json.loads(context)
        except ValueError:  # the name of a named tuple
            return _check_plain(context)
    waiting = [context]
    while waiting:
        entry = waiting.pop()
        if isinstance(entry, list):
            waiting += entry
        elif isinstance(entry, dict):
            raise SuspectError("it would import", json.dumps(entry))
        elif isinstance(entry, str):
            _check_quoted(entry)
    return None


def _check_comment(key: str, text: str) -> None:
    """What a node says of where it comes from."""
    match key:
        case "stack_trace" | "torch_fn" | "custom":
            pass
        case "from_node":
            if text.count('"from_node"') > _DEEPEST:
                raise EntryError("a node was made from others in too many steps")
        case "nn_module_stack":
            for each in text.split(";"):
                _check_quoted(each.partition(",")[2])
        case "source_fn_stack":
            for each in text.split(";"):
                path = each.partition(",")[2]
                if not _PATH.fullmatch(path) or ".__" in path:
                    raise SuspectError("a function that it names is none", path)
        case _:
            _check_plain(text)


def _check_arithmetic(graph: dict[str, Any]) -> None:
    """Raise SuspectError where sizes are multiplied without end, or a power is no small number."""
    costs: dict[str, Cost] = {}
    for node in graph["nodes"]:
        target = node["target"]
        if target not in ARITHMETIC or target == "_operator.getitem":
            continue
        given = (each for argument in node["inputs"] for each in _numbers(argument["arg"]))
        operands = [costs.get(each, Cost()) if isinstance(each, str) else each for each in given]
        try:
            cost = formulas.applied(target, operands)
        except (FormulaError, IndexError) as error:
            raise SuspectError(
                f"it calculates with sizes beyond measure ({error})", target
            ) from None
        for output in node["outputs"]:
            costs |= {each: cost for each in _numbers(output) if isinstance(each, str)}


def _numbers(argument: dict[str, Any]) -> Iterator[str | float]:
    """The names and numbers in an argument of arithmetic."""
    for kind, value in argument.items():
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, dict):
                yield from _numbers(each)
            elif kind in ("as_name", "name") or isinstance(each, int | float):
                yield each


_CHECKS: dict[str, Callable[[str], None]] = {
    "Node.target": _check_operator,
    "NamedArgument.name": _check_keyword,
    "Argument.as_operator": _check_operator,
    "ExportedProgram.guards_code": _check_guard,
    "ExportedProgram.range_constraints key": _check_symbol,
    "ExportedProgram.torch_version": _check_plain,
    "ModuleCallSignature.in_spec": _check_inputs,
    "ModuleCallSignature.out_spec": _check_structure,
    "ModuleCallEntry.fqn": _check_address,
    "InputToParameterSpec.parameter_name": _check_address,
    "InputToBufferSpec.buffer_name": _check_address,
    "InputToTensorConstantSpec.tensor_constant_name": _check_address,
    "BufferMutationSpec.buffer_name": _check_address,
    "ParameterMutationSpec.parameter_name": _check_address,
    "GradientToParameterSpec.parameter_name": _check_address,
    "PayloadConfig.config key": _check_address,
    "PayloadMeta.path_name": _check_plain,
    "CustomObjArgument.class_fqn": _check_object,
    "ConstantValue.as_string": _check_quoted,
    "Argument.as_string": _check_quoted,
    "Argument.as_strings": _check_quoted,
    "Argument.as_string_to_argument key": _check_quoted,
    "GraphModule.treespec_namedtuple_fields key": _check_plain,
}
"""By the field of torch's schema. Every other text has to be an identifier."""


def _typed(entry: Any, kind: type, place: tuple[str, ...]) -> Any:
    if not isinstance(entry, kind):
        raise EntryError(f"{_shown(place)} is no {kind.__name__}")
    return entry


def _shown(place: tuple[str, ...]) -> str:
    return place[-1] if place else "the program"


def _stripped(kind: Any) -> tuple[Any, bool]:
    """A type without what is written around it, and whether None stands for it."""
    if typing.get_origin(kind) is typing.Annotated:
        return _stripped(typing.get_args(kind)[0])
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        inner = [each for each in typing.get_args(kind) if each is not type(None)]
        return _stripped(inner[0])[0], len(inner) < len(typing.get_args(kind))
    return kind, False


@cache
def _hints(kind: type) -> dict[str, Any]:
    hints = typing.get_type_hints(kind, globalns=vars(schema))
    return {name: hint for name, hint in hints.items() if not name.startswith("_")}
