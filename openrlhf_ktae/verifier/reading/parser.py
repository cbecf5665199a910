r"""Cleaned text -> a value.

The reader is a recursive descent over tokens, in layers that each inherit the one below: `cursor`, `arithmetic`,
`commands`, `sides`, `structure`. It reads what answers are made of and nothing else: no assignment, no call, no
attribute, no lookup of a name in Python. Whatever it does not know raises `ReadError`, and the caller decides what
that means.
"""

from __future__ import annotations

import re

from .lexer import ReadError, Token, tokenise
from .structure import Structure
from .values import Clock, Scalar, Value
from .words import CHANGING, CONDITION_STARTS, CONNECTIVES, FILLERS, OPENERS, VERBS, is_word

_PLAIN_WORDS = re.compile(r"[A-Za-z][A-Za-z' -]*")
_OUTWARD_INTERVAL = re.compile(r"^(?:\s*[a-z]\s*\\in)?\s*\]|\[\s*$")
_ANY_INTERVAL = re.compile(r"([\[\]])([^\[\]]*,[^\[\]]*)([\[\]])")
_NUMERAL = re.compile(r"\(?(?:\\(?:text|mathrm)\{)?([0-9A-Z]{1,60})\}?\)?_\{?(\d{1,2})\}?")  # 1A_{16}


_CLOCK = re.compile(r"(\d{1,2}):([0-5]\d)(?::([0-5]\d))?\s*(?:([ap])\.?\s?m\.?)?", re.IGNORECASE)
_STYLED = re.compile(r"\\(?:text|mathrm|textrm|mbox)\s*\{([^{}]*)\}|[{}]")


def read_clock(text: str) -> Clock | None:
    """A time of day such as `3:45`, `15:45`, `3:45 p.m.`; None for other texts."""
    plain = _STYLED.sub(lambda m: m[1] or "", text).strip()
    match = _CLOCK.fullmatch(re.sub(r"^[A-Za-z ]{1,40} (?:is|at) +", "", plain))
    if match is None or int(match[1]) > 24:
        return None
    hour, half = int(match[1]), (match[4] or "").lower()
    if half or hour > 12:
        hour, half = hour % 12, half or "24"
    return Clock(3600 * hour + 60 * int(match[2]) + int(match[3] or 0), half)


def read(text: str, join_commas: bool = True, tight_division: bool = False) -> Value:
    """The value of a cleaned answer. Raises ReadError when it cannot be read, whole, as one."""
    words = re.split("[ -]", text)
    if len(words) > 1 and _PLAIN_WORDS.fullmatch(text) and any(is_word(word) for word in words):
        text = f"\\text{{{text}}}"
    if _OUTWARD_INTERVAL.search(text):
        text = _outward_intervals(text)
    numeral = _NUMERAL.fullmatch(text.replace(" ", ""))
    if numeral is not None and 10 < int(numeral[2]) <= 36:
        return Scalar(("based", numeral[1], int(numeral[2])))
    tokens = tokenise(text.removesuffix(".") if not text.endswith("..") else text, join_commas)
    while tokens and tokens[-1] in (("op", "."), ("op", "row")):
        tokens.pop()
    tokens = _after_introduction(tokens)
    if not tokens:
        raise ReadError("empty")
    return Structure(tokens, tight_division).whole()


def _after_introduction(tokens: list[Token]) -> list[Token]:
    r"""What a sentence says: `\text{The value of } x \text{ is } 9` -> 9, `\text{Therefore, } x = 9` -> x = 9."""
    if tokens[:1] and tokens[0][0] == "word" and tokens[0][1].lower() in OPENERS:
        tokens = tokens[1 + (tokens[1:2] == [("op", ",")]) :]
    verbs = [i for i, (kind, word) in enumerate(tokens) if kind == "word" and word.lower() in VERBS]
    if not verbs or not 0 < verbs[0] < len(tokens) - 1 or len(verbs) > 1:
        return tokens
    before = tokens[: verbs[0]]
    words = {word.lower() for kind, word in before if kind == "word"}
    if not words or (words - FILLERS) & (CHANGING | CONNECTIVES | CONDITION_STARTS) or ("op", ",") in before:
        return tokens
    return tokens[verbs[0] + 1 :]


def _outward_intervals(text: str) -> str:
    """`]2, 3]` and `[2, 3[`, as written in French schools, with parentheses for the open ends."""
    left, right = {"]": "("}, {"[": ")"}
    return _ANY_INTERVAL.sub(lambda m: left.get(m[1], m[1]) + m[2] + right.get(m[3], m[3]), text)
