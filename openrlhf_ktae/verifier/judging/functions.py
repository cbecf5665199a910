"""Are two expressions with variables the same function, or two equations the same equation?

They are compared at fixed, odd points in 60 digits: two different formulas of this field do not agree there.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable
from typing import Any

import mpmath

from ..reading.nodes import free_symbols, walk
from ..reading.values import Node
from .evaluate import Evaluator
from .exact import UndefinedError, UnknownSymbolError

DIGITS = 60
POINT_SAME = 30  # digits in which the values at a point agree
POSITIVE_POINTS, SIGNED_POINTS, INTEGER_POINTS = 4, 3, 24
MIN_POINTS = 3  # points at which both sides must be defined before they count as equal
INTEGER_LETTERS = frozenset("n m k N M K p q r j l s".split())
CONSTANTS = frozenset("C c C_0 C_1 C_2 C_3 C_4 c_0 c_1 c_2 c_3 c_4".split())
ARBITRARY = CONSTANTS | frozenset("K k A B D".split())
PARAMETERS = frozenset("k n m l t j".split())


def same_function(gold: Node, answer: Node, renames: Iterable[dict[str, str]] = ()) -> bool | None:
    """Equality at the test points under some reading of `y(t)`; None if too few points count."""
    undecided = False
    applied = any(current[0] == "app" for node in (gold, answer) for current in walk(node))
    for drop in (False, True) if applied else (False,):
        gold_symbols, answer_symbols = free_symbols(gold, drop), free_symbols(answer, drop)
        for rename in [{}, *renames, *_renames(gold, answer, gold_symbols, answer_symbols)]:
            verdict = _agree(gold, answer, gold_symbols, answer_symbols, rename, drop)
            if verdict:
                return True
            undecided = undecided or verdict is None
    return None if undecided else False


def _renames(
    gold: Node, answer: Node, gold_symbols: frozenset[str], answer_symbols: frozenset[str]
) -> list[dict[str, str]]:
    """Other names that the same thing may have in the answer: an arbitrary constant, a parameter, a subscript."""
    missing, extra = sorted(gold_symbols - answer_symbols), sorted(answer_symbols - gold_symbols)
    if not extra or len(missing) != len(extra) or len(extra) > 4:
        return []
    others = gold_symbols & answer_symbols
    for some, more in ((missing, extra), (extra, missing)):
        if others and all(name in CONSTANTS for name in some) and all(name in ARBITRARY for name in more):
            return [dict(zip(order, missing, strict=True)) for order in itertools.permutations(extra)]
    periodic = any(current == ("const", "pi") for current in walk(gold))
    if len(extra) == 1 and periodic and missing[0] in PARAMETERS and extra[0] in PARAMETERS:
        return [{extra[0]: missing[0]}]
    stripped = {name: _without_label(name) for name in extra}
    if sorted(stripped.values()) == missing:
        return [stripped]
    full = {_without_label(name): name for name in missing}
    if sorted(full) == extra:
        return [full]
    return []


def _without_label(name: str) -> str:
    """`M_core` without its subscript in words; `v_0` and `x_n` are other things than v and x."""
    base, _, label = name.partition("_")
    return base if len(label) > 1 and label.isalpha() else name


def _agree(
    gold: Node,
    answer: Node,
    gold_symbols: frozenset[str],
    answer_symbols: frozenset[str],
    rename: dict[str, str],
    drop: bool,
) -> bool | None:
    """True or False by the test points, None if fewer than `MIN_POINTS` of them are in both domains."""
    names = sorted(gold_symbols | {rename.get(name, name) for name in answer_symbols})
    complex_wanted = any(current == ("const", "i") for node in (gold, answer) for current in walk(node))

    def compared(points: Iterable[dict[str, Any]]) -> tuple[int, bool]:
        count = 0
        for point in points:
            pair = _evaluate_pair(gold, answer, point, rename, answer_symbols, drop)
            if pair is None or (not complex_wanted and any(mpmath.im(v) != 0 for v in pair)):
                continue
            count += 1
            if not _close(*pair):
                return count, False
        return count, True

    count, agree = compared(_real_points(names))
    if agree and count >= MIN_POINTS:
        return True
    if _needs_integers(gold, answer):
        count, agree = compared(_integer_points(names))
        return (True if count >= MIN_POINTS else None) if agree else False
    return None if agree else False


def _evaluate_pair(
    gold: Node,
    answer: Node,
    point: dict[str, Any],
    rename: dict[str, str],
    answer_symbols: frozenset[str],
    drop: bool,
) -> tuple[Any, Any] | None:
    own = {name: point[rename.get(name, name)] for name in answer_symbols}
    try:
        left = Evaluator(DIGITS, point, drop)(gold)
        right = Evaluator(DIGITS, own, drop)(answer)
    except UndefinedError:
        return None
    except UnknownSymbolError:
        return None
    return left, right


def _close(left: Any, right: Any) -> bool:
    with mpmath.workdps(DIGITS):
        difference = abs(left - right)
        return bool(
            difference <= max(abs(left), abs(right)) * mpmath.mpf(10) ** -POINT_SAME
            or difference <= mpmath.mpf(10) ** -(DIGITS - 8)
        )


def _real_points(names: list[str]) -> Iterable[dict[str, Any]]:
    """Positive points first, then points of either sign; the same ones in every run and process."""
    generator = random.Random(len(names))
    with mpmath.workdps(DIGITS):
        for index in range(POSITIVE_POINTS + SIGNED_POINTS):
            signs = [1 if index < POSITIVE_POINTS else generator.choice((-1, 1)) for _ in names]
            if index >= POSITIVE_POINTS and names and all(sign > 0 for sign in signs):
                signs[generator.randrange(len(signs))] = -1
            yield {
                name: sign * (mpmath.mpf(generator.randrange(3 * 10**8, 28 * 10**8)) / 10**9 + mpmath.mpf(1) / 7919)
                for name, sign in zip(names, signs, strict=True)
            }


def _integer_points(names: list[str]) -> Iterable[dict[str, Any]]:
    """Integers for the letters that stand for integers, real numbers for the others."""
    generator = random.Random(1)
    with mpmath.workdps(DIGITS):
        for index in range(INTEGER_POINTS):
            yield {
                name: mpmath.mpf(index + 1 if len(names) == 1 else generator.randrange(1, 30))
                if name[0] in INTEGER_LETTERS
                else mpmath.mpf(generator.randrange(3 * 10**8, 28 * 10**8)) / 10**9
                for name in names
            }


def _needs_integers(gold: Node, answer: Node) -> bool:
    """True where an identity may hold for integers alone: roundings, factorials, (-1)^n, cos(n pi)."""
    for current in itertools.chain(walk(gold), walk(answer)):
        if current[0] in ("sum", "prod"):
            return True
        if current[0] == "fn" and current[1] in (
            "floor", "ceil", "factorial", "binom", "gcd", "lcm", "sin", "cos", "tan",
        ):  # fmt: skip
            return True
        if current[0] == "pow" and current[1][0] in ("neg", "num") and free_symbols(current[2]):
            return True
    return False


def same_equation(
    gold: Node, answer: Node, renames: Iterable[dict[str, str]] = (), positive: bool = False
) -> bool | None:
    """`gold = 0` and `answer = 0` are the same equation: one is a multiple of the other.

    The multiple is a number, which must be positive with `positive` (for inequalities); in a differential equation it
    may also depend on the parameters, but not on the unknown functions.
    """
    verdict: bool | None = False
    applied = any(current[0] == "app" for node in (gold, answer) for current in walk(node))
    for drop in (False, True) if applied else (False,):
        gold_symbols, answer_symbols = free_symbols(gold, drop), free_symbols(answer, drop)
        for rename in [{}, *renames, *_renames(gold, answer, gold_symbols, answer_symbols)]:
            if {rename.get(name, name) for name in answer_symbols} != gold_symbols:
                continue
            ratios = _ratios(gold, answer, gold_symbols, answer_symbols, rename, drop)
            if len(ratios) < MIN_POINTS:
                verdict = None
            elif all(_close(ratio, ratios[0]) for ratio in ratios) and _is_multiple(ratios[0], positive):
                return True
    return verdict


def _is_multiple(ratio: Any, positive: bool) -> bool:
    """True for a factor that is not zero, and with `positive` is positive."""
    if abs(ratio) < mpmath.mpf(10) ** -20:
        return False
    return not positive or (mpmath.im(ratio) == 0 and mpmath.re(ratio) > 0)


def _ratios(
    gold: Node,
    answer: Node,
    gold_symbols: frozenset[str],
    answer_symbols: frozenset[str],
    rename: dict[str, str],
    drop: bool,
) -> list[Any]:
    """answer / gold at the test points; in a differential equation the parameters keep their first values."""
    unknowns = _unknown_functions(gold_symbols)
    parameters = gold_symbols - unknowns if unknowns else frozenset()
    first: dict[str, Any] = {}
    ratios = []
    for point in _real_points(sorted(gold_symbols)):
        first = first or point
        point = {name: (first if name in parameters else point)[name] for name in point}
        pair = _evaluate_pair(gold, answer, point, rename, answer_symbols, drop)
        if pair is not None and pair[0] != 0:
            ratios.append(pair[1] / pair[0])
    return ratios


def _unknown_functions(names: frozenset[str]) -> frozenset[str]:
    """Derivatives among the symbols (`y'`, `partial u/partial t`) and what they are derivatives of."""
    derivatives = {name for name in names if "/" in name or "'" in name}
    bases = {name.replace("'", "").split("/")[0].removeprefix("partial") for name in derivatives}
    return frozenset(derivatives | (bases & names))
