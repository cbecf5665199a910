"""Groups, matrices, sets and texts: is one the other? Parts are compared by the `same` that is passed in."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from fractions import Fraction

from ..reading.nodes import free_symbols, replaced
from ..reading.values import Group, Matrix, Node, NumberSet, Relation, Scalar, SetOperation, Text, Value
from .exact import exact
from .functions import NO_RENAMES, Renames
from .sets import same_set

MAX_ITEMS = 300
ORDERED = frozenset({"()", "<>"})
Compare = Callable[[Value, Value, Renames], bool]


def same_groups(gold: Value, answer: Value, renames: Renames, same: Compare) -> bool:
    """Lists as multisets, braces as sets, parentheses in order; brackets of different kinds differ."""
    if not isinstance(gold, Group) or not isinstance(answer, Group):
        return False
    if max(len(gold.items), len(answer.items)) > MAX_ITEMS:
        return False
    kinds = {_kind(gold), _kind(answer)}
    if kinds == {"{}"}:
        return _same_finite_sets(gold.items, answer.items, renames, same)
    if len(gold.items) != len(answer.items):
        return False
    if kinds == {":"}:
        return _same_ratio(gold, answer, renames, same)
    if kinds == {"mod"}:
        return _same_residue(gold, answer)
    if kinds == {"cases"}:
        return match(gold.items, answer.items, lambda g, a: same(g, a, renames))
    if len(_bound_names(answer)) > len(_bound_names(gold)) > 0:
        return False  # f(x) beside f(z): the gold has one name for the argument
    if kinds <= {"", "()"} and len(kinds) == 2:
        gold, answer = (_in_order(value) if value.brackets == "" else value for value in (gold, answer))
    if kinds == {""} and _named_apart(gold) and not any(isinstance(item, Relation) for item in answer.items):
        return all(same(g, a, renames) for g, a in zip(gold.items, answer.items, strict=True))
    if kinds <= {"", "{}"} or (kinds <= {"", "and", "or"} and kinds != {"and", "or"}):
        return match(gold.items, answer.items, lambda g, a: same(g, a, renames))
    if kinds in ({"()"}, {"", "()"}, {"[]"}) or (len(kinds) == 1 and gold.brackets == answer.brackets):
        return all(same(g, a, renames) for g, a in zip(gold.items, answer.items, strict=True))
    return False


def _bound_names(group: Group) -> set[str]:
    """The letters that definitions such as `f(x) = 2x` use for their arguments."""
    names = [item.names[0] for item in group.items if isinstance(item, Relation) and item.names[0]]
    return {argument[1] for name in names for argument in name.arguments if argument[0] == "sym"}


def _in_order(group: Group) -> Group:
    """`y = 2, x = 1` by name, as the tuple (x, y) has them."""
    if not _named_apart(group) or not all(len(item.names[0].base) == 1 for item in group.items):
        return group
    return Group("", tuple(sorted(group.items, key=lambda item: (item.names[0].base, item.names[0].label))))


def _named_apart(group: Group) -> bool:
    """`a = 1, b = 2`: the values of different things, whose order matters where the names are left out."""
    names = [
        (item.names[0].base, item.names[0].label) if isinstance(item, Relation) and item.names[0] else ""
        for item in group.items
    ]
    return all(names) and len(set(names)) == len(names)


def _same_residue(gold: Group, answer: Group) -> bool:
    """`3 (mod 7)` and `-4 (mod 7)`: equal moduli, and a difference that they divide."""
    values = [exact(item.node) if isinstance(item, Scalar) else None for item in (*gold.items, *answer.items)]
    if any(value is None for value in values):
        return False
    first, modulus, second, other = (value or Fraction(0) for value in values)
    return modulus == other and modulus != 0 and ((first - second) / modulus).denominator == 1


def _kind(group: Group) -> str:
    """Brackets that mean the same: angle brackets are parentheses, and so are square ones around three or more."""
    if group.brackets in ORDERED or (group.brackets == "[]" and len(group.items) > 2):
        return "()"
    return group.brackets


def match(gold: Sequence[Value], answer: Sequence[Value], equal: Callable[[Value, Value], bool]) -> bool:
    """Equality as multisets: equality is transitive, so taking the first partner for each item is enough."""
    left = list(answer)
    for item in gold:
        partner = next((index for index, candidate in enumerate(left) if equal(item, candidate)), None)
        if partner is None:
            return False
        del left[partner]
    return True


def _same_finite_sets(gold: Sequence[Value], answer: Sequence[Value], renames: Renames, same: Compare) -> bool:
    """Sets in braces: repetition does not count."""

    if len(gold) * len(answer) > MAX_ITEMS * 10 and len(gold) != len(answer):
        return False
    return all(any(same(g, a, renames) for a in answer) for g in gold) and all(
        any(same(g, a, renames) for g in gold) for a in answer
    )


def vector(value: Value, size: int) -> Value:
    """`2i - j` in unit vectors as the tuple of its components; any other value as it is."""
    if not isinstance(value, Scalar) or not 2 <= size <= 3:
        return value
    basis = ("hat_i", "hat_j", "hat_k")[:size]
    present = free_symbols(value.node) & {"hat_i", "hat_j", "hat_k"}
    if not present or not present <= set(basis):
        return value

    def component(name: str) -> Scalar:
        def chosen(part: Node) -> Node | None:
            if part[0] != "sym" or part[1] not in basis:
                return None
            return ("num", Fraction(int(part[1] == name)), "")

        return Scalar(replaced(value.node, chosen))

    return Group("()", tuple(component(name) for name in basis))


def _same_ratio(gold: Group, answer: Group, renames: Renames, same: Compare) -> bool:
    """`1:2:3` is `2:4:6`: the terms are proportional."""
    g, a = gold.items[0].node, answer.items[0].node
    return all(
        same(Scalar(("mul", x.node, a)), Scalar(("mul", y.node, g)), renames)
        for x, y in zip(gold.items, answer.items, strict=True)
    )


def same_matrices(gold: Value, answer: Value, renames: Renames, same: Compare) -> bool:
    """Matrices entry by entry; a tuple counts as a column."""
    gold_rows, answer_rows = rows(gold), rows(answer)
    if gold_rows is None or answer_rows is None or [len(r) for r in gold_rows] != [len(r) for r in answer_rows]:
        return False
    pairs = zip(itertools.chain(*gold_rows), itertools.chain(*answer_rows), strict=True)
    return all(same(g, a, renames) for g, a in pairs)


def rows(value: Value) -> list[tuple[Value, ...]] | None:
    """Rows of a matrix; a tuple counts as a column."""
    if isinstance(value, Matrix):
        if len(value.rows) == 1 and len(value.rows[0]) > 1:
            return [value.rows[0]]
        return list(value.rows)
    if isinstance(value, Group) and value.brackets == "[]" and all(_is_row(item) for item in value.items):
        return [item.items for item in value.items if isinstance(item, Group)]
    if isinstance(value, Group) and _kind(value) == "()":
        return [(item,) for item in value.items]
    return None


def _is_row(value: Value) -> bool:
    return isinstance(value, Group) and value.brackets == "[]"


def same_sets(gold: Value, answer: Value, same: Compare) -> bool:
    """Sets of numbers by membership; with symbolic ends, part by part."""
    verdict = same_set(gold, answer)
    if verdict is not None:
        return verdict
    gold, answer = _as_interval(gold), _as_interval(answer)
    if isinstance(gold, SetOperation) and isinstance(answer, SetOperation) and gold.operator == answer.operator:
        if same(gold.left, answer.left, NO_RENAMES) and same(gold.right, answer.right, NO_RENAMES):
            return True
        crossed = same(gold.left, answer.right, NO_RENAMES) and same(gold.right, answer.left, NO_RENAMES)
        return crossed and gold.operator != "setminus"
    if isinstance(gold, Group) and isinstance(answer, Group) and gold.brackets == answer.brackets:
        return same_groups(gold, answer, NO_RENAMES, same)
    empty = (NumberSet("0"), Text("no solution"))
    if gold in empty or answer in empty:
        return gold in empty and answer in empty
    return False


def _as_interval(value: Value) -> Value:
    r"""`x \le a`, `a < x < b` as the interval; any other value as it is."""
    if not isinstance(value, Relation) or not set(value.operators) <= {"<", "<=", ">", ">="}:
        return value
    sides, operators = value.sides, value.operators
    if operators[0][0] == ">":
        sides, operators = sides[::-1], tuple(operator.replace(">", "<") for operator in operators[::-1])
    at = _variable(sides)
    if at is None or len({operator[0] for operator in operators}) > 1:
        return value
    low: Value = Scalar(("neg", ("const", "inf"))) if at == 0 else sides[at - 1]
    high: Value = Scalar(("const", "inf")) if at == len(sides) - 1 else sides[at + 1]
    closed_low, closed_high = at > 0 and operators[at - 1] == "<=", at < len(operators) and operators[at] == "<="
    return Group("(["[closed_low] + ")]"[closed_high], (low, high))


def _variable(sides: Sequence[Value]) -> int | None:
    """Which side is the unknown of an inequality: a letter, x before others where there are several."""
    letters_at = {side.node[1]: i for i, side in enumerate(sides) if isinstance(side, Scalar) and side.node[0] == "sym"}
    if len(letters_at) == 1:
        return next(iter(letters_at.values()))
    return next((letters_at[name] for name in "xyztw" if name in letters_at), None)


def letters(value: Value) -> str | None:
    """The letters of a text, also where they were written as a product: `\\text{SE}` and `SE`."""
    if isinstance(value, Text):
        return value.phrase
    if isinstance(value, Scalar):
        spelled = _product_letters(value.node)
        return None if spelled is None else spelled.lower()
    return None


def _product_letters(node: Node) -> str | None:
    if node[0] in ("sym", "const"):
        return str(node[1])
    if node[0] == "mul":
        left, right = _product_letters(node[1]), _product_letters(node[2])
        return None if left is None or right is None else left + right
    return None
