"""Are two expressions without variables the same number?

Exactly as fractions where that is possible, else in 60 and then 120 digits. Only a gold that is a decimal may be met by
rounding.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import mpmath

from ..reading.values import Node
from .evaluate import Evaluator
from .exact import TooLargeError, UndefinedError, UnknownSymbolError, exact

DIGITS = 60
SAME = 40  # decimal digits in which equal constants agree at 60; and 100 at 120
HUGE_LOG2 = 150_000  # beyond it 60 digits say nothing about the last ones: only exact or identical forms are equal


class GoldError(Exception):
    """The gold itself cannot be evaluated."""


def same_constant(gold: Node, answer: Node, scale: Fraction = Fraction(1)) -> bool:
    """Equality of value of two expressions without variables; `scale` converts the answer's unit."""
    try:
        gold_exact = exact(gold)
    except (TooLargeError, UndefinedError) as error:
        raise GoldError from error
    try:
        answer_exact = exact(answer)
        if gold_exact is not None and answer_exact is not None:
            return gold_exact == answer_exact * scale or rounds_to(gold, answer, answer_exact * scale)
        return _same_inexact(gold, answer, scale)
    except (TooLargeError, UndefinedError, UnknownSymbolError):
        return False


def _same_inexact(gold: Node, answer: Node, scale: Fraction) -> bool:
    """Equal if the difference vanishes as the digits grow: clearly different values end at 60 digits."""
    coarse, size = _difference(gold, answer, scale, DIGITS)
    if size != 0 and mpmath.mag(size) > HUGE_LOG2:
        return False
    if coarse <= max(size * mpmath.mpf(10) ** -(DIGITS // 2), mpmath.mpf(10) ** -SAME):
        fine, size = _difference(gold, answer, scale, 2 * DIGITS)
        if fine <= max(coarse * mpmath.mpf(10) ** -SAME, size * mpmath.mpf(10) ** -(DIGITS + SAME)):
            return True
    return rounds_to(gold, answer, Evaluator(DIGITS)(answer) * scale.numerator / scale.denominator)


def _difference(gold: Node, answer: Node, scale: Fraction, digits: int) -> tuple[Any, Any]:
    """|gold - scale * answer| and the larger of the two, in so many digits."""
    gold_value, answer_value = _gold_value(gold, digits), Evaluator(digits)(answer)
    with mpmath.workdps(digits):
        answer_value = answer_value * scale.numerator / scale.denominator
        return abs(gold_value - answer_value), max(abs(gold_value), abs(answer_value))


def _gold_value(gold: Node, digits: int) -> Any:
    try:
        return Evaluator(digits)(gold)
    except (TooLargeError, UndefinedError, UnknownSymbolError) as error:
        raise GoldError from error


def rounds_to(gold: Node, answer: Node, value: Any) -> bool:
    """Whether a decimal gold and an answer are one number, rounded differently.

    An exact or longer answer that rounds to a gold of three digits or more is right; for a gold in scientific notation
    (a measured value) two digits are enough, and its own rounding to three digits is right as well. Whole and
    fractional golds are exact: no decimal is near enough.
    """
    literal = decimal_literal(gold)
    if literal is None:
        return False
    gold_value, gold_unit, gold_digits, scientific = literal
    if gold_digits < (2 if scientific else 3):
        return False
    given = decimal_literal(answer)
    value = Fraction(str(mpmath.nstr(value, 40))) if not isinstance(value, Fraction) else value
    if given is None or given[2] > gold_digits:
        return abs(value - gold_value) <= gold_unit / 2
    if given[2] < gold_digits and given[2] >= 3 and scientific:
        return abs(value - gold_value) <= given[1] / 2
    return False


def decimal_literal(node: Node) -> tuple[Fraction, Fraction, int, bool] | None:
    """(value, unit of the last digit, significant digits, scientific) of a decimal such as 28.71 or 4.6e-24."""
    if node[0] == "neg":
        inner = decimal_literal(node[1])
        return None if inner is None else (-inner[0], *inner[1:])
    if node[0] == "mul" and node[1][0] == "num" and node[2][0] == "pow":
        power = exact(node[2])
        inner = decimal_literal(node[1])
        if inner is None or power is None or node[2][1] != ("num", Fraction(10), "10"):
            return None
        return inner[0] * power, inner[1] * power, inner[2], True
    if node[0] != "num" or "." not in node[2]:
        return None
    mantissa, _, exponent = node[2].partition("e")
    whole, _, decimals = mantissa.partition(".")
    digits = (whole + decimals).lstrip("0")
    if not decimals.strip("0") and not exponent:
        return None
    unit = Fraction(1, 10 ** len(decimals)) * Fraction(10) ** int(exponent or 0)
    return node[1], unit, len(digits), bool(exponent)
