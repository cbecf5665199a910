"""Unit phrases: `cm^2`, `m/s^2`, `square inches`, `kcal m^{-2} yr^{-1}`, `students`."""

import re
from fractions import Fraction

from .lexer import Token
from .values import Unit
from .words import FILLERS, UNIT_PREFIXES, UNIT_SUFFIXES, UNITS, changes

DEGREE = Unit((("angle", 1),), Fraction(1), "degree")
RADIAN_FACTOR = Fraction(UNITS["rad"][1])
PERCENT = Unit((("percent", 1),), Fraction(1), "percent")
DIMENSIONLESS_WORDS = frozenset({"unit", "units"})
MAX_POWER = 12
_POWER = r"(?: (squared|cubed)(?![^ ])| \^ (?:\{ )?(-? ?)(\d{1,3})(?: \})?)?"
_PART = re.compile(
    rf"((?:per|/) (?:[({{] )*)?((?:square|sq|cubic|cu) )?(?!per(?![^ ]))([^\W\d_][^ ]*){_POWER}", re.IGNORECASE
)


def read_unit(tokens: list[Token]) -> Unit | None:
    """The unit spelled by these tokens, or None if they mean something else (`or more`, `times as many`)."""
    words = [value for kind, value in tokens if kind == "word"]
    if words and all(value.lower() in FILLERS and value not in UNITS for _, value in tokens):
        return Unit((), None, "")  # `is the answer`
    if any(map(changes, words)) or any(kind == "word" and len(value) > 30 for kind, value in tokens):
        return None
    spelled = " ".join(value for _, value in tokens)
    if _PART.sub("", spelled).strip("*.(){} -") or (tokens and tokens[0][0] == "sym"):
        return None
    dimensions: dict[str, int] = {}
    factor, unknown = Fraction(1), False
    for per, prefix, name, suffix, sign, digits in _PART.findall(spelled):
        power = UNIT_SUFFIXES.get(suffix.lower()) or int(sign.strip() + (digits or "1"))
        power *= UNIT_PREFIXES.get(prefix.strip().lower(), 1) * (-1 if per else 1)
        known = UNITS.get(name) or (UNITS.get(name.lower()) if len(name) > 2 else None)
        if abs(power) > MAX_POWER:
            return None
        if known is None:
            unknown = unknown or name.lower() not in DIMENSIONLESS_WORDS
            continue
        for dimension, exponent in known[0].items():
            dimensions[dimension] = dimensions.get(dimension, 0) + exponent * power
        factor *= Fraction(known[1]) ** power
    label = " ".join(words).lower()
    if unknown or not dimensions:
        return Unit((), None, label)
    return Unit(tuple(sorted((name, power) for name, power in dimensions.items() if power)), factor, label)


def same_label(gold: Unit, answer: Unit) -> bool:
    """Whether two units may be the same if one is unknown: `boys` and `boys and girls`, not `cm` and `smoots`."""
    if (gold.factor is None) != (answer.factor is None):
        return not (gold.label and answer.label) or {gold.label, answer.label} & DIMENSIONLESS_WORDS != set()
    words = [{word.removesuffix("s") for word in unit.label.split()} for unit in (gold, answer)]
    return not all(words) or words[0] <= words[1] or words[1] <= words[0]
