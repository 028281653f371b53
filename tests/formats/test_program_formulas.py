"""The grammar of sizes and guards: what torch writes, and nothing that grows."""

from __future__ import annotations

import sys
import time
from itertools import pairwise

import pytest

from bnfold.formats.pytorch.program_formulas import (
    LONGEST,
    Cost,
    FormulaError,
    applied,
    check_guard,
    check_time,
    size,
)

S = "Symbol('s0', positive=True, integer=True)"
U = "Symbol('u0', integer=True)"


def nested(name: str, depth: int, inner: str = S) -> str:
    return f"{name}(" * depth + inner + ")" * depth


@pytest.mark.parametrize(
    "text",
    [
        S,
        U,
        "Integer(7)",
        "Integer(-1)",
        "true",
        f"Add(Mul(Integer(2), {S}), Integer(3))",
        f"Pow({S}, Integer(2))",
        f"Mul(Integer(3), Add(FloorDiv(Add({S}, Integer(-1)), Integer(2)), Integer(1)))",
        f"Max(Integer(1), Add({S}, Integer(-2)))",
        f"Mod({S}, Integer(8))",
        f"StrictLessThan({U}, Integer(100))",
        f"Equality({S}, Symbol('s1', positive=True, integer=True))",
        f"IntTrueDiv({S}, Integer(2))",
        f"Mul(Float('0.5', precision=53), ToFloat({S}))",
        f"TruncToInt(FloatPow(ToFloat({S}), Integer(2)))",
        "Rational(1, 2)",
        f"LShift({S}, Integer(3))",
    ],
)
def test_sizes_that_torch_writes(text: str) -> None:
    size(text)
    check_time([text])


@pytest.mark.parametrize(
    "text",
    [
        *("9**9**9**9", "2**10000000000", "(9**9**9)//1", "Integer(9)**Integer(9)**Integer(9)"),
        *("s0", "1", "1 + 1", "oo", "zoo", "''", "", "[1]", "lambda: 1", "Integer", "None"),
        *("__import__('os').mkdir('x')", "Integer(2).__class__", "Integer.__mro__", "eval('1')"),
        *("Integer('9')", "Integer(s0)", "Integer(1.5j)", "Integer(x=1)", "factorial(Integer(9))"),
        *("Symbol('os.system')", "Symbol('S0')", "Symbol('s 0')", "Symbol(Integer(1))"),
        *("Symbol('s0', positive=exit())", "Symbol('s0', commutative=True)", "Symbol('s0', 's1')"),
        *("Symbol('s99999999999')", "Symbol('s0', positive=1)", "Symbol()"),
        *("Float('1e99999', precision=53)", "Float('1', precision=99999)", "Float(1)"),
        *("Add(*[Integer(1)])", "Add(Integer(1), evaluate=False)", "Add(1, 2)", "exp(Integer(9))"),
        *(f"Pow({S}, {S})", f"PowByNatural(Integer(2), {S})", "Pow(Integer(9), Integer(9))"),
        *("Pow(Integer(9), Integer(999999999))", f"Pow({S}, Rational(1, 2))", f"Pow({S})"),
        *(f"LShift(Integer(1), {S})", "LShift(Integer(1), Integer(99999))", "LShift(Integer(1))"),
        "Integer(" + "9" * 400 + ")",
        "Integer(" + "9" * 4990 + ")",
        nested("Abs", 61),
        "Abs(" * 1200,
        "-" * 4000 + "1",
        "(" * 4000 + "1" + ")" * 4000,
        "FloorDiv(" + ", ".join([S] * 21) + ")",
    ],
)
def test_what_is_no_size(text: str) -> None:
    start = time.thread_time()
    with pytest.raises(FormulaError):
        size(text)
    assert time.thread_time() - start < 1


def squared(times: int) -> str:
    text = "Integer(9)"
    for _ in range(times):
        text = f"Pow({text}, Integer(8))"
    return text


def product(factors: int, terms: int) -> str:
    names = [f"Symbol('s{i}', integer=True)" for i in range(factors * terms)]
    sums = (f"Add({', '.join(names[i::factors])})" for i in range(factors))
    return f"Mul({', '.join(sums)})"


@pytest.mark.parametrize(
    ("small", "large"),
    [
        (squared(2), squared(4)),
        (f"Mul({', '.join([S] * 16)})", f"Mul({', '.join([S] * 17)})"),
        (product(3, 5), product(4, 5)),
        (f"Max({', '.join([U] * 16)})", f"Max({', '.join([U] * 17)})"),
        (nested("Abs", 60), nested("Abs", 61)),
        (S.rjust(LONGEST), S.rjust(LONGEST + 1)),
    ],
    ids=["bits", "product", "terms", "width", "depth", "length"],
)
def test_each_bound_lets_through_what_is_below(small: str, large: str) -> None:
    size(small)
    with pytest.raises(FormulaError):
        size(large)


def test_a_maximum_inside_a_maximum_counts_its_values() -> None:
    five = f"Max({', '.join([S] * 5)})"
    size(f"Min({five}, {five}, {five})")
    with pytest.raises(FormulaError):
        size(f"Min({five}, {five}, {five}, {five})")


def hard() -> list[str]:
    """Sizes within all bounds, each of which takes sympy a while."""
    symbols = [f"Symbol('s{i}', positive=True, integer=True)" for i in range(40)]
    inner = [f"Mod(Add({a}, {b}), Integer(7))" for a, b in pairwise(symbols)]
    maxima = [f"Max({', '.join(inner[i : i + 8])})" for i in range(len(inner) - 8)]
    return [f"FloorDiv({a}, {b})" for a in maxima for b in maxima if a != b]


def test_sympy_is_stopped_when_a_file_has_had_its_time() -> None:
    texts = hard()
    for text in texts[:5]:
        size(text)
    before, start = sys.getprofile(), time.thread_time()
    with pytest.raises(FormulaError, match="too long"):
        check_time(texts, seconds=0.3)
    assert time.thread_time() - start < 3
    assert sys.getprofile() is before


@pytest.mark.parametrize(
    "text",
    [
        "L['x'].size()[0] >= 2",
        "L['a'][0].size()[1] % 8 == 0",
        "2*(L['x'].size()[2] // 2) < 1 + L['x'].size()[2]",
        "(1 + (((-1) + L['x'].size()[2]) // 2)) != 1",
        "L['q'].size()[0] == 1 or L['q'].size()[0] == L['k'].size()[0]",
        "not (L['x'].stride()[0] <= 4) and L['x'].storage_offset() == 0",
        "max(1, L['x'].size()[0]) <= math.inf",
        "math.floor(L['x'].size()[0] / 2) > 1",
        "L['größe']['a b'].size()[0]**2 < 99",
        "L['mode'] == 'a' and L['mask'] is None",
        "math.isnan(L['factor'])",
    ],
)
def test_guards_that_torch_writes(text: str) -> None:
    check_guard(text)


@pytest.mark.parametrize(
    "text",
    [
        *("exit()", "L", "x", "L['x'].__class__", "L['x'].size", "L['x'].size().__class__"),
        *("L['x'].storage()", "L['x'].size(exit())", "L['x'].size()[exit()]", "L[exit()]"),
        *("L['x'].size()[0][0]", "L['x'].size().size()", "L['x'].size()[0].stride()"),
        *("9**9**9", "L['x'].size()[0]**9", "L['x'].size()[0]**L['x'].size()[0]"),
        *("math.factorial(9)", "math.pow(9, 9)", "torch.os.system('x')", "torch.load('x')"),
        *("(lambda: 1)()", "[1]", "f'{1}'", "(x := 1)", "1 if 1 else 2", "L['x'] in L['y']"),
        *("max(*L['x'])", "max(1, key=L['x'])", "1 << 99999999", "~1", "1 @ 1", "{1: 2}"),
        *("L['a\"b'].size()[0] == 1", "L['a\\\\'].size()[0] == 1", 'L["\'"] == 1'),
        *("1; exit()", "1\nexit()", "", "1 ==", "...", "L['x':'y']", "1j", "b'x'"),
        "-" * 61 + "1",
        "1 == 1 and " * 2000 + "1",
        "*".join(["L['x'].size()[0]"] * 17) + " == 1",
    ],
)
def test_what_is_no_guard(text: str) -> None:
    with pytest.raises(FormulaError):
        check_guard(text)


class TestArithmetic:
    """What nodes of a program calculate from sizes."""

    def test_powers_and_shifts_by_small_numbers(self) -> None:
        assert applied("_operator.pow", [Cost(), 2]).bits == 128
        assert applied("_operator.lshift", [Cost(), 3]).bits == 67

    @pytest.mark.parametrize("by", [Cost(), 9, 10**9, -9])
    def test_powers_by_others(self, by: Cost | int) -> None:
        with pytest.raises(FormulaError):
            applied("_operator.pow", [2, by])

    @pytest.mark.parametrize("by", [Cost(), 65, -1, 2.0])
    @pytest.mark.parametrize("name", ["lshift", "rshift"])
    def test_shifts_by_others(self, name: str, by: Cost | float) -> None:
        with pytest.raises(FormulaError):
            applied(f"_operator.{name}", [2, by])

    def test_squares_of_squares_end(self) -> None:
        cost = Cost()
        for _ in range(4):
            cost = applied("_operator.mul", [cost, cost])
        with pytest.raises(FormulaError):
            applied("_operator.mul", [cost, cost])

    def test_a_quotient_starts_anew(self) -> None:
        wide = applied("_operator.mul", [Cost(terms=8), Cost(terms=8)])
        assert wide.terms == 64
        assert applied("_operator.floordiv", [wide, 2]).terms == 1

    def test_sums_and_extremes(self) -> None:
        assert applied("torch.sym_sum", [Cost(), Cost(), 1]).terms == 3
        assert applied("torch.sym_max", [Cost(), Cost(width=3)]).width == 4
