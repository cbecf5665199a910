"""Exact values of expressions as fractions of limited size.

Every operation is checked before it is done, so any expression of n tokens costs at most about n operations on numbers
of bounded length.
"""

import math
from fractions import Fraction
from typing import Any

from ..reading.values import Node

MAX_BITS = 1 << 18  # of an exact number; enough to distinguish 2^100000 + 1 from 2^100000
MAX_FACTORIAL = 20000  # exact; larger ones go through the gamma function
STEPS = 20000  # operations of one evaluation
HUNDRED = Fraction(100)


class NoValueError(Exception):
    """The expression has no value: division by zero, a function outside its domain, a symbol without a value."""


class TooLargeError(NoValueError):
    """The value or an intermediate value exceeds the limits."""


def exact(node: Node) -> Fraction | None:
    """The value as a fraction, or None if it is irrational, symbolic or hard to compute exactly."""
    return _exact(node, [STEPS])


def _exact(node: Node, budget: list[int]) -> Fraction | None:
    budget[0] -= 1
    if budget[0] < 0:
        raise TooLargeError
    match node:
        case ("num", value, _):
            return value
        case ("based", digits, base):
            return based(digits, base)
        case ("add" | "mul" | "div" | "pow" | "neg" | "pct" | "fn" as kind, *parts):
            name = parts.pop(0) if kind == "fn" else ""
            values: list[Any] = []
            for part in parts:
                values.append(_exact(part, budget))
                if values[-1] is None:
                    return None
            return _exact_function(name, values) if name else _combine(kind, *values)
    return None


def bits(value: Fraction) -> int:
    """Length of the longer of numerator and denominator."""
    return max(value.numerator.bit_length(), value.denominator.bit_length())


def _combine(kind: str, left: Fraction, right: Fraction = HUNDRED) -> Fraction | None:
    if kind == "neg":
        return -left
    if kind == "pow":
        return _exact_power(left, right)
    if bits(left) + bits(right) > MAX_BITS:
        raise TooLargeError
    if kind == "add":
        return left + right
    if kind == "mul":
        return left * right
    if right == 0:
        raise NoValueError
    return left / right  # of `pct` too


def _exact_power(base: Fraction, exponent: Fraction) -> Fraction | None:
    if exponent.denominator != 1:
        return _exact_root(base, exponent)
    if base in (0, 1, -1):
        if base == 0 and exponent <= 0:
            raise NoValueError
        return Fraction(base) ** (int(exponent) % 2 if base == -1 else min(int(exponent), 1) if base == 0 else 1)
    if abs(exponent) * bits(base) > MAX_BITS:
        return None
    return base ** int(exponent)


def _exact_root(base: Fraction, exponent: Fraction) -> Fraction | None:
    """`4^{1/2}`, `8^{2/3}` if the root is a fraction."""
    if base < 0 or exponent.denominator > 60 or abs(exponent.numerator) > 1000 or bits(base) > 4096:
        return None
    above, below = (_integer_root(part, exponent.denominator) for part in (base.numerator, base.denominator))
    if above is None or below is None:
        return None
    return _exact_power(Fraction(above, below), Fraction(exponent.numerator))


def _integer_root(value: int, degree: int) -> int | None:
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
        return Fraction(abs(values[0]))
    if name in ("floor", "ceil"):
        return Fraction((math.floor if name == "floor" else math.ceil)(values[0]))
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


def based(digits: str, base: int) -> Fraction | None:
    """Value of a numeral; None for a base outside 2 to 36, NoValueError for a digit that is not valid in the base."""
    if not 2 <= base <= 36:
        return None
    try:
        return Fraction(int(digits, base))
    except ValueError as error:
        raise NoValueError from error
