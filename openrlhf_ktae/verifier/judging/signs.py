"""Plus-minus signs spread into the values they stand for."""

from __future__ import annotations

import itertools
from fractions import Fraction

from ..reading.nodes import replaced, walk
from ..reading.values import Group, Node, NumberSet, Relation, Scalar, SetOperation, Value

MAX_SIGNS = 4  # plus-minus signs in one tuple


def plain(value: Value) -> Value:
    """Spread plus-minus signs into lists, and take a set or list of one item as the item."""
    if isinstance(value, Scalar) and _has_signs(value.node):
        return Group("", (_signed(value, 1), _signed(value, -1)))
    if isinstance(value, Group) and value.brackets in ("", "{}"):
        items: list[Value] = []
        for item in value.items:
            spread = plain(item)
            items.extend(spread.items if isinstance(spread, Group) and spread.brackets == "" else [spread])
        return items[0] if len(items) == 1 and not _is_set(items[0]) else Group(value.brackets, tuple(items))
    if isinstance(value, Group) and any(isinstance(i, Scalar) and _has_signs(i.node) for i in value.items):
        return _signed_tuples(value)
    if isinstance(value, Relation) and isinstance(value.sides[-1], (Scalar, Group)):
        last = plain(value.sides[-1])
        if isinstance(last, Group) and last.brackets == "" and value.operators == ("=",) and value.names[0]:
            return Group("", tuple(Relation((value.sides[0], i), ("=",), (value.names[0], None)) for i in last.items))
    return value


def _is_set(value: Value) -> bool:
    """True for what is something else than the set that holds it."""
    return isinstance(value, (NumberSet, SetOperation)) or (isinstance(value, Group) and value.brackets == "{}")


def _has_signs(node: Node) -> bool:
    return any(part[0] == "pm" for part in walk(node))


def _signed(value: Scalar, sign: int) -> Scalar:
    return Scalar(_choose(value.node, sign), value.unit)


def _choose(node: Node, sign: int) -> Node:
    """The expression with every plus-minus read as plus (1) or minus (-1)."""

    def chosen(part: Node) -> Node | None:
        if part[0] != "pm":
            return None
        plus = (part[3] == "+-") == (sign > 0)
        if part[1][:2] == ("num", Fraction(0)):
            return part[2] if plus else ("neg", part[2])
        return ("add", part[1], part[2] if plus else ("neg", part[2]))

    return replaced(node, chosen)


def _signed_tuples(value: Group) -> Value:
    """`(\\pm 3, \\pm 2)`: all combinations of signs."""
    signed = [isinstance(i, Scalar) and _has_signs(i.node) for i in value.items]
    if sum(signed) > MAX_SIGNS:
        return value
    choices = [
        (_signed(item, 1), _signed(item, -1)) if has else (item,) for item, has in zip(value.items, signed, strict=True)
    ]
    return Group("", tuple(Group(value.brackets, combination) for combination in itertools.product(*choices)))
