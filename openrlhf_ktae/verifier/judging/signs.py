"""Plus-minus signs spread into the values they stand for."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from fractions import Fraction

from ..reading.nodes import replaced, walk
from ..reading.values import Group, Name, Node, NumberSet, Relation, Scalar, SetOperation, Value

INTERVALS = frozenset({"()", "[]", "(]", "[)"})
MAX_SIGNS = 4  # plus-minus signs in one tuple


def has_free_signs(value: Value) -> bool:
    r"""True for `\pm 1 \pm \sqrt{2}`: two values where the signs are tied, four where they are not."""
    signs = [part[3] for part in walk(value.node) if part[0] == "pm"] if isinstance(value, Scalar) else []
    return 1 < len(signs) <= MAX_SIGNS and set(signs) == {"+-"}


def plain(value: Value, free: bool = False) -> Value:
    """Spread plus-minus signs into lists, tied ones unless `free`; take a set or list of one item as the item."""
    if free and isinstance(value, Scalar) and has_free_signs(value):
        at = next(part for part in walk(value.node) if part[0] == "pm")
        chosen = (Scalar(replaced(value.node, _only(at, s))) for s in (1, -1))
        parts = [plain(item, has_free_signs(item)) for item in chosen]
        return Group("", tuple(item for part in parts for item in (part.items if isinstance(part, Group) else (part,))))
    if isinstance(value, Scalar) and _has_signs(value.node):
        return Group("", (_signed(value, 1), _signed(value, -1)))
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
        return items[0] if len(items) == 1 and not _is_set(items[0]) else Group(value.brackets, tuple(items))
    if isinstance(value, Group) and any(isinstance(i, Scalar) and _has_signs(i.node) for i in value.items):
        return _signed_tuples(value)
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


def _is_set(value: Value) -> bool:
    """True for what is something else than the set that holds it."""
    return isinstance(value, (NumberSet, SetOperation)) or (isinstance(value, Group) and value.brackets == "{}")


def _has_signs(node: Node) -> bool:
    return any(part[0] == "pm" for part in walk(node))


def _only(at: Node, sign: int) -> Callable[[Node], Node | None]:
    return lambda part: _chosen(part, sign) if part == at else None


def _signed(value: Scalar, sign: int) -> Scalar:
    return Scalar(_choose(value.node, sign), value.unit)


def _choose(node: Node, sign: int) -> Node:
    """The expression with every plus-minus read as plus (1) or minus (-1)."""
    return replaced(node, lambda part: _chosen(part, sign))


def _chosen(part: Node, sign: int) -> Node | None:
    if part[0] != "pm":
        return None
    plus = (part[3] == "+-") == (sign > 0)
    if part[1][:2] == ("num", Fraction(0)):
        return part[2] if plus else ("neg", part[2])
    return ("add", part[1], part[2] if plus else ("neg", part[2]))


def _signed_tuples(value: Group) -> Value:
    """`(\\pm 3, \\pm 2)`: all combinations of signs."""
    signed = [isinstance(i, Scalar) and _has_signs(i.node) for i in value.items]
    if sum(signed) > MAX_SIGNS:
        return value
    choices = [
        (_signed(item, 1), _signed(item, -1)) if has else (item,) for item, has in zip(value.items, signed, strict=True)
    ]
    return Group("", tuple(Group(value.brackets, combination) for combination in itertools.product(*choices)))
