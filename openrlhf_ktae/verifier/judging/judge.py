"""The verdict on one answer: equal text, the same choice, or a reading that equals a reading of the gold."""

import functools
import math
import re
from collections.abc import Sequence

from ..quick import SAME_TEXT, squeeze
from ..reading.clean import clean
from ..reading.lexer import ReadError, has_comma_groups
from ..reading.parser import read, read_clock
from ..reading.values import Name, Relation, Scalar, Text, Value
from ..verdict import CORRECT, UNKNOWN, WRONG, Reason, Verdict
from .choices import same_choice
from .compare import same
from .exact import NoValueError

PROSE_WORDS = 8  # a gold of more words is prose: other wordings of it cannot be compared
SAME_VALUE, DIFFERENT_VALUE = Verdict(CORRECT, Reason.SAME_VALUE), Verdict(WRONG, Reason.DIFFERENT_VALUE)
SAME_CHOICE, DIFFERENT_CHOICE = Verdict(CORRECT, Reason.SAME_CHOICE), Verdict(WRONG, Reason.DIFFERENT_CHOICE)
UNREADABLE, GOLD_READ = Verdict(WRONG, Reason.ANSWER_UNREADABLE), Verdict(WRONG, Reason.GOLD_READ)
_LABELLED_POINT = re.compile(r"[A-Z]'?(?:_\{?\w\}?)?\s*(\(([^()=]*),([^()=]*)\))")  # P(1, -2)
_STYLED = re.compile(r"\\(?:text|textbf|mathrm|texttt|mbox)\{([^{}]*)\}")
_UPRIGHT = re.compile(r"\\(?:text|mathrm|ce)(?![a-zA-Z])|[{}_\s]")
# CH4, Ca(OH)2, Fe^3+
_SUBSTANCE = re.compile(r"(?=[^0-9]*[A-Z][a-z]?\)?\^?\d)(?:[A-Z][a-z]?\d*|\((?:[A-Z][a-z]?\d*)+\)\d*)+(?:\^?\d?[+-])?")
_OR = re.compile(r"\\text\s*\{\s*or\s*\}|\sor\s")
_LIMIT = re.compile(
    r"\\(?:lim|sup|inf|int|iint|oint|max|min|limsup|liminf)(?![a-zA-Z])[^=]*(?:\{[^{}]*=[^{}]*\}[^=]*)?=([^=]*)"
)


def read_golds(golds: Sequence[str]) -> Verdict:
    """Unknown with the reason if no gold can be read; otherwise wrong, which any answer is until it agrees."""
    reasons = [reason for gold in golds if (reason := _unread(clean(gold)))]
    _fullest(tuple(map(clean, golds)))
    return GOLD_READ if len(reasons) < len(golds) else Verdict(UNKNOWN, reasons[0])


@functools.lru_cache(maxsize=4096)
def _fullest(golds: tuple[str, ...]) -> tuple[str, ...]:
    """Cleaned golds without those that another gold repeats with a unit or name; the fuller ones decide."""
    if len(golds) == 1:
        return golds
    bare = {gold for gold in golds if all(isinstance(value, Scalar) and not value.unit for value in readings(gold))}
    full = [gold for gold in golds if gold not in bare]
    return tuple(g for g in golds if g not in bare or not any(judge_one(f, g).status == CORRECT for f in full))


@functools.lru_cache(maxsize=4096)
def _unread(gold: str) -> Reason | None:
    """Why a gold cannot be read; None if it can. Prose about a formula matches only its own text."""
    if _is_prose(gold):
        return None if re.search(r"[\\$=^]", gold) else Reason.GOLD_IS_PROSE
    named = _SUBSTANCE.fullmatch(_UPRIGHT.sub("", gold)) or same_choice(gold, gold)
    return None if named or readings(gold) else Reason.GOLD_UNREADABLE


def judge(golds: Sequence[str], answer: str) -> Verdict:
    """The verdict on one answer against alternative golds; one match is enough."""
    verdicts: list[Verdict] = []
    answer = clean(answer)
    for gold in _fullest(tuple(map(clean, golds))):
        verdicts.append(judge_one(gold, answer))
        if verdicts[-1].status == CORRECT:
            return verdicts[-1]
    return next((verdict for verdict in verdicts if verdict.status == WRONG), verdicts[0])


def judge_one(gold: str, answer: str) -> Verdict:
    """The verdict on one cleaned answer against one cleaned gold."""
    if _bare(gold) == _bare(answer):
        return SAME_TEXT
    substances = [_UPRIGHT.sub("", text) for text in (gold, answer)]
    if substances != [gold, answer] and (all(map(_SUBSTANCE.fullmatch, substances)) or "\\ce" in gold + answer):
        return SAME_TEXT if substances[0] == substances[1] else DIFFERENT_VALUE
    choice = same_choice(gold, answer)
    if choice is not None:
        return SAME_CHOICE if choice else DIFFERENT_CHOICE
    unread = _unread(gold)
    if unread:
        return Verdict(UNKNOWN, unread)
    if _is_prose(gold):
        return Verdict(WRONG, Reason.DIFFERENT_TEXT)
    answers = readings(answer)
    if not answers:
        return UNREADABLE
    golds = readings(gold)
    return SAME_VALUE if _agree(golds, answers) or _restated(golds, answer) else DIFFERENT_VALUE


@functools.lru_cache(maxsize=4096)
def readings(text: str) -> tuple[Value, ...]:
    """All readings of a text: commas in thousands or as separators, `a/bc` as (a/b)c or a/(bc). Empty if unreadable."""
    found: list[Value] = []
    point = _LABELLED_POINT.fullmatch(text)
    if point is not None:
        name, pairs = Name(text[: point.start(1)].strip()), readings(point[1])
        named = tuple(Relation((Text(name.base), pair), ("=",), (name, None)) for pair in pairs)
        return named + (readings(f"\\binom{{{point[2]}}}{{{point[3]}}}") if text[0] == "C" else ())
    clock = read_clock(text) if ":" in text else None
    if clock is not None:
        found.append(clock)
        hours, minutes = divmod(clock.seconds // 60, 60)
        if clock.half or minutes < 10 or math.gcd(hours, minutes) > 1:  # else it may be a ratio in lowest terms
            return (clock,)
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


def _agree(golds: Sequence[Value], answers: Sequence[Value]) -> bool:
    """True if any reading of the answer equals any reading of the gold."""
    for gold in golds:
        for answer in answers:
            try:
                if same(gold, answer):
                    return True
            except NoValueError:
                continue
    return False


def _restated(golds: Sequence[Value], answer: str) -> bool:
    r"""True for one value given in two forms: `\frac{1}{2} \text{ or } 0.5`."""
    forms = _OR.split(answer)
    if len(forms) != 2 or "," in answer or not all(isinstance(gold, Scalar) for gold in golds):
        return False
    return all(form.strip() and _agree(golds, readings(form.strip())) for form in forms)


def _bare(cleaned: str) -> str:
    r"""The squeezed text, without a `\text{}` around all of it."""
    text = squeeze(cleaned)
    styled = _STYLED.fullmatch(text)
    return styled[1].strip("\x00") if styled else text


@functools.lru_cache(maxsize=4096)
def _is_prose(gold: str) -> bool:
    return len(re.findall(r"[A-Za-z]{2,}", re.sub(r"\\[A-Za-z]+", "", gold))) > PROSE_WORDS
