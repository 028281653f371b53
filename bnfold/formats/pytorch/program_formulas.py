"""What a size and a guard of a program may say; torch evaluates both when it opens a file.

    size    Add(Mul(Integer(2), Symbol('s0', positive=True, integer=True)), Integer(3))
    guard   2*(L['x'].size()[2] // 2) < 1 + L['x'].size()[2]

A size is what sympy.srepr writes: calls of the classes listed here, with numbers and the names of
symbols in the innermost ones. A guard compares sums and products of the sizes of inputs. Neither
may grow: numbers and exponents are small, and what is multiplied out stays short.

    bits   of the value, if a symbol has 64      a + b: the longer, and one   a * b: the sum
    terms  of the value when multiplied out      a + b: the sum               a * b: the product
    width  the values that one maximum compares  all of those inside it

How long sympy takes for a size of many functions follows from no such count: it is tried, and
stopped when the file has had its time.
"""

from __future__ import annotations

import ast
import re
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod

import sympy

LONGEST = 5000
"""Characters of a formula. Those of networks with every size free have some hundreds."""

SECONDS = 2.0
"""Of the processor's time, for all sizes of a file together; those of networks take a tenth."""

_DEEPEST = 60
"""Levels of nesting."""

_BITS, _TERMS, _WIDTH, _POWER = 1024, 128, 16, 8

_SYMBOL = re.compile(r"[a-z]{1,8}[0-9]{0,6}")
"""torch counts its symbols up to the number that it finds in a file."""

_ASSUMED = frozenset({"integer", "nonnegative", "positive", "negative", "real", "finite"})

_SUMS = frozenset({"Add"})
_PRODUCTS = frozenset({"Mul"})
_POWERS = frozenset({"Pow", "PowByNatural", "FloatPow"})
_SHIFTS = frozenset({"LShift", "RShift"})
_EXTREMES = frozenset({"Max", "Min", "And", "Or"})
_FUNCTIONS = frozenset(
    {
        *("Abs", "CeilDiv", "CeilToInt", "CleanDiv", "Equality", "FloatTrueDiv", "FloorDiv"),
        *("FloorToInt", "GreaterThan", "Identity", "IntTrueDiv", "LessThan", "Mod"),
        *("IsNonOverlappingAndDenseIndicator", "ModularIndexing", "Not", "PythonMod"),
        *("RoundDecimal", "RoundToInt", "StrictGreaterThan", "StrictLessThan", "ToFloat"),
        *("TruncToFloat", "TruncToInt", "Unequality", "Where", "ceiling", "floor"),
    }
)

_GUARD_FUNCTIONS = frozenset(
    {
        *("abs", "max", "min", "round", "torch.sym_float", "torch._sym_sqrt"),
        *(f"math.{name}" for name in ("ceil", "floor", "isnan", "sqrt", "trunc")),
    }
)

_LOOKS = frozenset({"size", "stride", "storage_offset"})
"""The methods of an input that a guard calls, without arguments."""

_MOST_ARGUMENTS = 20

_FLOAT = re.compile(r"-?[0-9]{1,20}(\.[0-9]{0,20})?(e[+-]?[0-9]{1,3})?")


class FormulaError(ValueError):
    """A formula says something else, or more than fits."""


class _OutOfTime(BaseException):
    """Not for sympy to catch."""


@dataclass(frozen=True, slots=True)
class Cost:
    """How large a value can become; what is above is refused as soon as it is made."""

    bits: int = 64
    terms: int = 1
    width: int = 1

    def __post_init__(self) -> None:
        if self.bits > _BITS or self.terms > _TERMS or self.width > _WIDTH:
            raise FormulaError("it is too large")


def size(text: str) -> Cost:
    """How large a size (or a condition) can become. Raises FormulaError for anything else."""
    return _size(_parsed(text), 0)


def check_time(texts: Iterable[str], seconds: float = SECONDS) -> None:
    """Raise FormulaError unless sympy makes all of these sizes, which are checked, in time."""
    from torch.utils._sympy import functions

    known = {name: getattr(functions, name) for name in _FUNCTIONS if hasattr(functions, name)}
    known |= {name: getattr(functions, name) for name in (*_POWERS, *_SHIFTS) if name != "Pow"}
    sympy.sympify("Integer(1)")  # the first time, it imports most of itself
    with _limited(seconds):
        for text in texts:
            try:
                sympy.sympify(text, locals=known)
            except Exception as error:  # whatever sympy raises, it is no size
                raise FormulaError(f"it is none: {text[:100]}") from error


@contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """Raise FormulaError as soon as the Python code within has taken longer."""
    end = time.thread_time() + seconds
    before = sys.getprofile()

    def look(*called: object) -> None:
        if time.thread_time() > end:
            raise _OutOfTime

    sys.setprofile(look)
    try:
        yield
    except _OutOfTime:
        raise FormulaError("it takes too long to evaluate") from None
    finally:
        sys.setprofile(before)


def check_guard(text: str) -> None:
    """Raise FormulaError unless `text` only compares what can be seen of inputs."""
    _guard(_parsed(text), 0)


def is_symbol(text: str) -> bool:
    return _SYMBOL.fullmatch(text) is not None


def is_harmless_text(text: str) -> bool:
    """Whether a text stays one when torch writes it between quotes."""
    return text.isprintable() and not any(sign in text for sign in "'\"\\")


def applied(target: str, operands: Sequence[Cost | float]) -> Cost:
    """What arithmetic on sizes gives, by the text that torch writes for it: "_operator.mul"."""
    costs = [each if isinstance(each, Cost) else _number(each) for each in operands]
    match target.rpartition(".")[2]:
        case "mul":
            return _product(costs)
        case "pow":
            return _power(costs[0], operands[-1])
        case "lshift" | "rshift":
            return _shifted(costs[0], operands[-1])
        case "add" | "sub" | "sym_sum":
            return _sum(costs)
        case "sym_max" | "sym_min" | "and_" | "or_":
            return _extreme(costs)
        case _:
            return _function(costs)


def _parsed(text: str) -> ast.expr:
    if len(text) > LONGEST:
        raise FormulaError("it is too long")
    try:
        return ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise FormulaError("it is none") from error


def _size(node: ast.expr, depth: int) -> Cost:
    if isinstance(node, ast.Name) and node.id in ("true", "false"):
        return Cost(1)
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or depth > _DEEPEST:
        raise FormulaError("it is none")
    name = node.func.id
    if name in ("Symbol", "Float"):
        return _named(name, node)
    if node.keywords:
        raise FormulaError("it is none")
    if name in ("Integer", "Rational"):
        return _sum([_number(_literal(argument)) for argument in node.args])
    costs = [_size(argument, depth + 1) for argument in node.args]
    if name in _SUMS:
        return _sum(costs)
    if name in _PRODUCTS:
        return _product(costs)
    if name in _EXTREMES:
        return _extreme(costs)
    if name in _POWERS | _SHIFTS and len(costs) == 2:
        small = _literal(_inside(node.args[1]))
        return _power(costs[0], small) if name in _POWERS else _shifted(costs[0], small)
    if name in _FUNCTIONS:
        return _function(costs)
    raise FormulaError(f"{name} is no function of sizes")


def _named(name: str, node: ast.Call) -> Cost:
    """Symbol('s0', positive=True) or Float('1.5', precision=53)."""
    match node.args:
        case [ast.Constant(value=str(text))]:
            given = {each.arg: getattr(each.value, "value", None) for each in node.keywords}
            if name == "Float" and _FLOAT.fullmatch(text) and given == {"precision": 53}:
                return Cost()
            plain = all(isinstance(value, bool) for value in given.values())
            if name == "Symbol" and is_symbol(text) and plain and given.keys() <= _ASSUMED:
                return Cost()
    raise FormulaError("it is none")


def _guard(node: ast.expr, depth: int) -> Cost:
    if depth > _DEEPEST:
        raise FormulaError("it is too deep")

    def inner(*parts: ast.expr) -> list[Cost]:
        return [_guard(part, depth + 1) for part in parts]

    match node:
        case ast.Constant(value=str(text)) if is_harmless_text(text):
            return Cost()
        case ast.Constant(value=value) if value is None or isinstance(value, int | float):
            return _number(value or 0)
        case ast.Name(id="inf") | ast.Attribute(value=ast.Name(id="math"), attr="inf" | "nan"):
            return Cost()
        case ast.BoolOp(values=values):
            return _function(inner(*values)[:1])
        case ast.UnaryOp(op=ast.Not() | ast.USub() | ast.UAdd(), operand=operand):
            return _function(inner(operand))
        case ast.Compare(left=left, ops=ops, comparators=right) if _known(ops):
            return _function(inner(left, *right))
        case ast.BinOp(left=left, op=ast.Pow(), right=right):
            return _power(inner(left)[0], _literal(right))
        case ast.BinOp(left=left, op=ast.Mult(), right=right):
            return _product(inner(left, right))
        case ast.BinOp(left=left, op=ast.Add() | ast.Sub(), right=right):
            return _sum(inner(left, right))
        case ast.BinOp(left=left, op=ast.FloorDiv() | ast.Div() | ast.Mod(), right=right):
            return _function(inner(left, right))
        case ast.Call(func=func, args=args, keywords=[]) if ast.unparse(func) in _GUARD_FUNCTIONS:
            return _extreme(inner(*args))
        case _ if _is_seen(node):
            return Cost()
    raise FormulaError("it does more than compare sizes")


def _known(comparisons: Sequence[ast.cmpop]) -> bool:
    return not any(isinstance(each, ast.In | ast.NotIn) for each in comparisons)


def _is_seen(node: ast.expr) -> bool:
    """L['x'], or one of its sizes: L['x'].size()[0]."""
    if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Call) and _is_index(node):
        node = node.value
    match node:
        case ast.Call(func=ast.Attribute(value=value, attr=look), args=[], keywords=[]):
            return look in _LOOKS and _is_input(value)
    return _is_input(node)


def _is_input(node: ast.expr) -> bool:
    inner = node
    while isinstance(inner, ast.Subscript) and _is_index(inner):
        inner = inner.value
    return isinstance(inner, ast.Name) and inner.id == "L" and inner is not node


def _is_index(node: ast.Subscript) -> bool:
    match node.slice:
        case ast.Constant(value=int()):
            return True
        case ast.Constant(value=str(text)):
            return is_harmless_text(text)
    return False


def _inside(node: ast.expr) -> ast.expr:
    """The number in Integer(2)."""
    match node:
        case ast.Call(func=ast.Name(id="Integer"), args=[number], keywords=[]):
            return number
    raise FormulaError("a power has an exponent that is no number")


def _literal(node: ast.expr) -> float:
    match node:
        case ast.Constant(value=int() | float() as value):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
            return -value
    raise FormulaError("it has something else where a number belongs")


def _number(value: float) -> Cost:
    return Cost(value.bit_length() if isinstance(value, int) else 64)


def _sum(costs: Sequence[Cost]) -> Cost:
    bits = max((cost.bits for cost in costs), default=1) + len(costs)
    return Cost(bits, max(1, sum(cost.terms for cost in costs)))


def _product(costs: Sequence[Cost]) -> Cost:
    return Cost(sum(cost.bits for cost in costs), prod(cost.terms for cost in costs))


def _power(base: Cost, exponent: object) -> Cost:
    if not isinstance(exponent, int | float) or abs(exponent) > _POWER:
        raise FormulaError("a power has an exponent that is no small number")
    times = max(1, round(abs(exponent)))
    return Cost(base.bits * times, base.terms**times)


def _shifted(base: Cost, places: object) -> Cost:
    if not isinstance(places, int) or not 0 <= places <= 64:
        raise FormulaError("it shifts by what is no small number")
    return Cost(base.bits + places, base.terms)


def _extreme(costs: Sequence[Cost]) -> Cost:
    bits = max((cost.bits for cost in costs), default=1)
    return Cost(bits, width=sum(cost.width for cost in costs))


def _function(costs: Sequence[Cost]) -> Cost:
    if len(costs) > _MOST_ARGUMENTS:
        raise FormulaError("a function has too many arguments")
    return Cost(max((cost.bits for cost in costs), default=1) + 1)
