"""Is one value the other? True only where that is shown."""

from __future__ import annotations

from ..reading.values import Clock, Group, Matrix, Relation, Scalar, Text, Value
from .exact import exact
from .functions import NO_RENAMES, Renames
from .relations import same_relation
from .scalars import same_scalar
from .sets import is_set
from .signs import has_free_signs, plain
from .structures import letters, same_groups, same_matrices, same_sets, vector


def same(gold: Value, answer: Value, renames: Renames = NO_RENAMES) -> bool:
    """Whether `answer` states `gold`. Lists are multisets, parentheses are ordered, brackets matter."""
    if (has_free_signs(gold) or has_free_signs(answer)) and same(plain(gold, True), plain(answer, True), renames):
        return True
    gold, answer = plain(gold), plain(answer)
    if gold == answer and not renames:
        return True
    if isinstance(gold, Relation) or isinstance(answer, Relation):
        return same_relation(gold, answer, renames, same)
    if isinstance(gold, Scalar) != isinstance(answer, Scalar):
        gold, answer = remainder(gold), remainder(answer)
    if isinstance(gold, Clock) or isinstance(answer, Clock):
        return same_clock(gold, answer)
    if is_set(gold) or is_set(answer):
        return same_sets(gold, answer, same)
    if isinstance(gold, Text) or isinstance(answer, Text):
        return letters(gold) is not None and letters(gold) == letters(answer)
    if isinstance(gold, Group) and isinstance(answer, Scalar):
        answer = vector(answer, len(gold.items))
    if isinstance(answer, Group) and isinstance(gold, Scalar):
        gold = vector(gold, len(answer.items))
    if isinstance(gold, Scalar) and isinstance(answer, Scalar):
        return same_scalar(gold, answer, renames)
    if isinstance(gold, Matrix) or isinstance(answer, Matrix):
        return same_matrices(gold, answer, renames, same)
    return same_groups(gold, answer, renames, same)


def same_clock(gold: Value, answer: Value) -> bool:
    """Times of day; whether before or after noon may be left out, but not mistaken."""
    if not isinstance(gold, Clock) or not isinstance(answer, Clock):
        return False
    halves = {gold.half, answer.half}
    return gold.seconds == answer.seconds and (len(halves) == 1 or halves in ({"", "a"}, {"", "p"}, {"p", "24"}))


def remainder(value: Value) -> Value:
    r"""`3 \pmod 7` as the number 3; `10 \pmod 7` is not in lowest terms and stays what it is."""
    if not isinstance(value, Group) or value.brackets != "mod" or not all(isinstance(i, Scalar) for i in value.items):
        return value
    rest, modulus = (exact(item.node) for item in value.items)
    return value if rest is None or modulus is None or abs(rest) >= abs(modulus) else value.items[0]
