"""Are two expressions the same number or function, or two equations the same equation?

Two exact numbers are compared as fractions. Everything else is evaluated at fixed, unusual points. The precision grows
with the terms of sums: terms a million digits apart are distinguished, or not compared at all. An applied letter,
`f(x+1)`, takes an unrelated value for each value of its arguments.
"""

import functools
import itertools
import math
import random
from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import Any

import mpmath

from ..reading.nodes import free_symbols, renamed, replaced, walk
from ..reading.values import Node
from .evaluate import Evaluator
from .exact import NoValueError, TooLargeError, exact

BITS = 280  # of a first evaluation; 200 of them beyond the largest and the smallest term of any sum
SPARE_BITS = 200
MARGIN_BITS = 48  # allowed growth of rounding errors
MAX_BITS = 30_000
POSITIVE_POINTS, SIGNED_POINTS = 4, 3
MIN_POINTS = 3  # points at which both sides must be defined before they count as equal
SCALES = (30, 1000, 10**6)  # of further points for piecewise functions
INTEGER_LETTERS = frozenset("n m k N j l".split())
CONSTANTS = frozenset("C c C_0 C_1 C_2 C_3 C_4 c_0 c_1 c_2 c_3 c_4".split())
ARBITRARY = CONSTANTS | frozenset("K k A B D".split())
VARIABLES = frozenset("x y z t s u r theta".split())  # the variables of formulas with arbitrary constants
PARAMETERS = frozenset("k n m l t j".split())
PIECES = frozenset({"abs", "floor", "ceil", "max", "min", "gcd", "lcm", "sqrt", "root"})
OF_INTEGERS = frozenset({"floor", "ceil", "factorial", "binom", "gcd", "lcm", "sin", "cos", "tan"})
Point = dict[str, Any]
ZERO: Node = ("num", Fraction(0), "")


def vanishes(
    gold: Node, answer: Node, point: Point, bits: int = BITS, real: bool = False, last: float = -math.inf
) -> bool:
    """Whether both agree at a point to the last bits. Raises NoValueError if one has no (real) value.

    A difference no larger than rounding errors is computed again in more bits: a true zero shrinks with the errors.
    `last` is its binary exponent in fewer bits.
    """
    if bits > MAX_BITS:
        raise TooLargeError
    values, evaluators = [], []
    for node in (gold, answer):
        evaluators.append(Evaluator(bits, point))
        values.append(evaluators[-1](node))
    if real and any(mpmath.im(value) != 0 for value in values):
        raise NoValueError
    needed = max(evaluator.needed for evaluator in evaluators) + SPARE_BITS
    if needed > bits:
        return vanishes(gold, answer, point, needed, real)
    with mpmath.workprec(bits):
        difference = abs(values[0] - values[1])
        if difference == 0:
            return True
        size = max(mpmath.mag(value) for value in values if value != 0)
        error = max(evaluator.lost for evaluator in evaluators) + MARGIN_BITS - bits
        noise = max(evaluator.cancelled for evaluator in evaluators) + error
        if size > noise:
            return bool(mpmath.mag(difference) <= max(noise, size + error))
    return size < last - SPARE_BITS / 2 or vanishes(gold, answer, point, bits + noise - size + SPARE_BITS, real, size)


def same_function(gold: Node, answer: Node) -> bool:
    """Compare at the test points, in each notation and renaming that the answer may use."""
    return any(_agree(left, right) for left, right in _readings(gold, answer))


def _readings(gold: Node, answer: Node) -> Iterator[tuple[Node, Node]]:
    """The pair in each notation, and with each renaming that the answer may use."""
    for left, right in _notations(gold, answer):
        for names in [{}, *_renames(left, right)]:
            yield left, renamed(right, names)


def _notations(gold: Node, answer: Node) -> Iterator[tuple[Node, Node]]:
    """The pair as written, and with one side in the other's notation: `I(0)` and `I_0`, `x'(t)` and `x'`."""
    yield gold, answer
    names = [free_symbols(node) for node in (gold, answer)]
    applied = [{part[1] for part in walk(node) if part[0] == "app"} for node in (gold, answer)]
    primed = [any("'" in name for name in names[i] | applied[i]) for i in (0, 1)]
    variables = [any("'/" in name for name in found) for found in names]
    if not any(applied) and variables[0] == variables[1]:
        return

    def plain(node: Node, other: int) -> Node:
        def change(part: Node) -> Node | None:
            if part[0] == "sym" and "'/" in part[1] and variables[0] != variables[1]:
                return ("sym", part[1].split("/")[0])
            if part[0] != "app" or part[1] in applied[other] or len(part) != 3:
                return None
            if part[2][0] == "num" and f"{part[1]}_{part[2][1]}" in names[other]:
                return ("sym", f"{part[1]}_{part[2][1]}")
            return ("sym", part[1]) if part[2][0] == "sym" and all(primed) else None

        return replaced(node, change)

    yield plain(gold, 1), plain(answer, 0)


def _renames(gold: Node, answer: Node) -> list[dict[str, str]]:
    """Renamings that keep an answer's meaning: of an arbitrary constant, a parameter, a subscript."""
    gold_symbols, answer_symbols = free_symbols(gold), free_symbols(answer)
    missing, extra = sorted(gold_symbols - answer_symbols), sorted(answer_symbols - gold_symbols)
    own = _arbitrary(gold)
    given = {*extra, *(own & answer_symbols)}
    if set(extra) <= ARBITRARY and set(missing) <= own and 0 < len(given) == len(own) <= 4:
        return [dict(zip(order, sorted(own), strict=True)) for order in itertools.permutations(sorted(given))]
    if not extra or len(missing) != len(extra) or len(extra) > 4:
        return []
    if len(extra) == 1 and extra[0] in PARAMETERS and missing[0] in PARAMETERS and _is_period(gold, missing[0]):
        return [{extra[0]: missing[0]}]
    stripped = {name: _without_label(name) for name in extra}
    if sorted(stripped.values()) == missing:
        return [stripped]
    full = {_without_label(name): name for name in missing}
    return [full] if sorted(full) == extra else []


def _arbitrary(gold: Node) -> frozenset[str]:
    """Constants that the gold introduces: each occurs once, as a term of a sum or a factor of one, with a variable."""
    used = [part[1] for part in walk(gold) if part[0] == "sym"]
    if not VARIABLES & set(used):
        return frozenset()
    found = {name for name in _coefficients(gold) & (CONSTANTS | {"A", "B"}) if used.count(name) == 1}
    if not any(p[0] == "app" or (p[0] == "pow" and free_symbols(p[2])) or p[:2] == ("fn", "exp") for p in walk(gold)):
        found -= {"c"} if ("sym", "c") not in _terms(gold) or {"a", "b"} & set(used) else set()
    return frozenset(found if {"A", "B"} <= found else found - {"A", "B"})


def _terms(node: Node) -> list[Node]:
    """The terms of a sum, without their signs."""
    if node[0] in ("add", "pm"):
        return [*_terms(node[1]), *_terms(node[2])]
    return _terms(node[1]) if node[0] == "neg" else [node]


def _coefficients(term: Node) -> set[str]:
    """The letters that are factors of a term, or of a bracketed term in it."""
    if node_terms := _terms(term) if term[0] in ("add", "pm", "neg") else []:
        return set().union(*map(_coefficients, node_terms))
    if term[0] in ("mul", "div"):
        return set().union(*map(_coefficients, term[1 : 3 if term[0] == "mul" else 2]))
    return {term[1]} if term[0] == "sym" else set()


def _is_period(gold: Node, name: str) -> bool:
    r"""True for the integer k of `\frac{\pi}{6} + 2\pi k`: it occurs only as a factor of a multiple of pi."""
    own = [term for term in _terms(gold) if name in free_symbols(term)]
    outside = {part[0] for term in own for part in walk(term)} <= {"mul", "div", "add", "neg", "num", "sym", "const"}
    return len(own) == 1 and outside and ("const", "pi") in walk(own[0]) and free_symbols(own[0]) == {name}


def _without_label(name: str) -> str:
    """`M_core` without its subscript in words; `v_0` and `x_n` differ from v and x."""
    base, _, label = name.partition("_")
    return base if len(label) > 1 and label.isalpha() else name


def _agree(gold: Node, answer: Node) -> bool:
    """Whether both agree at all test points where both are defined, of which there must be `MIN_POINTS`."""
    names = sorted(free_symbols(gold) | free_symbols(answer))
    nodes = [*walk(gold), *walk(answer)]
    in_pieces = any(node[0] == "fn" and node[1] in PIECES for node in nodes)
    real = _compared(gold, answer, _real_points(names))
    if real and in_pieces:
        real = _compared(gold, answer, _further_points(names, nodes), 1)
    if real:
        return True
    if _of_integers(nodes):
        return bool(_compared(gold, answer, _integer_points(names, nodes)))
    positive = _positive_letters(gold)
    positive |= _positive_letters(answer) if positive else frozenset()
    if real is not None and in_pieces and positive:
        points = itertools.chain(_real_points(names), _further_points(names, nodes))
        made = ({n: abs(v) if n in positive else v for n, v in point.items()} for point in points)
        return bool(_compared(gold, answer, made))
    return False


def _compared(gold: Node, answer: Node, points: Iterable[Point], least: int = MIN_POINTS) -> bool | None:
    """False at the first point where the two differ, None if too few points are in both domains."""
    real = all(part != ("const", "i") for node in (gold, answer) for part in walk(node))
    count = 0
    for point in points:
        try:
            if not vanishes(gold, answer, point, real=real):
                return False
        except TooLargeError:
            return False
        except NoValueError:
            continue
        count += 1
    return True if count >= least else None


def _odd(generator: random.Random, scale: float = 1) -> Any:
    """A number between 0.3 and 2.8 times the scale, unlikely to occur in a formula."""
    return scale * mpmath.mpf(generator.randrange(3 * 10**8, 28 * 10**8)) / 10**9 + mpmath.mpf(1) / 7919


def _real_points(names: list[str]) -> Iterator[Point]:
    """Positive points first, then points of either sign; the same ones in every run and process."""
    return (dict(zip(names, values, strict=True)) for values in _real_values(len(names)))


@functools.lru_cache(maxsize=64)
def _real_values(count: int) -> list[list[Any]]:
    generator = random.Random(count)
    values = []
    for index in range(POSITIVE_POINTS + SIGNED_POINTS):
        signs = [1 if index < POSITIVE_POINTS else generator.choice((-1, 1)) for _ in range(count)]
        if index >= POSITIVE_POINTS and count and all(sign > 0 for sign in signs):
            signs[generator.randrange(count)] = -1
        values.append([sign * _odd(generator) for sign in signs])
    return values


def _further_points(names: list[str], nodes: list[Node]) -> Iterator[Point]:
    """Points at several scales, and on both sides of the breaks of piecewise functions."""
    generator = random.Random(2)
    for scale, sign in itertools.product(SCALES, (1, -1)):
        yield {name: sign * _odd(generator, scale) for name in names}
        yield {name: generator.choice((-1, 1)) * _odd(generator, scale) for name in names}
    if len(names) == 1:
        yield from ({names[0]: mpmath.mpf(step) / 4 + mpmath.mpf(1) / 7919} for step in range(-60, 61, 3))
    for node in nodes:
        if node[0] == "fn" and node[1] in PIECES:
            parts = list(itertools.combinations(node[2:], 2)) if node[1] in ("max", "min") else [(node[2], None)]
            for left, right in parts[:6]:
                inner = left if right is None else ("add", left, ("neg", right))
                yield from _around_breaks(names, inner[1] if node[1] == "sqrt" and inner[0] == "pow" else inner)


def _around_breaks(names: list[str], inner: Node) -> Iterator[Point]:
    """Points near the zero of a linear expression, and a few units away, along each of its letters."""
    generator = random.Random(3)
    for name in sorted(free_symbols(inner)):
        base = {other: _odd(generator) for other in names}
        try:
            at = [Evaluator(BITS, {**base, name: mpmath.mpf(x)})(inner) for x in (0, 1, 2)]
        except NoValueError:
            continue
        slope = at[1] - at[0]
        if slope == 0 or abs(at[2] - at[1] - slope) > abs(slope) * mpmath.mpf(10) ** -30:
            continue
        for step in (-40.4, -2.6, -1.3, -0.4, -0.01, 0, 0.01, 0.4, 1.3, 2.6, 40.4):
            with mpmath.workprec(BITS):
                yield {**base, name: (step - at[0]) / slope}


def _integer_points(names: list[str], nodes: list[Node]) -> Iterator[Point]:
    """Integers above those that occur, for letters that stand for integers; real numbers for the others."""
    generator = random.Random(1)
    literals = {int(n[1]) for n in nodes if n[0] == "num" and n[1].denominator == 1 and 12 < abs(n[1]) <= 10**4}
    steps = [*range(1, 25), *(n + d for n in sorted(literals)[:6] for d in (-1, 0, 1, 17)), 97, 360, 1001]
    for index, step in enumerate(steps):
        yield {
            name: mpmath.mpf(step if len(names) == 1 or index >= 24 else generator.randrange(1, 30))
            + (generator.randrange(5) if index >= 24 and len(names) > 1 else 0)
            if name.split("_")[0] in INTEGER_LETTERS
            else _odd(generator)
            for name in names
        }


def _of_integers(nodes: list[Node]) -> bool:
    """True if an identity may hold only for integers: roundings, factorials, (-1)^n, cos(n pi)."""
    inside: list[Node] = []
    for node in nodes:
        if node[0] in ("sum", "prod"):
            inside.extend(node[2:4])
        elif node[0] == "fn" and node[1] in OF_INTEGERS:
            inside.extend(node[2:])
        elif node[0] == "pow" and node[1][0] in ("neg", "num") and free_symbols(node[2]):
            inside.append(node[2])
    return any(name.split("_")[0] in INTEGER_LETTERS for node in inside for name in free_symbols(node))


def _positive_letters(formula: Node) -> frozenset[str]:
    r"""Quantities that must be positive: those of a product under an even root, `\sqrt{4 \pi G \rho r^2}`.

    At least one of them must have an odd power there: `\sqrt{x^2}` is |x|.
    """
    found: set[str] = set()
    for node in walk(formula):
        even_root = node[:2] == ("fn", "sqrt") or (node[:2] == ("fn", "root") and (exact(node[3]) or 1) % 2 == 0)
        if even_root and not any(part[0] in ("add", "fn", "app") for part in walk(node[2])):
            names = free_symbols(node[2])
            even = {p[1][1] for p in walk(node[2]) if p[0] == "pow" and p[1][0] == "sym" and p[2][:1] == ("num",)}
            if names - even:
                found |= names
    return frozenset(found)


def same_equation(gold: Node, answer: Node, positive: bool = False) -> bool:
    """Whether `gold = 0` and `answer = 0` are the same equation: one is a multiple of the other.

    The multiple is a number, which must be positive with `positive` (for inequalities); in a differential equation it
    may also depend on the parameters, but not on the unknown functions.
    """
    return any(
        free_symbols(right) == free_symbols(left) and _are_multiples(left, right, positive)
        for left, right in _readings(gold, answer)
    )


def _are_multiples(gold: Node, answer: Node, positive: bool) -> bool:
    """Whether answer / gold is the same number at the test points as at the first of them."""
    names = sorted(free_symbols(gold))
    derivatives = {name for name in names if "'" in name}
    unknowns = derivatives | (
        {name.split("'")[0] for name in derivatives} & set(names)
    )  # and the functions that they derive
    nodes = [*walk(gold), *walk(answer)]
    points = _real_points(names)
    if any(node[0] == "fn" and node[1] in PIECES for node in nodes):
        points = itertools.chain(points, _further_points(names, nodes))
    marks = {name: f"{name}@" for name in names}
    left, right = ("mul", answer, renamed(gold, marks)), ("mul", gold, renamed(answer, marks))
    first: Point = {}
    count = 0
    for point in points:
        if first and unknowns:  # the factor may depend on parameters, so they keep their first values
            point = {name: point[name] if name in unknowns else first[name] for name in names}
        try:
            if not first:
                if vanishes(gold, ZERO, point) or vanishes(answer, ZERO, point):
                    return False
                ratio = Evaluator(BITS, point)(answer) / Evaluator(BITS, point)(gold)
                if positive and (mpmath.im(ratio) != 0 or mpmath.re(ratio) <= 0):
                    return False
                first = point
            if not vanishes(left, right, {**point, **{marks[name]: first[name] for name in names}}):
                return False
        except TooLargeError:
            return False
        except NoValueError:
            continue
        count += 1
    return count >= MIN_POINTS
