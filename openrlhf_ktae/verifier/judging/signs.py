"""Expand plus-minus signs into the values they stand for."""

import functools
import itertools
from collections.abc import Iterator
from fractions import Fraction

from ..reading.nodes import replaced, walk
from ..reading.values import Group, Name, Node, NumberSet, Relation, Scalar, SetOperation, Value

INTERVALS = frozenset({"()", "[]", "(]", "[)"})
MAX_SIGNS = 4  # plus-minus signs in one tuple


def has_free_signs(value: Value) -> bool:
    r"""True for `\pm 1 \pm \sqrt{2}`: two values where the signs are tied, four where they are not."""
    signs = _signs(value)
    return 1 < len(signs) <= MAX_SIGNS and set(signs) == {"+-"}


def _signs(value: Value) -> list[str]:
    return [part[3] for part in walk(value.node) if part[0] == "pm"] if isinstance(value, Scalar) else []


def _values(value: Scalar, free: bool) -> Iterator[Scalar]:
    """The expression with all plus-minus signs as plus, then as minus; in all combinations if they are free."""
    for signs in itertools.product((1, -1), repeat=len(_signs(value)) if free else 1):
        turn = iter(signs) if free else itertools.repeat(signs[0])
        yield Scalar(replaced(value.node, functools.partial(_chosen, turn)), value.unit)


def _chosen(turn: Iterator[int], part: Node) -> Node | None:
    if part[0] != "pm":
        return None
    second = part[2] if (part[3] == "+-") == (next(turn) > 0) else ("neg", part[2])
    return second if part[1][:2] == ("num", Fraction(0)) else ("add", part[1], second)


def plain(value: Value, free: bool = False) -> Value:
    """Expand plus-minus signs into lists, with tied signs unless `free`; replace a set or list of one item by it."""
    if isinstance(value, Scalar):
        return Group("", tuple(_values(value, free and has_free_signs(value)))) if _signs(value) else value
    if isinstance(value, Group) and value.brackets in ("", "and", "or", "{}"):
        items: list[Value] = []
        among_sets = value.brackets == "" and any(isinstance(i, Group) and i.brackets in INTERVALS for i in value.items)
        for item in value.items:
            first = items[0] if items else None
            if isinstance(first, Relation) and first.operators == ("!=",) and isinstance(item, Scalar):
                item = Relation((first.sides[0], item), ("!=",), (first.names[0], None))  # `x \ne 1, 2`
            alone = isinstance(item, Group) and item.brackets == "{}" and among_sets  # `(0,1), \\{3\\}`
            spread = item if alone else plain(item)
            items.extend(spread.items if isinstance(spread, Group) and spread.brackets in ("", "and") else [spread])
        sets = [isinstance(i, (NumberSet, SetOperation)) or getattr(i, "brackets", "") == "{}" for i in items]
        return items[0] if sets == [False] else Group(value.brackets, tuple(items))
    if isinstance(value, Group) and 0 < sum(bool(_signs(item)) for item in value.items) <= MAX_SIGNS:
        choices = [_values(item, False) if _signs(item) else (item,) for item in value.items]  # `(\\pm 3, \\pm 2)`
        return Group("", tuple(Group(value.brackets, items) for items in itertools.product(*choices)))
    if isinstance(value, Relation) and isinstance(value.sides[-1], (Scalar, Group)):
        last = plain(value.sides[-1])
        name = value.names[0]
        if isinstance(last, Group) and last.brackets == "" and name and value.operators in (("=",), ("!=",)):
            pairs = (Relation((value.sides[0], i), value.operators, (name, None)) for i in last.items)
            return Group("" if value.operators == ("=",) else "and", tuple(pairs))
        return _in_order(value, last)
    return value


def _in_order(value: Relation, last: Value) -> Relation:
    """`(y, x) = (1, 2)` as `(x, y) = (2, 1)`."""
    names = value.names[0].base.split(",") if value.names[0] else []
    if len(names) < 2 or not isinstance(last, Group) or len(last.items) != len(names) or sorted(names) == names:
        return value
    order = sorted(range(len(names)), key=names.__getitem__)
    name = Name(",".join(sorted(names)))
    items = Group(last.brackets, tuple(last.items[at] for at in order))
    return Relation((*value.sides[:-1], items), value.operators, (name, *value.names[1:]))
