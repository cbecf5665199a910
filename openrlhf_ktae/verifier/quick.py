"""Verdicts that need no worker: equal texts and plain numbers. Bounded time, safe in any thread and event loop."""

import re

from .reading.clean import clean
from .verdict import CORRECT, WRONG, Reason, Verdict

MAX_CHARACTERS = 4000  # longer texts are compared as they are
MAX_NUMBER = 400
SAME_TEXT, SAME_NUMBER = Verdict(CORRECT, Reason.SAME_TEXT), Verdict(CORRECT, Reason.SAME_NUMBER)
DIFFERENT_NUMBER = Verdict(WRONG, Reason.DIFFERENT_NUMBER)
_NUMBER = re.compile(r"([-+]?)(\d+|\d{1,3}(?:,\d{3})+)(?:\.0*)?", re.ASCII)
_SPACE = re.compile(r"\s+")
_INNER_SPACE = re.compile(r"(?<=[0-9A-Za-z])\s+(?=[0-9A-Za-z])")
_TIDY = re.compile(r"\\[dt]frac(?![a-zA-Z])")


def squeeze(cleaned: str) -> str:
    """Return a cleaned text without dollar signs, final full stop and spaces (but `1 2` does not become `12`)."""
    text = _TIDY.sub(r"\\frac", cleaned.replace("$", "").strip().removesuffix("."))
    return _SPACE.sub("", _INNER_SPACE.sub("\x00", text.strip()))


def whole_number(text: str) -> int | None:
    """Return the value of a plain whole number (`42`, `-7`, `1,250`, `142.0`); None for other texts."""
    match = _NUMBER.fullmatch(text.strip("$ ")) if len(text) <= MAX_NUMBER else None
    if match is None:
        return None
    value = int(match[2].replace(",", ""))
    return -value if match[1] == "-" else value


def quick_verdict(gold: str, answer: str) -> Verdict | None:
    """Return the verdict, or None if a worker must decide."""
    if gold == answer:
        return SAME_TEXT
    if max(len(gold), len(answer)) > MAX_CHARACTERS:
        return _long_digits(gold, answer)
    gold, answer = clean(gold), clean(answer)
    if squeeze(gold) == squeeze(answer):
        return SAME_TEXT
    gold_value, answer_value = whole_number(gold), whole_number(answer)
    if gold_value is None or answer_value is None:
        return None
    return SAME_NUMBER if gold_value == answer_value else DIFFERENT_NUMBER


def _long_digits(gold: str, answer: str) -> Verdict | None:
    """Compare whole numbers of thousands of digits as text, since converting them takes quadratic time."""
    if not all(text.isascii() and text.isdigit() for text in (gold, answer)):
        return None
    return SAME_NUMBER if gold.lstrip("0") == answer.lstrip("0") else DIFFERENT_NUMBER
