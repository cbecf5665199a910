"""Verdicts that need no symbolic algebra: equal text and plain numbers. Bounded time, safe in any thread."""

from __future__ import annotations

import re
from fractions import Fraction

MAX_DIGITS = 4000  # longer numbers are compared as text only
_NUMBER = re.compile(r"([-+]?)(\d+(?:,\d{3})*|\d*)(?:\.(\d+))?", re.ASCII)


def normalise(text: str) -> str:
    """White space and outer dollars removed."""
    return re.sub(r"\s+", "", text.strip().strip("$"))


def number(text: str) -> Fraction | None:
    """The exact value of a plain decimal number, else None."""
    match = _NUMBER.fullmatch(text) if len(text) <= MAX_DIGITS else None
    if match is None or not (match[2] or match[3]):
        return None
    digits = match[2].replace(",", "")
    value = Fraction(int(digits or "0")) + (Fraction(int(match[3]), 10 ** len(match[3])) if match[3] else 0)
    return -value if match[1] == "-" else value


def quick_verdict(gold: str, answer: str) -> tuple[str, str] | None:
    """Status and reason, or None where a symbolic check has to decide."""
    gold, answer = normalise(gold), normalise(answer)
    if gold == answer:
        return "correct", "same text"
    gold_value, answer_value = number(gold), number(answer)
    if gold_value is None or answer_value is None:
        return None
    return ("correct", "same number") if gold_value == answer_value else ("wrong", "different number")
