"""Are two expressions with units equal? Compares units, percent and degrees first, then the numbers."""

import re
from fractions import Fraction

from ..reading.nodes import common_logarithms, free_symbols, spelled, walk
from ..reading.units import DEGREE, PERCENT, RADIAN_FACTOR, read_unit, same_label
from ..reading.values import Node, Scalar, Unit
from .constants import same_constant
from .functions import same_function
from .sets import INFINITY

ONE: Node = ("num", Fraction(1), "1")


def same_scalar(gold: Scalar, answer: Scalar) -> bool:
    """Compare values with units: a unit may be missing on one side, and different units are converted."""
    gold, answer = _letter_as_unit(gold, answer.unit), _letter_as_unit(answer, gold.unit)
    return any(same_node(gold.node, answer.node, scale) for scale in _scales(gold, answer))


def _letter_as_unit(value: Scalar, other: Unit | None) -> Scalar:
    """Read the letters of `20m`, `3mg`, `5 m/s` as a unit if the other side has that unit: `20 \\text{ meters}`."""
    if other is None or value.unit is not None or not other.label:
        return value
    amount, letters = _letters_behind(value.node)
    parts = re.findall(r"[^\W\d]+|\d+|[/^-]", letters)
    unit = read_unit([("word" if part.isalpha() else "op", part) for part in parts])
    alike = unit and (
        unit.label == other.label or (unit.dimensions, unit.factor) == (other.dimensions, other.factor or 0)
    )
    return Scalar(amount, unit) if alike else value


def _letters_behind(node: Node) -> tuple[Node, str]:
    """Split off the letters that multiply and divide a number: `m/s^2`."""
    if node[0] == "sym":
        return ONE, node[1]
    if node[0] == "pow" and node[1][0] == "sym" and node[2][0] == "num":
        return ONE, f"{node[1][1]}^{node[2][1]}"
    if node[0] in ("mul", "div"):
        (amount, above), (one, below) = map(_letters_behind, node[1:])
        return (amount, above + "/" * (node[0] == "div") + below) if one == ONE and below else (node, "")
    return node, ""


def _scales(gold: Scalar, answer: Scalar) -> list[Node | Fraction]:
    """Factors by which the answer may be multiplied before the comparison; none if the units conflict."""
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
        return [Fraction(1, 100), one] if _may_be_percentage(gold.node) else [Fraction(1, 100)]
    if unit == DEGREE:
        to_degrees: Node = ("div", ("num", Fraction(180), ""), ("const", "pi"))
        to_radians: Node = ("div", ("const", "pi"), ("num", Fraction(180), ""))
        return [one, to_degrees if a is None else to_radians]
    return [one]


def _conversion(gold: Unit, answer: Unit) -> list[Node | Fraction]:
    if gold.factor is None or answer.factor is None:
        return [Fraction(1)] if same_label(gold, answer) else []
    if gold.dimensions != answer.dimensions:
        return []
    radians = [unit.factor == RADIAN_FACTOR for unit in (gold, answer)]
    if gold.dimensions == DEGREE.dimensions and radians[0] != radians[1]:
        pi: Node = ("const", "pi")
        if radians[0]:
            return [("mul", ("num", answer.factor / 180, ""), pi)]
        return [("div", ("num", 180 / gold.factor, ""), pi)]
    return [answer.factor / gold.factor]


def _may_be_percentage(node: Node) -> bool:
    """True for a gold that may be a percentage without its sign: a whole number or decimal above 1, written out."""
    return node[0] == "num" and bool(node[2]) and "e" not in node[2] and node[1] > 1


def same_node(gold: Node, answer: Node, scale: Node | Fraction = Fraction(1)) -> bool:
    """Equality of two expressions; `scale` multiplies the answer."""
    if isinstance(scale, tuple):
        answer, scale = ("mul", answer, scale), Fraction(1)
    if gold == answer and scale == 1:
        return True
    special = _same_special(gold, answer) if scale == 1 else None
    if special is not None:
        return special
    if _same_expression(gold, answer, scale):
        return True
    if any(part[:2] == ("fn", "log") for node in (gold, answer) for part in walk(node)):
        return _same_expression(common_logarithms(gold), common_logarithms(answer), scale)
    return False


def _same_expression(gold: Node, answer: Node, scale: Fraction) -> bool:
    if not free_symbols(gold) and not free_symbols(answer):
        return same_constant(gold, answer, scale)
    if scale != 1:
        answer = ("mul", ("num", scale, ""), answer)
    return same_function(gold, answer)


def _same_special(gold: Node, answer: Node) -> bool | None:
    """Infinity, numerals with a base, letters that are constants; None for ordinary expressions."""
    runs = [spelled(node).removeprefix("angle") for node in (gold, answer)]
    if all(len(run) > 2 and run.isalpha() and run.isupper() for run in runs):
        return runs[0] == runs[1]  # ABC is a name; its letters keep their order
    infinite = [(node == INFINITY) - (node == ("neg", INFINITY)) for node in (gold, answer)]
    if any(infinite):
        return infinite[0] == infinite[1]
    if gold[0] == "based":
        if answer[0] == "based":
            return gold[2] == answer[2] and gold[1].lstrip("0").lower() == answer[1].lstrip("0").lower()
        if any(part[0] == "based" and part[2] == gold[2] for part in walk(answer)):
            return None
        return answer[0] == "num" and answer[2].lstrip("0") == gold[1].lstrip("0")
    return None
