"""Many-digit values of expressions at given values of their symbols, never without a bound.

Powers, factorials, series and angles whose result would be beyond the caps raise `TooLargeError`; what has no value
(0/0, log 0) raises `UndefinedError`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from typing import Any

import mpmath

from ..reading.values import Node
from .exact import MAX_BITS, STEPS, TooLargeError, UndefinedError, UnknownSymbolError, based, bits, exact

MAX_LOG2 = 1e9  # of a number: beyond this even its exponent gets long
MAX_GAMMA = 1e8  # argument of a factorial
MAX_DEGREE_BITS = 64  # of the degree of a root, to know whether it is odd
MAX_ANGLE = 1e30  # of a sine: it costs as many digits
MAX_TERMS = 2000  # of a sum or product
TRIGONOMETRIC = frozenset({"sin", "cos", "tan", "cot", "sec", "csc"})
EXPONENTIAL = frozenset({"exp", "sinh", "cosh", "tanh", "coth"})
LOGARITHMIC = frozenset({"ln", "log", "lg", "logbase"})


class Evaluator:
    """Evaluates nodes at a given precision and assignment of the symbols, and notes what precision that takes."""

    def __init__(self, bits: int, symbols: Mapping[str, Any] | None = None) -> None:
        self.bits = bits
        self.symbols = dict(symbols or {})
        self.steps = STEPS
        self.largest, self.smallest = 0, 0  # binary exponents of the terms of sums
        self.lost = 0  # bits that large angles and exponents cost
        self.literal = 0  # bits of the longest number that is written out

    @property
    def needed(self) -> int:
        """Bits to tell the largest from the smallest term of a sum, and from the next one."""
        return int(max(2 * self.largest - self.smallest + self.lost, self.literal))

    def __call__(self, node: Node) -> Any:
        """The value as an mpmath number, real where it is real."""
        with mpmath.workprec(self.bits):
            try:
                value = self._value(node)
            except (ZeroDivisionError, ValueError, OverflowError, mpmath.libmp.NoConvergence, TypeError) as error:
                raise UndefinedError from error
            if isinstance(value, mpmath.mpc) and abs(value.imag) <= abs(value.real) * mpmath.mpf(2) ** (26 - self.bits):
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
        if bits(value) > MAX_BITS:
            raise TooLargeError
        if bits(value) > self.bits // 2:
            self.literal = max(self.literal, 2 * bits(value))
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
        left, right = self._value(node[1]), self._value(node[2])
        for term in (left, right):
            if term != 0:
                size = mpmath.mag(term)
                self.largest, self.smallest = max(self.largest, size), min(self.smallest, size)
        return left + right

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
        value = based(node[1], node[2])
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
        self._lose(exponent)
        return base**exponent

    def _lose(self, argument: Any) -> None:
        """A large exponent or angle multiplies the relative error."""
        if argument != 0:
            self.lost = max(self.lost, int(mpmath.mag(argument)))

    def _app(self, node: Node) -> Any:
        """An unknown function: some number for each value of its arguments."""
        arguments = [mpmath.nstr(self._value(argument), 25) for argument in node[2:]]
        digest = hashlib.blake2b(repr((node[1], arguments)).encode(), digest_size=8).digest()
        return 1 + mpmath.mpf(int.from_bytes(digest)) / 2**63

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
        if name in TRIGONOMETRIC or name in EXPONENTIAL:
            if (
                abs(values[0]) > (MAX_ANGLE if name in TRIGONOMETRIC else MAX_LOG2)
                or abs(mpmath.im(values[0])) > MAX_LOG2
            ):
                raise TooLargeError
            self._lose(values[0])
        if name in ("factorial", "binom") and any(abs(value) > MAX_GAMMA for value in values):
            raise TooLargeError
        if name in LOGARITHMIC and any(value == 0 for value in values):
            raise UndefinedError
        return _FUNCTIONS[name](*values)

    def _both_signs(self, node: Node) -> Any:
        raise UnknownSymbolError("pm")

    _METHODS: Mapping[str, Callable[[Evaluator, Node], Any]] = {
        "num": _num,
        "sym": _sym,
        "const": _const,
        "add": _add,
        "mul": _mul,
        "div": _div,
        "neg": _neg,
        "pm": _both_signs,
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
    whole = mpmath.im(degree) == 0 and mpmath.mag(degree) < MAX_DEGREE_BITS and mpmath.isint(degree)
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
