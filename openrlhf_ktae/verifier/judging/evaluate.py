"""Values of expressions in many digits at given values of their symbols, with bounded cost.

Powers, factorials, series and angles beyond the limits raise `TooLargeError`. Expressions without a value (0/0, log 0)
raise `NoValueError`.
"""

import hashlib
import math
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import mpmath

from ..reading.values import Node
from .exact import MAX_BITS, STEPS, NoValueError, TooLargeError, based, bits, exact

MAX_LOG2 = 1e9  # of a number: beyond this even its exponent gets long
MAX_GAMMA = 1e8  # argument of a factorial
MAX_DEGREE_BITS = 64  # of the degree of a root, to know whether it is odd
MAX_ANGLE = 1e30  # of a sine, which loses as many digits
MAX_TERMS = 2000  # of a sum or product
TRIGONOMETRIC = frozenset({"sin", "cos", "tan", "cot", "sec", "csc"})
EXPONENTIAL = frozenset({"exp", "sinh", "cosh", "tanh", "coth"})
RELATIVE = frozenset({"exp", "sqrt", "root", "abs", "factorial", "ratio"})  # as precise as their arguments
LOGARITHMIC = frozenset({"ln", "log", "lg", "logbase"})


class Evaluator:
    """Evaluates nodes at a given precision and values of the symbols, and notes the precision this requires."""

    def __init__(self, bits: int, symbols: Mapping[str, Any] | None = None) -> None:
        self.bits = bits
        self.symbols = dict(symbols or {})
        self.steps = STEPS
        self.largest, self.smallest = 0, 0  # binary exponents of the terms of sums
        self.cancelled = -math.inf  # binary exponent of the largest value that may have cancelled: a term, 1 in a sine
        self.lost = 0  # bits lost to large angles and exponents
        self.literal = 0  # bits of the longest literal

    @property
    def needed(self) -> int:
        """Bits that distinguish the largest term of a sum from the smallest and from its neighbours."""
        return int(max(2 * self.largest - self.smallest + self.lost, self.literal))

    def __call__(self, node: Node) -> Any:
        """The value as an mpmath number; a real number if its imaginary part is rounding error."""
        with mpmath.workprec(self.bits):
            try:
                value = self._value(node)
            except (ZeroDivisionError, ValueError, OverflowError, mpmath.libmp.NoConvergence, TypeError) as error:
                raise NoValueError from error
            if isinstance(value, mpmath.mpc) and abs(value.imag) <= abs(value.real) * mpmath.mpf(2) ** (26 - self.bits):
                value = value.real
            if not mpmath.isfinite(value):
                raise NoValueError
            return value

    def _value(self, node: Node) -> Any:
        self.steps -= 1
        if self.steps < 0:
            raise TooLargeError
        match node:
            case ("num", value, _):
                return self._literal(value)
            case ("sym", name):
                if name not in self.symbols:
                    raise NoValueError(name)
                return self.symbols[name]
            case ("mul", left, right):
                return self._capped(self._value(left) * self._value(right))
            case ("add", left, right):
                return self._added(self._value(left), self._value(right))
            case ("neg", inner):
                return -self._value(inner)
            case ("div", above, below):
                return self._capped(self._value(above) / self._value(below))
            case ("pow", base, exponent):
                return self._power(self._value(base), self._value(exponent))
            case ("fn", name, *arguments):
                return self._function(name, [self._value(argument) for argument in arguments])
            case ("const", "pi" | "e" | "i" as name):
                return {"pi": mpmath.pi, "e": mpmath.e, "i": mpmath.mpc(0, 1)}[name] * mpmath.mpf(1)
            case ("app", name, *arguments):
                return self._applied(name, [self._value(argument) for argument in arguments])
            case ("deg", inner):
                return self._value(inner) * mpmath.pi / 180
            case ("pct", inner):
                return self._value(inner) / 100
            case ("based", digits, base) if (value := based(digits, base)) is not None:
                return mpmath.mpf(value.numerator)
            case ("sum" | "prod", *_):
                return self._series(*node)
        raise NoValueError(node[0])

    def _literal(self, value: Fraction) -> Any:
        size = bits(value)
        if size > MAX_BITS:
            raise TooLargeError
        if size > self.bits // 2:
            self.literal = max(self.literal, 2 * size)
        above = mpmath.mpf(value.numerator)
        return above if value.denominator == 1 else above / value.denominator

    def _added(self, left: Any, right: Any) -> Any:
        for term in (left, right):
            if term != 0:
                size = mpmath.mag(term)
                self.largest, self.smallest = max(self.largest, size), min(self.smallest, size)
                self.cancelled = max(self.cancelled, size)
        return left + right

    def _power(self, base: Any, exponent: Any) -> Any:
        if base == 0:
            if mpmath.re(exponent) <= 0:
                raise NoValueError
            return mpmath.mpf(0)
        size = mpmath.mag(base)
        if abs(exponent) * max(size, 1 - size) > MAX_LOG2:
            raise TooLargeError
        self._lose(exponent)
        return base**exponent

    def _lose(self, argument: Any) -> None:
        """A large exponent or angle multiplies the relative error."""
        if argument != 0:
            self.lost = max(self.lost, int(mpmath.mag(argument)))

    @staticmethod
    def _applied(name: str, arguments: list[Any]) -> Any:
        """An unknown function: a fixed pseudo-random number for each value of its arguments."""
        told = repr((name, [mpmath.nstr(argument, 25) for argument in arguments]))
        digest = hashlib.blake2b(told.encode(errors="replace"), digest_size=8).digest()
        return 1 + mpmath.mpf(int.from_bytes(digest)) / 2**63

    def _series(self, kind: str, name: str, low_node: Node, high_node: Node, body: Node) -> Any:
        low, high = exact(low_node), exact(high_node)
        if low is None or high is None or low.denominator != 1 or high.denominator != 1:
            raise NoValueError(name)
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

    @staticmethod
    def _capped(value: Any) -> Any:
        size = abs(value)
        if size != 0 and abs(mpmath.mag(size)) > MAX_LOG2:
            raise TooLargeError
        return value

    def _function(self, name: str, values: list[Any]) -> Any:
        if name not in RELATIVE:
            self.cancelled = max(self.cancelled, 1)
        if name in TRIGONOMETRIC | EXPONENTIAL:
            limit = MAX_ANGLE if name in TRIGONOMETRIC else MAX_LOG2
            if abs(values[0]) > limit or abs(mpmath.im(values[0])) > MAX_LOG2:
                raise TooLargeError
            self._lose(values[0])
        if name in ("factorial", "binom") and any(abs(value) > MAX_GAMMA for value in values):
            raise TooLargeError
        if name in LOGARITHMIC and any(value == 0 for value in values):
            raise NoValueError
        return _FUNCTIONS[name](*values)


def _real_root(value: Any, degree: Any) -> Any:
    """A root; of a negative number and an odd degree the real one."""
    whole = mpmath.im(degree) == 0 and mpmath.mag(degree) < MAX_DEGREE_BITS and mpmath.isint(degree)
    if whole and int(degree) % 2 and mpmath.im(value) == 0 and mpmath.re(value) < 0:
        return -mpmath.root(-mpmath.re(value), int(degree))
    if value == 0:
        return mpmath.mpf(0)
    if degree == 0:
        raise NoValueError
    return mpmath.power(value, 1 / degree)


def _real(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that is defined only for real numbers."""

    def applied(*values: Any) -> Any:
        if any(mpmath.im(value) != 0 for value in values):
            raise NoValueError
        return function(*map(mpmath.re, values))

    return applied


def _rounding(function: Callable[[Any], Any]) -> Callable[..., Any]:
    """Floor or ceiling, robust to a value that misses an integer by rounding error."""

    def rounded(value: Any) -> Any:
        near = mpmath.nint(value)
        return near if abs(value - near) < mpmath.mpf(10) ** (-(mpmath.mp.dps // 2)) else function(value)

    return _real(rounded)


def _of_whole(function: Callable[..., int]) -> Callable[..., Any]:
    def applied(*values: Any) -> Any:
        if any(abs(value) > MAX_LOG2 or value != mpmath.nint(value) for value in values):
            raise NoValueError
        return mpmath.mpf(function(*map(int, values)))

    return _real(applied)


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "sin": mpmath.sin, "cos": mpmath.cos, "tan": mpmath.tan, "cot": mpmath.cot, "sec": mpmath.sec, "csc": mpmath.csc,
    "arcsin": mpmath.asin, "arccos": mpmath.acos, "arctan": mpmath.atan, "arccot": mpmath.acot,
    "sinh": mpmath.sinh, "cosh": mpmath.cosh, "tanh": mpmath.tanh, "coth": mpmath.coth,
    "arcsinh": mpmath.asinh, "arccosh": mpmath.acosh, "arctanh": mpmath.atanh,
    "ln": mpmath.log, "log": mpmath.log, "lg": mpmath.log10, "exp": mpmath.exp, "sqrt": mpmath.sqrt, "root": _real_root,
    "logbase": lambda value, base: mpmath.log(value) / mpmath.log(base),
    "abs": abs, "floor": _rounding(mpmath.floor), "ceil": _rounding(mpmath.ceil),
    "factorial": mpmath.factorial, "binom": mpmath.binomial, "ratio": lambda left, right: left / right,
    "gcd": _of_whole(math.gcd), "lcm": _of_whole(math.lcm), "max": _real(max), "min": _real(min),
}  # fmt: skip
