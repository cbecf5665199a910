"""Is one value the other? True only where that is shown."""

from __future__ import annotations

from ..reading.values import Group, Matrix, Relation, Scalar, Text, Value
from .relations import same_relation
from .functions import Renames
from .scalars import same_scalar
from .sets import is_set
from .signs import plain
from .structures import letters, same_groups, same_matrices, same_sets, vector


def same(gold: Value, answer: Value, renames: Renames = ()) -> bool:
    """Whether `answer` states `gold`. Lists are multisets, parentheses are ordered, brackets matter."""
    gold, answer = plain(gold), plain(answer)
    if gold == answer:
        return True
    if isinstance(gold, Relation) or isinstance(answer, Relation):
        return same_relation(gold, answer, renames, same)
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
