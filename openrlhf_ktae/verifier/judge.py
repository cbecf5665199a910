"""The verdict on one answer: our bounded reading first, math-verify for what that cannot read. Worker processes only.

math-verify is asked last and never alone: it sees one short answer without towers or other constructions that run for
ever, and when it accepts two constants they must also agree to `AGREE` digits, because it rounds absolutely.
"""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Sequence
from typing import Any

from .clean import clean
from .compare import same
from .lexer import ReadError, has_comma_groups
from .numeric import GoldError
from .parser import read
from .quick import squeeze
from .values import Text, Value

AGREE = 9  # relative digits to which constants accepted by math-verify must agree
MAX_LIBRARY_CHARACTERS = 400
MAX_LIBRARY_POWERS = 8
PROSE_WORDS = 8  # a gold of more words is prose: other wordings of it cannot be judged
_LONG_NUMBER = re.compile(r"\d{40}")
_HEAVY = re.compile(r"\\(?:int|iint|oint|lim|sum|prod|det|begin)(?![a-zA-Z])|!\s*[!)]|\^\s*\{?[^{}]*\^|_{2}")
_LETTER = re.compile(r"\(?([A-Z])\)?")
_CHOICE = re.compile(r"(?:\(([A-Za-z])\)|([A-Z])(?=$|[).:]))[).:]?(.*)", re.DOTALL)
_STYLE = re.compile(
    r"\\(?:text|textbf|mathrm|mathbf|textrm|mbox|bf|rm)(?![a-zA-Z])|[{}\s\\]|option|choice|answer", re.IGNORECASE
)

Decision = tuple[str, str]


def warm_up() -> None:
    """Do small checks, so that the grammar and the lazy imports are loaded before limits apply."""
    logging.disable(logging.CRITICAL)
    judge_one("\\frac{1}{2}", "x+\\sqrt{2}")
    _library("\\int x dx", "\\frac{x^2}{2}")


def judge(golds: Sequence[str], answer: str) -> Decision:
    """Status and reason for one answer against alternative golds: one that agrees is enough."""
    decisions: list[Decision] = []
    for gold in golds:
        decisions.append(judge_one(gold, answer))
        if decisions[-1][0] == "correct":
            return decisions[-1]
    return next((decision for decision in decisions if decision[0] == "wrong"), decisions[0])


def judge_one(gold: str, answer: str) -> Decision:
    """Status and reason for one answer against one gold, both without box and dollars."""
    gold, answer = clean(gold), clean(answer)
    if squeeze(gold) == squeeze(answer):
        return "correct", "same text"
    choice = _same_choice(gold, answer)
    if choice is not None:
        return ("correct", "same choice") if choice else ("wrong", "different choice")
    golds = _readings(gold)
    answers = _readings(answer)
    if golds and answers:
        decision = _compare(golds, answers)
        if decision is not None:
            return decision
    return _ask_library(gold, answer, golds, answers)


@functools.lru_cache(maxsize=4096)
def _readings(text: str) -> tuple[Value, ...]:
    """The ways to read a text: commas in thousands or as separators, `a/bc` as (a/b)c or a/(bc). Empty: unreadable."""
    found: list[Value] = []
    for join_commas in (True, False) if has_comma_groups(text) else (True,):
        for tight_division in (False, True) if "/" in text else (False,):
            try:
                value = read(text, join_commas, tight_division)
            except (ReadError, RecursionError):
                continue
            if value not in found:
                found.append(value)
    return tuple(found)


def _compare(golds: tuple[Value, ...], answers: tuple[Value, ...]) -> Decision | None:
    """Correct if any reading agrees, wrong if all differ, None if a pair is undecided."""
    undecided = False
    for gold in golds:
        for answer in answers:
            try:
                verdict = same(gold, answer)
            except GoldError:
                verdict = None
            if verdict:
                return "correct", "same value"
            undecided = undecided or verdict is None
    return None if undecided else ("wrong", "different value")


def _same_choice(gold: str, answer: str) -> bool | None:
    """For a gold that is one capital letter: the letter in `(C)`, `C.`, `\\text{(C)} 12`; None if there is none."""
    letter = _LETTER.fullmatch(_STYLE.sub("", gold))
    if letter is None:
        return None
    stripped = _STYLE.sub("", answer)
    found = _CHOICE.match(stripped)
    if found is None:
        return True if stripped == letter[1] else None
    given = found[1] or found[2]
    if not found[3] or found[0][len(given)] in ").:" or found[1]:
        return given.upper() == letter[1] if found[1] or found[2] else None
    return None


# --- math-verify ------------------------------------------------------------------------------------------------------


def _ask_library(gold: str, answer: str, golds: tuple[Value, ...], answers: tuple[Value, ...]) -> Decision:
    if not golds and _is_prose(gold):
        return "unknown", "gold is prose"
    if answers and all(isinstance(value, Text) for value in answers) and golds:
        return "wrong", "different text"
    if _too_heavy(answer):
        return "wrong", "answer not in closed form"
    if not golds and _too_heavy(gold):
        return "unknown", "gold unreadable"
    accepted = _library(gold, answer)
    if accepted is None:
        return ("wrong", "answer unreadable") if golds else ("unknown", "gold unreadable")
    return ("correct", "math-verify accepts") if accepted else ("wrong", "math-verify rejects")


def _is_prose(gold: str) -> bool:
    return len(re.findall(r"[A-Za-z]{2,}", re.sub(r"\\[A-Za-z]+", "", gold))) > PROSE_WORDS


def _too_heavy(text: str) -> bool:
    """Text that the library may work on for ever: long, towering, with limits or long numbers."""
    return (
        len(text) > MAX_LIBRARY_CHARACTERS
        or text.count("^") > MAX_LIBRARY_POWERS
        or _LONG_NUMBER.search(text) is not None
        or _HEAVY.search(text) is not None
    )


def _library(gold: str, answer: str) -> bool | None:
    """math-verify's verdict; None if it cannot read one of the two."""
    gold_read, answer_read = _parse(gold), _parse(answer)
    if not gold_read or not answer_read:
        return None
    from math_verify import verify

    accepted = verify(list(gold_read), list(answer_read), timeout_seconds=None, raise_on_error=True)
    return bool(accepted) and _constants_agree(gold_read[0], answer_read[0])


@functools.lru_cache(maxsize=1024)
def _parse(text: str) -> tuple[Any, ...]:
    """math-verify's reading of one expression: no text around it, so nothing is picked from elsewhere."""
    from math_verify import LatexExtractionConfig, parse

    config = [LatexExtractionConfig(boxed_match_priority=0)]
    read_as = parse(f"\\boxed{{{text}}}", config, fallback_mode="no_fallback", parsing_timeout=None)
    return tuple(read_as)


def _constants_agree(gold: Any, answer: Any) -> bool:
    """Undo absolute rounding: two constants must agree relative to their size."""
    if getattr(gold, "free_symbols", True) or getattr(answer, "free_symbols", True):
        return True
    try:
        g, a = gold.evalf(30), answer.evalf(30)
        return bool(abs(g - a) <= abs(g) * 10**-AGREE)
    except (TypeError, AttributeError, ValueError):
        return True
