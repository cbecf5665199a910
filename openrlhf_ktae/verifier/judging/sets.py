"""Sets of real numbers: intervals, unions, differences, inequalities, points; compared by membership.

A set is turned into a predicate. Two sets with numeric ends are equal if the predicates agree at all ends of both, in
all gaps between neighbouring ends and beyond the outermost ones.
"""

import itertools
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

import mpmath

from ..reading.nodes import free_symbols, replaced
from ..reading.values import Group, Node, NumberSet, Relation, Scalar, SetOperation, Text, Value
from .evaluate import Evaluator
from .exact import NoValueError
from .signs import INTERVALS

BITS = 170
MAX_ENDS = 200
ORDERS = frozenset({"<", ">", "<=", ">=", "!=", "="})
INFINITY: Node = ("const", "inf")
EXTREMES = {"R": True, "all reals": True, "0": False, "no solution": False}
Predicate = Callable[[Any], bool]
HALF_LINES = {  # operator and 0
    **dict.fromkeys(("R^+", "R_+", "R_>0", "R^>0"), ">"),
    **dict.fromkeys(("R_>=0", "R^>=0"), ">="),
    **dict.fromkeys(("R^-", "R_-", "R_<0", "R^<0"), "<"),
}


@dataclass(frozen=True)
class RealSet:
    """A predicate on the reals and the points at which it may change."""

    contains: Predicate
    ends: tuple[Any, ...]


def is_set(value: Value) -> bool:
    """True for values that can only be sets of numbers: unions, half-open intervals, the reals, an inequality."""
    if isinstance(value, (SetOperation, NumberSet)) or value in (Text("all reals"), Text("no solution")):
        return True
    if isinstance(value, Group):
        listed = value.brackets in ("", "and", "or")
        return value.brackets in ("(]", "[)") or (listed and all(is_set(item) for item in value.items))
    return isinstance(value, Relation) and bool(set(value.operators) & {"<", ">", "<=", ">=", "!=", "in"})


def _is_empty(value: Value, found: RealSet, brackets: Collection[str] = INTERVALS) -> bool:
    """True for `(3, 1)` and `(5, 5]`: not a set in a list; as a gold only against a named empty set, never in `()`."""
    return isinstance(value, Group) and value.brackets in brackets and not any(map(found.contains, _probes(found.ends)))


def same_set(gold: Value, answer: Value) -> bool | None:
    """Compare two sets with numeric ends; None if one of them is something else."""
    gold_set, answer_set = real_set(gold), real_set(answer)
    points = {"()"} if isinstance(answer, (NumberSet, Text)) else INTERVALS
    if gold_set is None or answer_set is None or _is_empty(gold, gold_set, points):
        return None
    letters = [_letters(value) for value in (gold, answer)]
    if all(letters) and letters[0] != letters[1]:
        return False
    return all(
        gold_set.contains(probe) == answer_set.contains(probe) for probe in _probes(gold_set.ends + answer_set.ends)
    )


def _letters(value: Value) -> frozenset[Node]:
    """The unknowns of inequalities."""
    if isinstance(value, Group):
        return frozenset().union(*map(_letters, value.items))
    if not isinstance(value, Relation):
        return frozenset()
    return frozenset(
        ("sym", name) for side in value.sides if isinstance(side, Scalar) for name in free_symbols(side.node)
    )


def _probes(ends: Iterable[Any]) -> list[Any]:
    """Numbers that distinguish any two sets with these ends: the ends, one in each gap, one beyond either side."""
    distinct = _distinct(list(ends))
    if not distinct:
        return [mpmath.mpf(0)]
    between = [(a + b) / 2 for a, b in itertools.pairwise(distinct)]
    return [*distinct, *between, distinct[0] - 1, distinct[-1] + 1]


def _distinct(ends: list[Any]) -> list[Any]:
    distinct: list[Any] = []
    for end in sorted(ends):
        if not distinct or not _equal(distinct[-1], end):
            distinct.append(end)
    return distinct


def _equal(a: Any, b: Any) -> bool:
    return bool(abs(a - b) <= max(abs(a), abs(b)) * mpmath.mpf(10) ** -30)


def real_set(value: Value) -> RealSet | None:
    """The set that a value describes, or None."""
    try:
        with mpmath.workprec(BITS):
            found = _read(value)
    except NoValueError:
        return None
    return found if found is not None and len(found.ends) <= MAX_ENDS else None


def _read(value: Value) -> RealSet | None:
    if isinstance(value, NumberSet) and value.letter in HALF_LINES:
        operator, zero = HALF_LINES[value.letter], mpmath.mpf(0)
        return RealSet(lambda x: _holds(operator, x, zero), (zero,))
    if isinstance(value, (NumberSet, Text)):
        member = EXTREMES.get(value.letter if isinstance(value, NumberSet) else value.phrase)
        return None if member is None else RealSet(lambda _: member, ())
    if isinstance(value, SetOperation):
        return _operation(value)
    if isinstance(value, Group):
        return _group(value)
    if isinstance(value, Relation):
        return _relation(value)
    return None


def _operation(value: SetOperation) -> RealSet | None:
    left, right = _read(_as_set(value.left)), _read(_as_set(value.right))
    if left is None or right is None:
        return None
    a, b = left.contains, right.contains
    combined: dict[str, Predicate] = {
        "cup": lambda x: a(x) or b(x),
        "cap": lambda x: a(x) and b(x),
        "setminus": lambda x: a(x) and not b(x),
    }
    return RealSet(combined[value.operator], left.ends + right.ends)


def _as_set(value: Value) -> Value:
    return Group("{}", (value,)) if isinstance(value, Scalar) else value


def _group(value: Group) -> RealSet | None:
    if value.brackets in INTERVALS and len(value.items) == 2:
        low, high = (_end(item) for item in value.items)
        closed_at_infinity = (value.brackets[0] == "[" and low == -mpmath.inf) or (
            value.brackets[1] == "]" and high == mpmath.inf
        )
        return None if closed_at_infinity else _interval(low, high, value.brackets[0] == "[", value.brackets[1] == "]")
    if value.brackets == "{}" and all(isinstance(item, Scalar) for item in value.items):
        points = tuple(_end(item) for item in value.items)
        if not all(mpmath.isfinite(point) for point in points):
            return None
        return RealSet(lambda x: any(_equal(x, point) for point in points), points)
    if value.brackets in ("", "and", "or"):
        return _joined(value)
    return None


def _joined(value: Group) -> RealSet | None:
    """Sets and inequalities of one letter. A list is a union, unless the words or the meaning imply `and`.

    `x > 1, x < 5` would be all numbers as a union, and `x < 1 and x > 3` none as an intersection.
    """
    parts = [_read(item) for item in value.items]
    letters = _letters(value)
    known = [part for item, part in zip(value.items, parts, strict=True) if part and not _is_empty(item, part)]
    if len(known) < len(parts) or len(letters) > 1:
        return None
    ends = tuple(end for part in known for end in part.ends)
    union = RealSet(lambda x: any(part.contains(x) for part in known), ends)
    meet = RealSet(lambda x: all(part.contains(x) for part in known), ends)
    if value.brackets == "or" or not letters:
        return union
    if value.brackets == "and":
        return meet if any(map(meet.contains, _probes(ends))) else union
    return meet if all(map(union.contains, _probes(ends))) else union


def _interval(low: Any, high: Any, low_closed: bool, high_closed: bool) -> RealSet:
    def contains(x: Any) -> bool:
        return _holds("<=" if low_closed else "<", low, x) and _holds("<=" if high_closed else "<", x, high)

    return RealSet(contains, tuple(end for end in (low, high) if mpmath.isfinite(end)))


def _end(item: Value) -> Any:
    if not isinstance(item, Scalar):
        raise NoValueError
    return _number(item.node, {})


def _number(node: Node, point: dict[str, Any]) -> Any:
    """The real value of an expression, infinite ones included."""
    if node in (INFINITY, ("neg", INFINITY)):
        return mpmath.inf if node == INFINITY else -mpmath.inf
    value = Evaluator(BITS, point)(node)
    if mpmath.im(value) != 0:
        raise NoValueError
    return mpmath.re(value)


def _relation(value: Relation) -> RealSet | None:
    r"""`x > 3`, `-2 \le x \le 7`, `x \ne 0`, `x \in S`, `2x - 1 > 5`, `|x - 3| < 2`: one letter, at most linear."""
    if value.operators == ("in",) and value.names[0] is not None:
        return _read(_as_set(value.sides[1]))
    if not all(isinstance(side, Scalar) for side in value.sides) or not set(value.operators) <= ORDERS:
        return None
    nodes = [replaced(side.node, lambda p: ("sym", p[1]) if p[0] == "app" else None) for side in value.sides]
    names = frozenset().union(*map(free_symbols, nodes))
    if len(names) != 1:
        return None
    (name,) = names
    ends = [_zeros(left, right, name) for left, right in itertools.pairwise(nodes)]

    def contains(x: Any) -> bool:
        values = [_number(node, {name: x}) for node in nodes]
        return all(map(_holds, value.operators, values, values[1:]))

    return RealSet(contains, tuple(itertools.chain(*ends)))


def _holds(operator: str, left: Any, right: Any) -> bool:
    if left == right or (mpmath.isfinite(left) and mpmath.isfinite(right) and _equal(left, right)):
        return operator in ("<=", ">=", "=")
    return operator == "!=" or (operator != "=" and (left < right) == (operator[0] == "<"))


def _zeros(left: Node, right: Node, name: str) -> list[Any]:
    """Where two sides are equal, if one is a number and the other linear or the absolute value of a linear term."""
    if free_symbols(left) and free_symbols(right):
        raise NoValueError
    inner, end = (left, _number(right, {})) if free_symbols(left) else (right, _number(left, {}))
    if not mpmath.isfinite(end):
        return []
    absolute = inner[:2] == ("fn", "abs")
    at = [_number(inner[2] if absolute else inner, {name: mpmath.mpf(x)}) for x in (0, 1, 2)]
    slope = at[1] - at[0]
    if slope == 0 or not _equal(at[2] - at[1], slope):
        raise NoValueError
    return [(e - at[0]) / slope for e in ((end, -end) if absolute else (end,))]
