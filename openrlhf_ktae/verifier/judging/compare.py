"""Are two values equal? True only if that can be shown.

Lists are multisets, parentheses are ordered, brackets matter; `x = 5` states 5, and an inequality describes a set.
"""

import itertools
from collections.abc import Mapping, Sequence
from fractions import Fraction

import mpmath

from ..reading.names import argument_renames, conflict
from ..reading.nodes import free_symbols, renamed, replaced, spelled, walk
from ..reading.values import Clock, Group, Matrix, Relation, Scalar, SetOperation, Text, Value
from .constants import decimal_literal
from .evaluate import Evaluator
from .exact import exact
from .functions import same_equation
from .scalars import same_scalar
from .sets import is_set, real_set, same_set
from .signs import has_free_signs, plain

QUANTITIES = frozenset({"sin", "cos", "tan", "cot", "sec", "csc", "abs", "max", "min", "gcd", "lcm"})
EQUALITIES = frozenset({"=", "=mod"})
MAX_ITEMS = 300
TURNED = str.maketrans("<>", "><")
ORDERED = frozenset({"()", "<>"})


def same(gold: Value, answer: Value) -> bool:
    """Whether `answer` states `gold`."""
    if (has_free_signs(gold) or has_free_signs(answer)) and same(plain(gold, True), plain(answer, True)):
        return True
    gold, answer = plain(gold), plain(answer)
    if gold == answer:
        return True
    if isinstance(gold, Relation) or isinstance(answer, Relation):
        return same_relation(gold, answer)
    if isinstance(gold, Scalar) != isinstance(answer, Scalar):
        gold, answer = remainder(gold), remainder(answer)
    if isinstance(gold, Clock) or isinstance(answer, Clock):
        return same_clock(gold, answer)
    if is_set(gold) or is_set(answer):
        return same_sets(gold, answer)
    if isinstance(gold, Text) or isinstance(answer, Text):
        return letters(gold) == letters(answer) != ""
    if isinstance(gold, Group) and isinstance(answer, Scalar):
        answer = vector(answer, len(gold.items))
    if isinstance(answer, Group) and isinstance(gold, Scalar):
        gold = vector(gold, len(answer.items))
    if isinstance(gold, Scalar) and isinstance(answer, Scalar):
        return same_scalar(gold, answer)
    if isinstance(gold, Matrix) or isinstance(answer, Matrix):
        return same_matrices(gold, answer)
    return same_groups(gold, answer)


def same_clock(gold: Value, answer: Value) -> bool:
    """Compare times of day; a.m. or p.m. may be missing, but not wrong."""
    if not isinstance(gold, Clock) or not isinstance(answer, Clock):
        return False
    halves = {gold.half, answer.half}
    return gold.seconds == answer.seconds and (
        len(halves) == 1 or halves in ({"", "a"}, {"", "p"}, {"p", "24"}, {"a", "0"})
    )


def remainder(value: Value) -> Value:
    r"""`3 \pmod 7` as the number 3; `10 \pmod 7` is not reduced and stays unchanged."""
    if not isinstance(value, Group) or value.brackets != "mod" or not all(isinstance(i, Scalar) for i in value.items):
        return value
    rest, modulus = (exact(item.node) for item in value.items)
    return value if rest is None or modulus is None or abs(rest) >= abs(modulus) else value.items[0]


def same_relation(gold: Value, answer: Value) -> bool:
    """Compare two values of which at least one is a relation: `x = 5` states 5, an inequality describes a set."""
    if isinstance(gold, Relation) and isinstance(answer, Relation):
        return _same_relations(gold, answer)
    if isinstance(answer, Relation):
        listed = isinstance(gold, Group) and not gold.brackets and len(gold.items) == len(answer.sides) - 1 > 1
        if listed and set(answer.operators) == {"="}:
            return same(gold, Group("", _shared_value(answer)))
        if set(answer.operators) <= EQUALITIES:
            sides = _values_of(answer, quantities=True)
            return False if not sides else all(same(gold, side) for side in sides)
        if set(answer.operators) <= EQUALITIES | {"~="}:
            return _same_approximation(gold, answer)
        if answer.operators == ("in",) and answer.names[0] is not None:
            return same(gold, answer.sides[1])
        return same_sets(gold, answer)
    assert isinstance(gold, Relation)
    if isinstance(gold.sides[0], Text) and gold.names[0] and not gold.names[0].words:
        return False  # R(3,4) and N(0,1) may be more than a labelled point
    if set(gold.operators) <= EQUALITIES | {"~="}:
        sides = _values_of(gold)
        return same(sides[-1], answer) if len(sides) < len(gold.sides) else False
    if gold.operators == ("in",) and gold.names[0] is not None:
        return same(gold.sides[1], answer)
    return same_sets(gold, answer)


def _shared_value(relation: Relation) -> tuple[Value, ...]:
    """`a = b = -2` as `a = -2, b = -2`."""
    pairs = zip(relation.sides[:-1], relation.names[:-1], strict=True)
    return tuple(Relation((side, relation.sides[-1]), ("=",), (name, None)) for side, name in pairs)


def _values_of(relation: Relation, quantities: bool = False) -> list[Value]:
    """The sides of `x = … = 5` that state its value, without the name on the left (or right).

    With `quantities`, `a + b = 5` states 5 as well. Laws such as `MR = MC` keep all sides.
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
    r"""True for `a + b`, `abc`, `\frac{a}{b}`, `\cos A`, `f(2) + f(3)`: a problem asks for these as a whole.

    These are sums, products, quotients and powers of at least two different letters, and functions of letters.
    """
    if not isinstance(value, Scalar):
        return False
    atomic = replaced(value.node, lambda part: ("sym", repr(part)) if part[0] == "app" else None)
    bases = [part for part in walk(atomic) if part[0] in ("sym", "num", "fn")]
    exponents = [part[2] for part in walk(atomic) if part[0] == "pow"]
    if any(part[0] == "num" and part not in exponents for part in bases):
        return False
    if any(part[0] == "fn" and part[1] in QUANTITIES for part in bases) and _symbolic(value):
        return True
    return len({part for part in bases if part[0] == "sym"}) > 1


def _symbolic(value: Value) -> bool:
    return isinstance(value, Scalar) and bool(free_symbols(value.node))


def _same_approximation(gold: Value, answer: Relation) -> bool:
    """`7/12 \\approx 0.583`: the exact side counts; the rounded one only against a rounded gold."""
    sides = _values_of(answer)
    exact_sides = [
        side
        for index, side in enumerate(answer.sides)
        if side in sides and (index == 0 or answer.operators[index - 1] == "=")
    ] or sides[:1]
    if not _rounds(exact_sides[-1], sides[-1]):
        return False
    if all(same(gold, side) for side in exact_sides):
        return True
    if isinstance(gold, Scalar) and gold.node[0] == "num" and "." in gold.node[2]:
        return same(gold, sides[-1])
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


def _same_relations(gold: Relation, answer: Relation) -> bool:
    if gold.operators == answer.operators == ("in",):
        if gold.names[0] and (not answer.names[0] or conflict(gold.names[0], answer.names[0])):
            return False
        return same(gold.sides[1], answer.sides[1])
    equalities = set(gold.operators) <= EQUALITIES, set(answer.operators) <= EQUALITIES | {"~="}
    if not any(equalities):
        return _same_inequalities(gold, answer)
    if not all(equalities):
        return same_sets(gold, answer) if is_set(gold) and is_set(answer) else False
    g, a = gold.names[0], answer.names[0]
    if g is not None and a is not None and not conflict(g, a):
        told = renamed_value(answer, argument_renames(g, a))
        answer = told if isinstance(told, Relation) else answer
        if all(same(_values_of(gold)[-1], side) for side in _values_of(answer)):
            return True
    if len(gold.sides) == 2 and len(answer.sides) == 2:
        if same(gold.sides[0], answer.sides[1]) and same(gold.sides[1], answer.sides[0]):
            return True
        laws = g and a and conflict(g, a) and min(len(g.base), len(a.base)) > 1  # ABC and ACB
        return not laws and _same_equations(gold, answer, positive=False)
    return False


def _same_equations(gold: Relation, answer: Relation, positive: bool) -> bool:
    if not all(isinstance(side, Scalar) for side in (*gold.sides, *answer.sides)):
        return False
    g, a = (("add", r.sides[0].node, ("neg", r.sides[1].node)) for r in (gold, answer))
    return bool(free_symbols(g) and free_symbols(a)) and same_equation(g, a, positive)


def _same_inequalities(gold: Relation, answer: Relation) -> bool:
    if {gold.operators[0][0], answer.operators[0][0]} == {"<", ">"}:
        turned = tuple(operator.translate(TURNED) for operator in answer.operators[::-1])
        answer = Relation(answer.sides[::-1], turned, answer.names[::-1])
    if any(conflict(g, a) for g, a in zip(gold.names, answer.names, strict=False) if g and a):
        return False
    verdict = same_set(gold, answer)
    if verdict is not None:
        return verdict
    if gold.operators != answer.operators:
        return False
    if len(gold.operators) > 1:
        return all(map(same, gold.sides, answer.sides))
    return _same_equations(gold, answer, positive=gold.operators != ("!=",))


def same_groups(gold: Value, answer: Value) -> bool:
    """Compare lists as multisets, braces as sets, parentheses in order. Different kinds of brackets differ."""
    if not isinstance(gold, Group) or not isinstance(answer, Group):
        return False
    if max(len(gold.items), len(answer.items)) > MAX_ITEMS:
        return False
    kinds = {_kind(gold), _kind(answer)}
    if kinds == {"{}"}:
        return all(any(same(g, a) for a in answer.items) for g in gold.items) and all(
            any(same(g, a) for g in gold.items) for a in answer.items
        )
    if len(gold.items) != len(answer.items):
        return False
    if kinds == {":"}:
        return _same_ratio(gold, answer)
    if kinds == {"mod"}:
        return _same_residue(gold, answer)
    if len(_bound_names(answer)) > len(_bound_names(gold)) > 0:
        return False  # f(x) beside f(z): the gold has one name for the argument
    if kinds <= {"", "()"} and len(kinds) == 2:
        gold, answer = (_in_order(value) if value.brackets == "" else value for value in (gold, answer))
    if kinds == {""} and _named_apart(gold) and not any(isinstance(item, Relation) for item in answer.items):
        return all(map(same, gold.items, answer.items))
    if kinds == {"cases"} or kinds <= {"", "{}"} or (kinds <= {"", "and", "or"} and kinds != {"and", "or"}):
        return match(gold.items, answer.items)
    if kinds in ({"()"}, {"", "()"}, {"[]"}) or (len(kinds) == 1 and gold.brackets == answer.brackets):
        return all(same(g, a) for g, a in zip(gold.items, answer.items, strict=True))
    return False


def _bound_names(group: Group) -> set[str]:
    """The letters that definitions such as `f(x) = 2x` use for their arguments."""
    names = [item.names[0] for item in group.items if isinstance(item, Relation) and item.names[0]]
    return {argument[1] for name in names for argument in name.arguments if argument[0] == "sym"}


def _in_order(group: Group) -> Group:
    """`y = 2, x = 1` sorted by name, as in the tuple (x, y)."""
    if not _named_apart(group) or not all(len(item.names[0].base) == 1 for item in group.items):
        return group
    return Group("", tuple(sorted(group.items, key=lambda item: (item.names[0].base, item.names[0].label))))


def _named_apart(group: Group) -> bool:
    """True for `a = 1, b = 2`, values of different things. Without the names their order matters."""
    names = [
        (item.names[0].base, item.names[0].label) if isinstance(item, Relation) and item.names[0] else ""
        for item in group.items
    ]
    return all(names) and len(set(names)) == len(names)


def _same_residue(gold: Group, answer: Group) -> bool:
    """Compare `3 (mod 7)` and `-4 (mod 7)`: the moduli are equal and divide the difference."""
    values = [exact(item.node) if isinstance(item, Scalar) else None for item in (*gold.items, *answer.items)]
    if any(value is None for value in values):
        return False
    first, modulus, second, other = (value or Fraction(0) for value in values)
    return modulus == other and modulus != 0 and ((first - second) / modulus).denominator == 1


def _kind(group: Group) -> str:
    """The kind of brackets: angle brackets count as parentheses, and so do square ones around three or more items."""
    if group.brackets in ORDERED or (group.brackets == "[]" and len(group.items) > 2):
        return "()"
    return group.brackets


def match(gold: Sequence[Value], answer: Sequence[Value]) -> bool:
    """Compare as multisets. Equality is transitive, so it is enough to take the first partner of each item."""
    left = list(answer)
    for item in gold:
        partner = next((index for index, candidate in enumerate(left) if same(item, candidate)), None)
        if partner is None:
            return False
        del left[partner]
    return True


def vector(value: Value, size: int) -> Value:
    """`2i - j` in unit vectors as the tuple of its components; any other value unchanged."""
    if not isinstance(value, Scalar) or not 2 <= size <= 3:
        return value
    basis = ("hat_i", "hat_j", "hat_k")[:size]
    present = free_symbols(value.node) & {"hat_i", "hat_j", "hat_k"}
    if not present or not present <= set(basis):
        return value

    def component(name: str) -> Scalar:
        units = {other: ("num", Fraction(int(other == name)), "") for other in basis}
        return Scalar(replaced(value.node, lambda part: units.get(part[1]) if part[0] == "sym" else None))

    return Group("()", tuple(map(component, basis)))


def _same_ratio(gold: Group, answer: Group) -> bool:
    """Compare ratios: `1:2:3` is `2:4:6`, since the terms are proportional."""
    g, a = gold.items[0].node, answer.items[0].node
    return all(
        same(Scalar(("mul", x.node, a)), Scalar(("mul", y.node, g)))
        for x, y in zip(gold.items, answer.items, strict=True)
    )


def same_matrices(gold: Value, answer: Value) -> bool:
    """Compare matrices entry by entry; a tuple counts as a column."""
    gold_rows, answer_rows = rows(gold), rows(answer)
    if gold_rows is None or answer_rows is None or [len(r) for r in gold_rows] != [len(r) for r in answer_rows]:
        return False
    return all(map(same, itertools.chain(*gold_rows), itertools.chain(*answer_rows)))


def rows(value: Value) -> list[tuple[Value, ...]] | None:
    """Rows of a matrix; a tuple counts as a column."""
    if isinstance(value, Matrix):
        if len(value.rows) == 1 and len(value.rows[0]) > 1:
            return [value.rows[0]]
        return list(value.rows)
    if (
        isinstance(value, Group)
        and value.brackets == "[]"
        and all(isinstance(item, Group) and item.brackets == "[]" for item in value.items)
    ):
        return [item.items for item in value.items if isinstance(item, Group)]
    if isinstance(value, Group) and _kind(value) == "()":
        return [(item,) for item in value.items]
    return None


def same_sets(gold: Value, answer: Value) -> bool:
    """Compare sets of numbers by membership; sets with symbolic ends part by part."""
    verdict = same_set(gold, answer)
    if verdict is not None:
        return verdict
    gold, answer = _as_interval(gold), _as_interval(answer)
    if isinstance(gold, SetOperation) and isinstance(answer, SetOperation) and gold.operator == answer.operator:
        if same(gold.left, answer.left) and same(gold.right, answer.right):
            return True
        crossed = same(gold.left, answer.right) and same(gold.right, answer.left)
        return crossed and gold.operator != "setminus"
    if isinstance(gold, Group) and isinstance(answer, Group) and gold.brackets == answer.brackets:
        return same_groups(gold, answer)
    return False


def _as_interval(value: Value) -> Value:
    r"""`x \le a` or `a < x < b` as an interval; any other value unchanged."""
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
    interval = Group("(["[closed_low] + ")]"[closed_high], (low, high))
    return interval if real_set(value) is None else value  # numeric ends were compared by membership already


def _variable(sides: Sequence[Value]) -> int | None:
    """The index of the side that is the unknown of an inequality: a letter; of several letters, x comes first."""
    letters_at = {side.node[1]: i for i, side in enumerate(sides) if isinstance(side, Scalar) and side.node[0] == "sym"}
    if len(letters_at) == 1:
        return next(iter(letters_at.values()))
    return next((letters_at[name] for name in "xyztw" if name in letters_at), None)


def letters(value: Value) -> str:
    r"""The letters of a text or of a product of letters: `\text{SE}` and `SE`."""
    return value.phrase if isinstance(value, Text) else spelled(value.node).lower() if isinstance(value, Scalar) else ""


def renamed_value(value: Value, names: Mapping[str, str]) -> Value:
    """A value with its letters renamed."""
    if not names:
        return value
    if isinstance(value, Scalar):
        return Scalar(renamed(value.node, names), value.unit)
    if isinstance(value, Group):
        return Group(value.brackets, tuple(renamed_value(item, names) for item in value.items))
    if isinstance(value, Relation):
        return Relation(tuple(renamed_value(side, names) for side in value.sides), value.operators, value.names)
    return value
