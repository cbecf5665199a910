"""Numbers out of expressions: exactly as fractions where possible, else in many digits, never without a bound.

Every operation is checked before it is done: powers, factorials and series whose result would be larger than the caps
raise `TooLargeError`, undefined ones (0/0, log 0) raise `UndefinedError`. So an expression of n tokens costs at most
about n multiplications of numbers of bounded size, whatever it says.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from typing import Any

import mpmath

from .values import Node

MAX_BITS = 1 << 18  # of an exact number; 2^100000 + 1 is still told from 2^100000
MAX_LOG2 = 1e9  # of an inexact number: beyond this even its exponent gets long
MAX_FACTORIAL = 20000  # exact; larger ones go through the gamma function
MAX_GAMMA = 1e8
MAX_TERMS = 2000  # of a sum or product
MAX_ANGLE = 1e30  # a sine of a larger angle needs that many more digits
STEPS = 20000  # operations of one evaluation


class TooLargeError(Exception):
    """The value, or a value on the way to it, is beyond the caps."""


class UndefinedError(Exception):
    """The expression has no value here: division by zero, a function outside its domain."""


class UnknownSymbolError(Exception):
    """A symbol has no value in the given assignment."""


def exact(node: Node) -> Fraction | None:
    """The value as a fraction, or None where it is irrational, symbolic or not easily exact."""
    return _exact(node, [STEPS])


def _exact(node: Node, budget: list[int]) -> Fraction | None:
    budget[0] -= 1
    if budget[0] < 0:
        raise TooLargeError
    kind = node[0]
    if kind == "num":
        return node[1]
    if kind in ("add", "mul", "div"):
        left = _exact(node[1], budget)
        right = None if left is None else _exact(node[2], budget)
        return None if left is None or right is None else _combine(kind, left, right)
    if kind == "neg":
        value = _exact(node[1], budget)
        return None if value is None else -value
    if kind == "pct":
        value = _exact(node[1], budget)
        return None if value is None else value / 100
    if kind == "pow":
        base = _exact(node[1], budget)
        exponent = None if base is None else _exact(node[2], budget)
        return None if base is None or exponent is None else _exact_power(base, exponent)
    if kind == "based":
        return _based(node[1], node[2])
    if kind == "fn":
        values = [_exact(argument, budget) for argument in node[2:]]
        return None if any(value is None for value in values) else _exact_function(node[1], values)
    return None


def _bits(value: Fraction) -> int:
    return max(value.numerator.bit_length(), value.denominator.bit_length())


def _combine(kind: str, left: Fraction, right: Fraction) -> Fraction:
    if _bits(left) + _bits(right) > MAX_BITS:
        raise TooLargeError
    if kind == "add":
        return left + right
    if kind == "mul":
        return left * right
    if right == 0:
        raise UndefinedError
    return left / right


def _exact_power(base: Fraction, exponent: Fraction) -> Fraction | None:
    if exponent.denominator != 1:
        return _exact_root(base, exponent)
    if base in (0, 1, -1):
        if base == 0 and exponent <= 0:
            raise UndefinedError
        return Fraction(base) ** (int(exponent) % 2 if base == -1 else min(int(exponent), 1) if base == 0 else 1)
    if abs(exponent) * _bits(base) > MAX_BITS:
        return None
    return base ** int(exponent)


def _exact_root(base: Fraction, exponent: Fraction) -> Fraction | None:
    """`4^{1/2}`, `8^{2/3}` where the root is a fraction."""
    if base < 0 or exponent.denominator > 60 or abs(exponent.numerator) > 1000 or _bits(base) > 4096:
        return None
    above, below = (_integer_root(part, exponent.denominator) for part in (base.numerator, base.denominator))
    if above is None or below is None:
        return None
    return _exact_power(Fraction(above, below), Fraction(exponent.numerator))


def _integer_root(value: int, degree: int) -> int | None:
    if degree == 2:
        root = math.isqrt(value)
        return root if root * root == value else None
    low, high = 0, 1 << (value.bit_length() // degree + 1)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if middle**degree <= value else (low, middle - 1)
    return low if low**degree == value else None


def _exact_function(name: str, values: list[Any]) -> Fraction | None:
    if name == "factorial" and values[0].denominator == 1 and 0 <= values[0] <= MAX_FACTORIAL:
        return Fraction(math.factorial(int(values[0])))
    if name == "sqrt":
        return _exact_root(values[0], Fraction(1, 2)) if values[0] >= 0 else None
    if name == "abs":
        return abs(values[0])
    if name == "floor":
        return Fraction(math.floor(values[0]))
    if name == "ceil":
        return Fraction(math.ceil(values[0]))
    if name in ("max", "min"):
        return (max if name == "max" else min)(values)
    whole = all(value.denominator == 1 for value in values)
    if name in ("gcd", "lcm") and whole:
        integers = [int(value) for value in values]
        if sum(value.bit_length() for value in integers) > MAX_BITS:
            raise TooLargeError
        return Fraction((math.gcd if name == "gcd" else math.lcm)(*integers))
    if name == "binom" and whole and 0 <= values[0] <= MAX_FACTORIAL:
        return Fraction(math.comb(int(values[0]), int(values[1]))) if values[1] >= 0 else Fraction(0)
    return None


def _based(digits: str, base: int) -> Fraction | None:
    if not 2 <= base <= 36:
        return None
    try:
        return Fraction(int(digits, base))
    except ValueError as error:
        raise UndefinedError from error


# --- many digits -----------------------------------------------------------------------------------------------------


class Evaluator:
    """Evaluates nodes at a given precision and assignment of the symbols.

    `drop_arguments` reads `y(t)` as the symbol y (and `I(0)` as I_0) instead of a product.
    """

    def __init__(
        self,
        digits: int,
        symbols: Mapping[str, Any] | None = None,
        drop_arguments: bool = False,
    ) -> None:
        self.digits = digits
        self.symbols = dict(symbols or {})
        self.drop_arguments = drop_arguments
        self.steps = STEPS

    def __call__(self, node: Node) -> Any:
        """The value as an mpmath number, real where it is real."""
        with mpmath.workdps(self.digits):
            try:
                value = self._value(node)
            except (ZeroDivisionError, ValueError, OverflowError, mpmath.libmp.NoConvergence, TypeError) as error:
                raise UndefinedError from error
            if isinstance(value, mpmath.mpc) and abs(value.imag) <= abs(value.real) * mpmath.mpf(10) ** (
                -self.digits + 8
            ):
                value = value.real
            if not mpmath.isfinite(value):
                raise UndefinedError
            return value

    def _value(self, node: Node) -> Any:
        self.steps -= 1
        if self.steps < 0:
            raise TooLargeError
        return self._METHODS[node[0]](self, node)

    def _num(self, node: Node) -> Any:
        value = node[1]
        if _bits(value) > MAX_BITS:
            raise TooLargeError
        return mpmath.mpf(value.numerator) / value.denominator

    def _sym(self, node: Node) -> Any:
        if node[1] not in self.symbols:
            raise UnknownSymbolError(node[1])
        return self.symbols[node[1]]

    def _const(self, node: Node) -> Any:
        if node[1] == "inf":
            raise UndefinedError
        return {"pi": mpmath.pi, "e": mpmath.e, "i": mpmath.mpc(0, 1)}[node[1]] * mpmath.mpf(1)

    def _add(self, node: Node) -> Any:
        return self._value(node[1]) + self._value(node[2])

    def _mul(self, node: Node) -> Any:
        return self._capped(self._value(node[1]) * self._value(node[2]))

    def _div(self, node: Node) -> Any:
        return self._capped(self._value(node[1]) / self._value(node[2]))

    def _neg(self, node: Node) -> Any:
        return -self._value(node[1])

    def _deg(self, node: Node) -> Any:
        return self._value(node[1]) * mpmath.pi / 180

    def _pct(self, node: Node) -> Any:
        return self._value(node[1]) / 100

    def _numeral(self, node: Node) -> Any:
        value = _based(node[1], node[2])
        if value is None:
            raise UndefinedError
        return mpmath.mpf(value.numerator)

    def _pow(self, node: Node) -> Any:
        base, exponent = self._value(node[1]), self._value(node[2])
        if base == 0:
            if mpmath.re(exponent) <= 0:
                raise UndefinedError
            return mpmath.mpf(0)
        if abs(exponent) * (abs(mpmath.log(abs(base), 2)) + 1) > MAX_LOG2:
            raise TooLargeError
        return base**exponent

    def _app(self, node: Node) -> Any:
        function, arguments = node[1], node[2]
        if self.drop_arguments:
            plain = function[1]
            name = plain if not arguments[0].isdigit() else f"{plain}_{arguments[0]}"
            return self._sym(("sym", name))
        if len(arguments) != 1:
            raise UnknownSymbolError(function[1])
        inner = arguments[0]
        constants = {"e": ("const", "e"), "i": ("const", "i")}
        argument = ("num", Fraction(inner), inner) if inner[0].isdigit() else constants.get(inner, ("sym", inner))
        return self._value(function) * self._value(argument)

    def _series(self, node: Node) -> Any:
        kind, name, low_node, high_node, body = node
        low, high = exact(low_node), exact(high_node)
        if low is None or high is None or low.denominator != 1 or high.denominator != 1:
            raise UnknownSymbolError(name)
        if high - low >= MAX_TERMS:
            raise TooLargeError
        saved = self.symbols.get(name)
        total = mpmath.mpf(0 if kind == "sum" else 1)
        for index in range(int(low), int(high) + 1):
            self.symbols[name] = mpmath.mpf(index)
            term = self._value(body)
            total = total + term if kind == "sum" else self._capped(total * term)
        self.symbols.pop(name, None)
        if saved is not None:
            self.symbols[name] = saved
        return total

    def _capped(self, value: Any) -> Any:
        size = abs(value)
        if size != 0 and abs(mpmath.mag(size)) > MAX_LOG2:
            raise TooLargeError
        return value

    def _fn(self, node: Node) -> Any:
        values = [self._value(argument) for argument in node[2:]]
        name = node[1]
        if name in ("sin", "cos", "tan", "cot", "sec", "csc") and abs(values[0]) > MAX_ANGLE:
            raise TooLargeError
        if name in ("sin", "cos", "tan", "cot", "sec", "csc") and abs(mpmath.im(values[0])) > MAX_LOG2:
            raise TooLargeError
        if name in ("exp", "sinh", "cosh", "tanh", "coth") and abs(values[0]) > MAX_LOG2:
            raise TooLargeError
        if name in ("factorial", "binom") and any(abs(value) > MAX_GAMMA for value in values):
            raise TooLargeError
        if name in ("ln", "log", "lg", "logbase") and any(value == 0 for value in values):
            raise UndefinedError
        return _FUNCTIONS[name](*values)

    _METHODS: Mapping[str, Callable[[Evaluator, Node], Any]] = {
        "num": _num,
        "sym": _sym,
        "const": _const,
        "add": _add,
        "mul": _mul,
        "div": _div,
        "neg": _neg,
        "deg": _deg,
        "pct": _pct,
        "based": _numeral,
        "pow": _pow,
        "app": _app,
        "sum": _series,
        "prod": _series,
        "fn": _fn,
    }


def _real_root(value: Any, degree: Any) -> Any:
    """The real root of a negative number where the degree is odd, as in school."""
    whole = mpmath.re(degree) == degree and degree == int(mpmath.re(degree))
    if whole and int(degree) % 2 and mpmath.im(value) == 0 and mpmath.re(value) < 0:
        return -mpmath.root(-mpmath.re(value), int(degree))
    if value == 0:
        return mpmath.mpf(0)
    if degree == 0:
        raise UndefinedError
    return mpmath.power(value, 1 / degree)


def _rounding(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Floor or ceiling, safe against a value that misses its integer by rounding error."""

    def rounded(value: Any) -> Any:
        if mpmath.im(value) != 0:
            raise UndefinedError
        value = mpmath.re(value)
        near = mpmath.nint(value)
        if abs(value - near) < mpmath.mpf(10) ** (-(mpmath.mp.dps // 2)):
            return near
        return function(value)

    return rounded


def _gcd(*values: Any) -> Any:
    return mpmath.mpf(math.gcd(*(_whole(value) for value in values)))


def _lcm(*values: Any) -> Any:
    return mpmath.mpf(math.lcm(*(_whole(value) for value in values)))


def _whole(value: Any) -> int:
    if mpmath.im(value) != 0 or abs(value) > MAX_LOG2 or value != mpmath.nint(value):
        raise UndefinedError
    return int(value)


def _real_order(choose: Callable[..., Any]) -> Callable[..., Any]:
    def chosen(*values: Any) -> Any:
        if any(mpmath.im(value) != 0 for value in values):
            raise UndefinedError
        return choose(mpmath.re(value) for value in values)

    return chosen


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "sin": mpmath.sin,
    "cos": mpmath.cos,
    "tan": mpmath.tan,
    "cot": mpmath.cot,
    "sec": mpmath.sec,
    "csc": mpmath.csc,
    "arcsin": mpmath.asin,
    "arccos": mpmath.acos,
    "arctan": mpmath.atan,
    "arccot": mpmath.acot,
    "sinh": mpmath.sinh,
    "cosh": mpmath.cosh,
    "tanh": mpmath.tanh,
    "coth": mpmath.coth,
    "arcsinh": mpmath.asinh,
    "arccosh": mpmath.acosh,
    "arctanh": mpmath.atanh,
    "ln": mpmath.log,
    "log": mpmath.log,
    "lg": mpmath.log10,
    "logbase": lambda value, base: mpmath.log(value) / mpmath.log(base),
    "exp": mpmath.exp,
    "sqrt": mpmath.sqrt,
    "root": _real_root,
    "abs": abs,
    "floor": _rounding(mpmath.floor),
    "ceil": _rounding(mpmath.ceil),
    "factorial": mpmath.factorial,
    "binom": mpmath.binomial,
    "gcd": _gcd,
    "lcm": _lcm,
    "max": _real_order(max),
    "min": _real_order(min),
    "ratio": lambda left, right: left / right,
}


def walk(node: Node) -> Iterator[Node]:
    """All nodes of an expression."""
    stack = [node]
    while stack:
        current = stack.pop()
        yield current
        if current[0] == "app":
            continue
        stack.extend(part for part in current[1:] if isinstance(part, tuple) and part and isinstance(part[0], str))


def replaced(node: Node, change: Callable[[Node], Node | None]) -> Node:
    """The expression with `change` applied to every node, from the leaves up; None leaves a node as it is."""
    if node[0] != "app":
        node = tuple(
            replaced(part, change) if isinstance(part, tuple) and part and isinstance(part[0], str) else part
            for part in node
        )
    new = change(node)
    return node if new is None else new


def common_logarithms(node: Node) -> Node:
    """The expression with every `log` without a base read as the logarithm to base ten."""
    return replaced(node, lambda part: ("fn", "lg", part[2]) if part[:2] == ("fn", "log") else None)


def free_symbols(node: Node, drop_arguments: bool = False) -> frozenset[str]:
    """Names of the variables."""
    names: set[str] = set()
    bound: set[str] = set()
    for current in walk(node):
        if current[0] == "sym":
            names.add(current[1])
        elif current[0] == "app":
            names.update(_application_symbols(current, drop_arguments))
        elif current[0] in ("sum", "prod"):
            bound.add(current[1])
    return frozenset(names - bound)


def _application_symbols(node: Node, drop_arguments: bool) -> set[str]:
    function, arguments = node[1][1], node[2]
    if drop_arguments:
        return {function if not arguments[0].isdigit() else f"{function}_{arguments[0]}"}
    return {function, *(name for name in arguments if not name[0].isdigit() and name not in ("e", "i"))}
