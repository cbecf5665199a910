"""Groups, matrices, sets and texts: is one the other? Parts are compared by the `same` that is passed in."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction

from ..reading.values import Group, Matrix, Node, NumberSet, Scalar, SetOperation, Text, Value
from .exact import exact
from .scalars import Renames, Verdict
from .sets import same_set

MAX_ITEMS = 300
ORDERED = frozenset({"()", "<>"})
Compare = Callable[[Value, Value, Renames], Verdict]


def all_of(verdicts: Iterable[Verdict]) -> Verdict:
    """False if any is False, else None if any is None, else True."""
    undecided = False
    for verdict in verdicts:
        if verdict is False:
            return False
        undecided = undecided or verdict is None
    return None if undecided else True


def same_groups(gold: Value, answer: Value, renames: Renames, same: Compare) -> Verdict:
    """Lists as multisets, braces as sets, parentheses in order; brackets of different kinds differ."""
    if not isinstance(gold, Group) or not isinstance(answer, Group):
        return False
    if max(len(gold.items), len(answer.items)) > MAX_ITEMS:
        return None if len(gold.items) == len(answer.items) else False
    kinds = {_kind(gold), _kind(answer)}
    if kinds == {"{}"}:
        return _same_finite_sets(gold.items, answer.items, renames, same)
    if len(gold.items) != len(answer.items):
        return False
    if kinds == {"mod"}:
        return _same_residue(gold, answer)
    if kinds <= {"", "{}"}:
        return match(gold.items, answer.items, lambda g, a: same(g, a, renames))
    if kinds in ({"()"}, {"", "()"}, {"[]"}) or (len(kinds) == 1 and gold.brackets == answer.brackets):
        return all_of(same(g, a, renames) for g, a in zip(gold.items, answer.items, strict=True))
    return False


def _same_residue(gold: Group, answer: Group) -> Verdict:
    """`3 (mod 7)` and `-4 (mod 7)`: equal moduli, and a difference that they divide."""
    values = [exact(item.node) if isinstance(item, Scalar) else None for item in (*gold.items, *answer.items)]
    if any(value is None for value in values):
        return None
    first, modulus, second, other = (value or Fraction(0) for value in values)
    return modulus == other and modulus != 0 and ((first - second) / modulus).denominator == 1


def _kind(group: Group) -> str:
    """Brackets that mean the same: angle brackets are parentheses, and so are square ones around three or more."""
    if group.brackets in ORDERED or (group.brackets == "[]" and len(group.items) > 2):
        return "()"
    return group.brackets


def match(gold: Sequence[Value], answer: Sequence[Value], equal: Callable[[Value, Value], Verdict]) -> Verdict:
    """Equality as multisets: equality is transitive, so taking the first partner for each item is enough."""
    left = list(answer)
    undecided = False
    for item in gold:
        verdicts = []
        for index, candidate in enumerate(left):
            verdict = equal(item, candidate)
            if verdict:
                del left[index]
                break
            verdicts.append(verdict)
        else:
            if None not in verdicts:
                return False
            undecided = True
    return None if undecided else True


def _same_finite_sets(gold: Sequence[Value], answer: Sequence[Value], renames: Renames, same: Compare) -> Verdict:
    """Sets in braces: repetition does not count."""

    def inside(item: Value, others: Sequence[Value], flip: bool) -> Verdict:
        verdicts = [same(other, item, renames) if flip else same(item, other, renames) for other in others]
        return True if True in verdicts else (None if None in verdicts else False)

    if len(gold) * len(answer) > MAX_ITEMS * 10 and len(gold) != len(answer):
        return False
    forth = all_of(inside(item, answer, False) for item in gold)
    return forth if forth is not True else all_of(inside(item, gold, True) for item in answer)


def same_matrices(gold: Value, answer: Value, renames: Renames, same: Compare) -> Verdict:
    """Matrices entry by entry; a tuple counts as a column."""
    gold_rows, answer_rows = rows(gold), rows(answer)
    if gold_rows is None or answer_rows is None or [len(r) for r in gold_rows] != [len(r) for r in answer_rows]:
        return False
    pairs = zip(itertools.chain(*gold_rows), itertools.chain(*answer_rows), strict=True)
    return all_of(same(g, a, renames) for g, a in pairs)


def rows(value: Value) -> list[tuple[Value, ...]] | None:
    """Rows of a matrix; a tuple counts as a column."""
    if isinstance(value, Matrix):
        if len(value.rows) == 1 and len(value.rows[0]) > 1:
            return [value.rows[0]]
        return list(value.rows)
    if isinstance(value, Group) and _kind(value) == "()":
        return [(item,) for item in value.items]
    return None


def same_sets(gold: Value, answer: Value, same: Compare) -> Verdict:
    """Sets of numbers by membership; with symbolic ends, part by part."""
    verdict = same_set(gold, answer)
    if verdict is not None:
        return verdict
    if isinstance(gold, SetOperation) and isinstance(answer, SetOperation) and gold.operator == answer.operator:
        straight = all_of((same(gold.left, answer.left, ()), same(gold.right, answer.right, ())))
        if straight is True or gold.operator == "setminus":
            return straight
        return all_of((same(gold.left, answer.right, ()), same(gold.right, answer.left, ())))
    if isinstance(gold, Group) and isinstance(answer, Group) and gold.brackets == answer.brackets:
        return same_groups(gold, answer, (), same)
    empty = (NumberSet("0"), Text("no solution"))
    if gold in empty or answer in empty:
        return gold in empty and answer in empty
    return False if type(gold) is not type(answer) else None


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
