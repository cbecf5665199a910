"""The verdict on one answer: equal text, our own bounded reading, then math-verify for what that cannot read."""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Sequence

from ..quick import squeeze
from ..reading.clean import clean
from ..reading.lexer import ReadError, has_comma_groups
from ..reading.parser import read
from ..reading.values import Scalar, Text, Value
from . import library
from .choices import same_choice
from .compare import same
from .constants import GoldError

PROSE_WORDS = 8  # a gold of more words is prose: other wordings of it cannot be judged
Decision = tuple[str, str]
_LABELLED_POINT = re.compile(r"[A-Z]'?(?:_\{?\w\}?)?\s*(\(([^()=]*),([^()=]*)\))")  # P(1, -2)
_OR = re.compile(r"\\text\s*\{\s*or\s*\}|\sor\s")
_LIMIT = re.compile(
    r"\\(?:lim|sup|inf|int|iint|oint|max|min|limsup|liminf)(?![a-zA-Z])[^=]*(?:\{[^{}]*=[^{}]*\}[^=]*)?=([^=]*)"
)


def warm_up() -> None:
    """Do small checks, so that the grammar and the lazy imports are loaded before limits apply."""
    logging.disable(logging.CRITICAL)
    judge(["\\frac{1}{2}"], "x+\\sqrt{2}")
    library.accepts("\\int x dx", "\\frac{x^2}{2}")


def judge(golds: Sequence[str], answer: str) -> Decision:
    """Status and reason for one answer against alternative golds: one that agrees is enough."""
    decisions: list[Decision] = []
    for gold in golds:
        decisions.append(judge_one(clean(gold), clean(answer)))
        if decisions[-1][0] == "correct":
            return decisions[-1]
    return next((decision for decision in decisions if decision[0] == "wrong"), decisions[0])


def judge_one(gold: str, answer: str) -> Decision:
    """Status and reason for one cleaned answer against one cleaned gold."""
    if squeeze(gold) == squeeze(answer):
        return "correct", "same text"
    choice = same_choice(gold, answer)
    if choice is not None:
        return ("correct", "same choice") if choice else ("wrong", "different choice")
    golds, answers = readings(gold), readings(answer)
    decision = _compare(golds, answers) if golds and answers else None
    if decision is not None and decision[0] == "wrong" and _restated(golds, answer):
        return "correct", "same value twice"
    return decision or _ask_library(gold, answer, golds, answers)


@functools.lru_cache(maxsize=4096)
def readings(text: str) -> tuple[Value, ...]:
    """The ways to read a text: commas in thousands or as separators, `a/bc` as (a/b)c or a/(bc). Empty: unreadable."""
    found: list[Value] = []
    point = _LABELLED_POINT.fullmatch(text)
    if point is not None:
        return readings(point[1]) + (readings(f"\\binom{{{point[2]}}}{{{point[3]}}}") if text[0] == "C" else ())
    limit = _LIMIT.fullmatch(text)
    if limit is not None:
        return readings(limit[1])
    for join_commas in (True, False) if has_comma_groups(text) else (True,):
        for tight_division in (False, True) if "/" in text else (False,):
            try:
                value = read(text, join_commas, tight_division)
            except ReadError:
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


def _restated(golds: tuple[Value, ...], answer: str) -> bool:
    r"""`\frac{1}{2} \text{ or } 0.5`: one value in two forms."""
    forms = _OR.split(answer)
    if len(forms) != 2 or "," in answer or not all(isinstance(gold, Scalar) for gold in golds):
        return False
    verdicts = [_compare(golds, readings(form.strip())) for form in forms if form.strip()]
    return len(verdicts) == 2 and all(verdict is not None and verdict[0] == "correct" for verdict in verdicts)


def _ask_library(gold: str, answer: str, golds: tuple[Value, ...], answers: tuple[Value, ...]) -> Decision:
    if not golds and _is_prose(gold):
        return "unknown", "gold is prose"
    if golds and answers and all(isinstance(value, Text) for value in answers):
        return "wrong", "different text"
    if library.too_heavy(gold):
        return ("wrong", "answer unreadable") if golds else ("unknown", "gold unreadable")
    if library.too_heavy(answer):
        return "wrong", "answer not in closed form"
    if "==" in answer:
        return "wrong", "answer unreadable"
    accepted = library.accepts(gold, answer)
    if accepted is None:
        return ("wrong", "answer unreadable") if golds or library.parse(gold) else ("unknown", "gold unreadable")
    return ("correct", "math-verify accepts") if accepted else ("wrong", "math-verify rejects")


def _is_prose(gold: str) -> bool:
    return len(re.findall(r"[A-Za-z]{2,}", re.sub(r"\\[A-Za-z]+", "", gold))) > PROSE_WORDS
