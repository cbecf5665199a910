"""Equations, inequalities, names: is one relation the other, or does it state the value asked for?

Each function takes `same`, the comparison of values in general, because sides may be anything.
"""

from __future__ import annotations

from fractions import Fraction

import mpmath

from ..reading.names import argument_renames, conflict
from ..reading.nodes import free_symbols, replaced, walk
from ..reading.values import Group, Node, Relation, Scalar, Text, Value
from .constants import decimal_literal
from .evaluate import Evaluator
from .exact import exact
from .functions import NO_RENAMES, Renames, same_equation
from .sets import is_set, same_set
from .structures import Compare, same_sets

QUANTITIES = frozenset({"sin", "cos", "tan", "cot", "sec", "csc", "abs", "max", "min", "gcd", "lcm"})
EQUALITIES = frozenset({"=", "=mod"})


def same_relation(gold: Value, answer: Value, renames: Renames, same: Compare) -> bool:
    """Where at least one of the two is a relation: `x = 5` states 5, an inequality describes a set."""
    if isinstance(gold, Relation) and isinstance(answer, Relation):
        return _same_relations(gold, answer, renames, same)
    if isinstance(answer, Relation):
        if _is_list_of(gold, len(answer.sides) - 1) and set(answer.operators) == {"="}:
            return same(gold, Group("", _shared_value(answer)), renames)
        if set(answer.operators) <= EQUALITIES:
            sides = _values_of(answer, quantities=True)
            return False if not sides else all(same(gold, side, renames) for side in sides)
        if set(answer.operators) <= EQUALITIES | {"~="}:
            return _same_approximation(gold, answer, renames, same)
        if answer.operators == ("in",) and answer.names[0] is not None:
            return same(gold, answer.sides[1], renames)
        return same_sets(gold, answer, same)
    assert isinstance(gold, Relation)
    if isinstance(gold.sides[0], Text) and gold.names[0] and not gold.names[0].words:
        return False  # R(3,4) and N(0,1) may be more than a labelled point
    if set(gold.operators) <= EQUALITIES | {"~="}:
        sides = _values_of(gold)
        return same(sides[-1], answer, renames) if len(sides) < len(gold.sides) else False
    if gold.operators == ("in",) and gold.names[0] is not None:
        return same(gold.sides[1], answer, renames)
    return same_sets(gold, answer, same)


def _is_list_of(value: Value, size: int) -> bool:
    return isinstance(value, Group) and not value.brackets and len(value.items) == size > 1


def _shared_value(relation: Relation) -> tuple[Value, ...]:
    """`a = b = -2` as `a = -2, b = -2`."""
    pairs = zip(relation.sides[:-1], relation.names[:-1], strict=True)
    return tuple(Relation((side, relation.sides[-1]), ("=",), (name, None)) for side, name in pairs)


def _values_of(relation: Relation, quantities: bool = False) -> list[Value]:
    """The sides of `x = … = 5` that are not mere names; all but the first if every side looks like a name.

    With `quantities`, `a + b = 5` states 5 as well.
    """
    name = relation.names[0]
    first_is_name = name is not None
    if name and "," in name.base and not isinstance(relation.sides[-1], Group):
        return []
    if all(name is not None and len(name.base) > 1 and name.base.isalpha() for name in relation.names):
        return list(relation.sides)  # MR = MC: a law, not the value of one of them
    if first_is_name or (
        quantities and _is_quantity(relation.sides[0]) and not any(map(_symbolic, relation.sides[1:]))
    ):
        return list(relation.sides[1:])
    if relation.names[-1] is not None and len(relation.sides) == 2 and not _symbolic(relation.sides[0]):
        return [relation.sides[0]]
    return list(relation.sides)


def _is_quantity(value: Value) -> bool:
    r"""`a + b`, `abc`, `\frac{a}{b}`, `\cos A`, `f(2) + f(3)`: asked for as a whole, nothing to be solved for.

    True for sums, products, quotients and powers of letters, two different ones at least, and for a function of one.
    """
    if not isinstance(value, Scalar):
        return False
    atomic = replaced(value.node, lambda part: ("sym", repr(part)) if part[0] == "app" else None)
    bases = [part for part in walk(atomic) if part[0] in ("sym", "num", "fn")]
    if any(part[0] == "num" and part not in _exponents(atomic) for part in bases):
        return False
    if any(part[0] == "fn" and part[1] in QUANTITIES for part in bases) and _symbolic(value):
        return True
    return len({part for part in bases if part[0] == "sym"}) > 1


def _exponents(node: Node) -> list[Node]:
    return [part[2] for part in walk(node) if part[0] == "pow"]


def _symbolic(value: Value) -> bool:
    return isinstance(value, Scalar) and bool(free_symbols(value.node))


def _same_approximation(gold: Value, answer: Relation, renames: Renames, same: Compare) -> bool:
    """`7/12 \\approx 0.583`: the exact side counts; the rounded one only against a rounded gold."""
    sides = _values_of(answer)
    exact_sides = [
        side
        for index, side in enumerate(answer.sides)
        if side in sides and (index == 0 or answer.operators[index - 1] == "=")
    ] or sides[:1]
    if not _rounds(exact_sides[-1], sides[-1]):
        return False
    if all(same(gold, side, renames) for side in exact_sides):
        return True
    if isinstance(gold, Scalar) and gold.node[0] == "num" and "." in gold.node[2]:
        return same(gold, sides[-1], renames)
    return False


def _rounds(exact_side: Value, rounded: Value) -> bool:
    """Whether `a \\approx b` holds: b is a number within one unit of its last digit of a."""
    if not isinstance(exact_side, Scalar) or not isinstance(rounded, Scalar) or exact_side is rounded:
        return exact_side is rounded
    if _symbolic(exact_side):
        return True
    value, digits = Evaluator(200)(exact_side.node), exact(rounded.node)
    if digits is None or mpmath.im(value) != 0:
        return False
    literal = decimal_literal(rounded.node)
    unit = literal[1] if literal is not None else Fraction(1)
    return bool(abs(mpmath.re(value) - mpmath.mpf(digits.numerator) / digits.denominator) < float(unit))


def _same_relations(gold: Relation, answer: Relation, renames: Renames, same: Compare) -> bool:
    if gold.operators == answer.operators == ("in",):
        if gold.names[0] and (not answer.names[0] or conflict(gold.names[0], answer.names[0])):
            return False
        return same(gold.sides[1], answer.sides[1], renames)
    equalities = set(gold.operators) <= EQUALITIES, set(answer.operators) <= EQUALITIES | {"~="}
    if not any(equalities):
        return _same_inequalities(gold, answer, renames, same)
    if not all(equalities):
        return same_sets(gold, answer, same) if is_set(gold) and is_set(answer) else False
    g, a = gold.names[0], answer.names[0]
    if g is not None and a is not None and not conflict(g, a):
        renames = {**renames, **argument_renames(g, a)}
        if all(same(_values_of(gold)[-1], side, renames) for side in _values_of(answer)):
            return True
    if len(gold.sides) == 2 and len(answer.sides) == 2:
        if same(gold.sides[0], answer.sides[1], NO_RENAMES) and same(gold.sides[1], answer.sides[0], NO_RENAMES):
            return True
        return _same_equations(gold, answer, renames, positive=False)
    return False


def _same_equations(gold: Relation, answer: Relation, renames: Renames, positive: bool) -> bool:
    sides = [*gold.sides, *answer.sides]
    if not all(isinstance(side, Scalar) for side in sides):
        return False
    g, a = (("add", r.sides[0].node, ("neg", r.sides[1].node)) for r in (gold, answer))
    if not free_symbols(g) or not free_symbols(a):
        return False
    return same_equation(g, a, renames, positive)


def _same_inequalities(gold: Relation, answer: Relation, renames: Renames, same: Compare) -> bool:
    if any(conflict(g, a) for g, a in zip(gold.names, answer.names, strict=False) if g and a):
        return False
    verdict = same_set(gold, answer)
    if verdict is not None:
        return verdict
    if len(gold.operators) != 1 or len(answer.operators) != 1:
        if gold.operators == answer.operators:
            return all(same(g, a, renames) for g, a in zip(gold.sides, answer.sides, strict=True))
        return False
    gold, answer = _upward(gold), _upward(answer)
    if gold.operators != answer.operators:
        return False
    return _same_equations(gold, answer, renames, positive=gold.operators != ("!=",))


def _upward(relation: Relation) -> Relation:
    """An inequality written with < or <=."""
    flip = {">": "<", ">=": "<="}
    operator = relation.operators[0]
    if operator not in flip:
        return relation
    return Relation(relation.sides[::-1], (flip[operator],), relation.names[::-1])
