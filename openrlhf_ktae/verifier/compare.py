"""Is one value the other? Structure first, then units, then numbers. True, False, or None for "cannot tell here"."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from fractions import Fraction

from .evaluate import common_logarithms, free_symbols, replaced, walk
from .numeric import same_constant, same_equation, same_function
from .sets import is_set, same_set
from .units import DEGREE, PERCENT
from .values import Group, Matrix, Name, Node, NumberSet, Relation, Scalar, SetOperation, Text, Unit, Value

MAX_ITEMS = 300
MAX_SIGNS = 4  # plus-minus signs in one tuple
ORDERED = frozenset({"()", "<>"})
Verdict = bool | None
Renames = tuple[dict[str, str], ...]


def same(gold: Value, answer: Value, renames: Renames = ()) -> Verdict:
    """Whether `answer` states `gold`. Lists are multisets, parentheses are ordered, brackets matter."""
    gold, answer = _plain(gold), _plain(answer)
    if gold == answer:
        return True
    if isinstance(gold, Relation) or isinstance(answer, Relation):
        return _same_relation(gold, answer, renames)
    if is_set(gold) or is_set(answer):
        return _same_sets(gold, answer)
    if isinstance(gold, Text) or isinstance(answer, Text):
        return _letters(gold) == _letters(answer) if _letters(gold) is not None else False
    if isinstance(gold, Scalar) and isinstance(answer, Scalar):
        return same_scalar(gold, answer, renames)
    gold_rows, answer_rows = _rows(gold), _rows(answer)
    if isinstance(gold, Matrix) or isinstance(answer, Matrix):
        if gold_rows is None or answer_rows is None or [len(r) for r in gold_rows] != [len(r) for r in answer_rows]:
            return False
        pairs = zip(itertools.chain(*gold_rows), itertools.chain(*answer_rows), strict=True)
        return _all(same(g, a, renames) for g, a in pairs)
    return _same_groups(gold, answer, renames)


def _all(verdicts: object) -> Verdict:
    """False if any is False, else None if any is None, else True."""
    undecided = False
    for verdict in verdicts:  # type: ignore[attr-defined]
        if verdict is False:
            return False
        undecided = undecided or verdict is None
    return None if undecided else True


# --- groups -----------------------------------------------------------------------------------------------------------


def _plain(value: Value) -> Value:
    """Spread plus-minus signs into lists, and take a set or list of one item as the item."""
    if isinstance(value, Scalar) and _has_signs(value.node):
        return Group("", (_signed(value, 1), _signed(value, -1)))
    if isinstance(value, Group) and value.brackets in ("", "{}"):
        items: list[Value] = []
        for item in value.items:
            plain = _plain(item)
            items.extend(plain.items if isinstance(plain, Group) and plain.brackets == "" else [plain])
        return items[0] if len(items) == 1 else Group(value.brackets, tuple(items))
    if isinstance(value, Group) and any(isinstance(i, Scalar) and _has_signs(i.node) for i in value.items):
        return _signed_tuples(value)
    if isinstance(value, Relation) and isinstance(value.sides[-1], (Scalar, Group)):
        last = _plain(value.sides[-1])
        if isinstance(last, Group) and last.brackets == "" and value.operators == ("=",) and value.names[0]:
            return Group("", tuple(Relation((value.sides[0], i), ("=",), (value.names[0], None)) for i in last.items))
    return value


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


def _same_groups(gold: Value, answer: Value, renames: Renames) -> Verdict:
    if not isinstance(gold, Group) or not isinstance(answer, Group):
        return False
    if max(len(gold.items), len(answer.items)) > MAX_ITEMS:
        return None if len(gold.items) == len(answer.items) else False
    kinds = {_kind(gold), _kind(answer)}
    if kinds == {"{}"}:
        return _same_finite_sets(gold.items, answer.items, renames)
    if len(gold.items) != len(answer.items):
        return False
    if kinds <= {"", "{}"}:
        return match(gold.items, answer.items, lambda g, a: same(g, a, renames))
    if kinds in ({"()"}, {"", "()"}, {"[]"}) or (len(kinds) == 1 and gold.brackets == answer.brackets):
        return _all(same(g, a, renames) for g, a in zip(gold.items, answer.items, strict=True))
    return False


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


def _same_finite_sets(gold: Sequence[Value], answer: Sequence[Value], renames: Renames) -> Verdict:
    """Sets in braces: repetition does not count."""

    def inside(item: Value, others: Sequence[Value], flip: bool) -> Verdict:
        verdicts = [same(other, item, renames) if flip else same(item, other, renames) for other in others]
        return True if True in verdicts else (None if None in verdicts else False)

    if len(gold) * len(answer) > MAX_ITEMS * 10 and len(gold) != len(answer):
        return False
    forth = _all(inside(item, answer, False) for item in gold)
    return forth if forth is not True else _all(inside(item, gold, True) for item in answer)


def _rows(value: Value) -> list[tuple[Value, ...]] | None:
    """Rows of a matrix; a tuple counts as a column."""
    if isinstance(value, Matrix):
        if len(value.rows) == 1 and len(value.rows[0]) > 1:
            return [value.rows[0]]
        return list(value.rows)
    if isinstance(value, Group) and _kind(value) == "()":
        return [(item,) for item in value.items]
    return None


# --- sets and words ---------------------------------------------------------------------------------------------------


def _same_sets(gold: Value, answer: Value) -> Verdict:
    verdict = same_set(gold, answer)
    if verdict is not None:
        return verdict
    if isinstance(gold, SetOperation) and isinstance(answer, SetOperation) and gold.operator == answer.operator:
        straight = _all((same(gold.left, answer.left), same(gold.right, answer.right)))
        if straight is True or gold.operator == "setminus":
            return straight
        return _all((same(gold.left, answer.right), same(gold.right, answer.left)))
    if isinstance(gold, Group) and isinstance(answer, Group) and gold.brackets == answer.brackets:
        return _same_groups(gold, answer, ())
    empty = (NumberSet("0"), Text("no solution"))
    if gold in empty or answer in empty:
        return gold in empty and answer in empty
    return False if type(gold) is not type(answer) else None


def _letters(value: Value) -> str | None:
    """The letters of a text, also where they were written as a product: `\\text{SE}` and `SE`."""
    if isinstance(value, Text):
        return value.phrase
    if isinstance(value, Scalar):
        letters = _product_letters(value.node)
        return None if letters is None else letters.lower()
    return None


def _product_letters(node: Node) -> str | None:
    if node[0] in ("sym", "const"):
        return str(node[1])
    if node[0] == "mul":
        left, right = _product_letters(node[1]), _product_letters(node[2])
        return None if left is None or right is None else left + right
    return None


# --- scalars ----------------------------------------------------------------------------------------------------------


def same_scalar(gold: Scalar, answer: Scalar, renames: Renames = ()) -> Verdict:
    """Equality of value after units: a unit on one side alone may be left out, two different ones are converted."""
    gold, answer = _letter_as_unit(gold, answer.unit), _letter_as_unit(answer, gold.unit)
    verdict: Verdict = False
    for scale in _scales(gold, answer):
        verdict = same_node(gold.node, answer.node, renames, scale)
        if verdict is not False:
            return verdict
    return verdict


def _letter_as_unit(value: Scalar, other: Unit | None) -> Scalar:
    """`20m` where the other side says `20 \\text{ m}`."""
    node = value.node
    if value.unit is None and other is not None and node[0] == "mul" and node[2] == ("sym", other.label):
        return Scalar(node[1], other)
    return value


def _scales(gold: Scalar, answer: Scalar) -> list[Node | Fraction]:
    """Factors by which the answer may be multiplied before the comparison; none if the units contradict."""
    one = Fraction(1)
    g, a = gold.unit, answer.unit
    if g is None and a is None:
        return [one]
    if g is not None and a is not None:
        return _conversion(g, a)
    unit = g or a
    if unit == PERCENT:
        if a is None:
            return [one, Fraction(100)]
        return [Fraction(1, 100), one] if _above_one(gold.node) else [Fraction(1, 100)]
    if unit == DEGREE:
        to_degrees: Node = ("div", ("num", Fraction(180), ""), ("const", "pi"))
        to_radians: Node = ("div", ("const", "pi"), ("num", Fraction(180), ""))
        return [one, to_degrees if a is None else to_radians]
    return [one]


def _conversion(gold: Unit, answer: Unit) -> list[Node | Fraction]:
    if gold.factor is None or answer.factor is None:
        return [Fraction(1)]
    if gold.dimensions != answer.dimensions:
        return []
    return [answer.factor / gold.factor]


def _above_one(node: Node) -> bool:
    return (
        not free_symbols(node)
        and same_constant(("fn", "max", node, ("num", Fraction(1), "")), node)
        and not same_constant(("num", Fraction(1), ""), node)
    )


def same_node(gold: Node, answer: Node, renames: Renames = (), scale: Node | Fraction = Fraction(1)) -> Verdict:
    """Equality of two expressions; `scale` multiplies the answer."""
    if isinstance(scale, tuple):
        answer, scale = ("mul", answer, scale), Fraction(1)
    if gold == answer and scale == 1:
        return True
    special = _same_special(gold, answer)
    if special is not None:
        return special
    verdict = _same_expression(gold, answer, renames, scale)
    if verdict is False and any(part[:2] == ("fn", "log") for node in (gold, answer) for part in walk(node)):
        return _same_expression(common_logarithms(gold), common_logarithms(answer), renames, scale)
    return verdict


def _same_expression(gold: Node, answer: Node, renames: Renames, scale: Fraction) -> Verdict:
    if not free_symbols(gold) and not free_symbols(answer):
        return same_constant(gold, answer, scale)
    if scale != 1:
        answer = ("mul", ("num", scale, ""), answer)
    return same_function(gold, answer, renames)


def _same_special(gold: Node, answer: Node) -> Verdict:
    """Infinity, numerals with a base, letters that are constants; None for ordinary expressions."""
    infinite = [_infinity(node) for node in (gold, answer)]
    if any(infinite):
        return infinite[0] == infinite[1]
    if gold[0] == "based":
        if answer[0] == "based":
            return gold[2] == answer[2] and gold[1].lstrip("0").lower() == answer[1].lstrip("0").lower()
        return answer[0] == "num" and answer[2].lstrip("0") == gold[1].lstrip("0")
    return None


def _infinity(node: Node) -> int:
    """1 and -1 for the infinities, 0 for everything else."""
    if node == ("const", "inf"):
        return 1
    if node[0] == "neg":
        return -_infinity(node[1])
    return 0


# --- relations --------------------------------------------------------------------------------------------------------


def _same_relation(gold: Value, answer: Value, renames: Renames) -> Verdict:
    if isinstance(gold, Relation) and isinstance(answer, Relation):
        return _same_relations(gold, answer, renames)
    if isinstance(answer, Relation):
        if set(answer.operators) <= {"="}:
            sides = _values_of(answer)
            return False if not sides else _all(same(gold, side, renames) for side in sides)
        if set(answer.operators) <= {"=", "~="}:
            return _same_approximation(gold, answer, renames)
        if answer.operators == ("in",) and answer.names[0] is not None:
            return same(gold, answer.sides[1], renames)
        return _same_sets(gold, answer)
    assert isinstance(gold, Relation)
    if set(gold.operators) <= {"=", "~="}:
        sides = _values_of(gold)
        return same(sides[-1], answer, renames) if len(sides) < len(gold.sides) else False
    if gold.operators == ("in",) and gold.names[0] is not None:
        return same(gold.sides[1], answer, renames)
    return _same_sets(gold, answer)


def _values_of(relation: Relation) -> list[Value]:
    """The sides of `x = … = 5` that are not mere names; all but the first if every side looks like a name."""
    first_is_name = relation.names[0] is not None
    if first_is_name:
        return list(relation.sides[1:])
    if relation.names[-1] is not None and len(relation.sides) == 2 and not _symbolic(relation.sides[0]):
        return [relation.sides[0]]
    return list(relation.sides)


def _symbolic(value: Value) -> bool:
    return isinstance(value, Scalar) and bool(free_symbols(value.node))


def _same_approximation(gold: Value, answer: Relation, renames: Renames) -> Verdict:
    """`7/12 \\approx 0.583`: the exact side counts; the rounded one only against a rounded gold."""
    sides = _values_of(answer)
    exact_sides = [
        side
        for index, side in enumerate(answer.sides)
        if side in sides and (index == 0 or answer.operators[index - 1] == "=")
    ] or sides[:1]
    verdict = _all(same(gold, side, renames) for side in exact_sides)
    if verdict is False and isinstance(gold, Scalar) and gold.node[0] == "num" and "." in gold.node[2]:
        return same(gold, sides[-1], renames)
    return verdict


def _same_relations(gold: Relation, answer: Relation, renames: Renames) -> Verdict:
    if gold.operators == answer.operators == ("in",):
        return same(gold.sides[1], answer.sides[1], renames)
    equalities = set(gold.operators) <= {"="}, set(answer.operators) <= {"=", "~="}
    if not any(equalities):
        return _same_inequalities(gold, answer, renames)
    if not all(equalities):
        return _same_sets(gold, answer) if is_set(gold) and is_set(answer) else False
    g, a = gold.names[0], answer.names[0]
    if g is not None and a is not None and not _names_conflict(g, a):
        renames = (*renames, *_argument_renames(g, a))
        verdict = _all(same(_values_of(gold)[-1], side, renames) for side in _values_of(answer))
        if verdict is not False:
            return verdict
    if len(gold.sides) == 2 and len(answer.sides) == 2:
        if same(gold.sides[0], answer.sides[1]) is True and same(gold.sides[1], answer.sides[0]) is True:
            return True
        return _same_equations(gold, answer, renames, positive=False)
    return False


def _same_equations(gold: Relation, answer: Relation, renames: Renames, positive: bool) -> Verdict:
    sides = [*gold.sides, *answer.sides]
    if not all(isinstance(side, Scalar) for side in sides):
        return False
    g, a = (("add", r.sides[0].node, ("neg", r.sides[1].node)) for r in (gold, answer))
    if not free_symbols(g) or not free_symbols(a):
        return False
    return same_equation(g, a, renames, positive)


def _same_inequalities(gold: Relation, answer: Relation, renames: Renames) -> Verdict:
    verdict = same_set(gold, answer)
    if verdict is not None:
        return verdict
    if len(gold.operators) != 1 or len(answer.operators) != 1:
        if gold.operators == answer.operators:
            return _all(same(g, a, renames) for g, a in zip(gold.sides, answer.sides, strict=True))
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


def _names_conflict(gold: Name, answer: Name) -> bool:
    """`x` and `y` name different things; `N` and `n`, `Area` and `A`, `y` and `f(x)` may name the same."""
    g, a = gold.base.lower(), answer.base.lower()
    if g == a or len(g) != 1 or len(a) != 1:
        return False
    return not ("y" in (g, a) and bool(gold.arguments) != bool(answer.arguments))


def _argument_renames(gold: Name, answer: Name) -> Renames:
    """`f(z) = z` is `f(x) = x`: the answer's arguments under the gold's names."""
    if len(gold.arguments) != len(answer.arguments) or gold.arguments == answer.arguments:
        return ()
    pairs = dict(zip(answer.arguments, gold.arguments, strict=True))
    return (pairs,) if all(not name[0].isdigit() for name in [*pairs, *pairs.values()]) else ()
