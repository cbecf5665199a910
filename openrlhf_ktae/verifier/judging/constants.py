"""Are two expressions without variables the same number?

Compared exactly as fractions if possible, else in 80 and then 250 digits. Rounding is accepted only for a decimal gold.
"""

from fractions import Fraction
from typing import Any

import mpmath

from ..reading.values import Node
from .evaluate import Evaluator
from .exact import NoValueError, exact
from .functions import BITS, vanishes


def same_constant(gold: Node, answer: Node, scale: Fraction = Fraction(1)) -> bool:
    """Compare two expressions without variables; `scale` converts the answer's unit."""
    try:
        gold_exact, answer_exact = exact(gold), exact(answer)
        if gold_exact is not None and answer_exact is not None:
            return gold_exact == answer_exact * scale or rounds_to(gold, answer, answer_exact * scale)
        scaled = answer if scale == 1 else ("mul", answer, ("num", scale, ""))
        if all(vanishes(gold, scaled, {}, bits) for bits in (BITS, 3 * BITS)):
            return True
        value = Evaluator(BITS)(scaled)
        return mpmath.im(value) == 0 and rounds_to(gold, answer, mpmath.re(value))
    except NoValueError:
        return False


def rounds_to(gold: Node, answer: Node, value: Any) -> bool:
    """Whether a decimal gold and an answer are the same number, rounded differently.

    An exact or longer answer is right if it rounds to a gold of at least three digits. For a gold in scientific
    notation (a measured value) two digits suffice, and an answer rounded to three digits is right as well. Whole and
    fractional golds are exact: no decimal matches them.
    """
    literal = decimal_literal(gold)
    if literal is None:
        return False
    gold_value, gold_unit, gold_digits, scientific = literal
    if gold_digits < (2 if scientific else 3):
        return False
    given = decimal_literal(answer)
    if not isinstance(value, Fraction):
        if abs(mpmath.mag(value) - mpmath.mag(mpmath.mpf(gold_value.numerator) / gold_value.denominator)) > 2:
            return False
        value = Fraction(mpmath.nstr(value, 40))
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
