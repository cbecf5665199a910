"""Unit phrases: `cm^2`, `m/s^2`, `square inches`, `kcal m^{-2} yr^{-1}`, `students`."""

from __future__ import annotations

from fractions import Fraction

from .lexer import Token
from .values import Unit
from .words import CHANGING, CONDITION_STARTS, FILLERS, UNIT_PREFIXES, UNIT_SUFFIXES, UNITS

DEGREE = Unit((("angle", 1),), Fraction(1), "degree")
RADIAN_FACTOR = Fraction(UNITS["rad"][1])
PERCENT = Unit((("percent", 1),), Fraction(1), "percent")
DIMENSIONLESS_WORDS = frozenset({"unit", "units"})
MAX_POWER = 12


def read_unit(tokens: list[Token]) -> Unit | None:
    """The unit that these tokens spell, or None if they say something else (`or more`, `times as many`)."""
    words = [value for kind, value in tokens if kind == "word"]
    if words and all(value.lower() in FILLERS and value not in UNITS for _, value in tokens):
        return Unit((), None, "")  # `is the answer`
    if any((word.lower() if len(word) > 1 else word) in CHANGING or word.lower() in CONDITION_STARTS for word in words):
        return None
    if any(kind == "word" and len(value) > 30 for kind, value in tokens):
        return None
    reader = _UnitReader(tokens)
    if not reader.run():
        return None
    label = " ".join(words).lower()
    if reader.unknown or not reader.dimensions:
        return Unit((), None, label)
    dimensions = tuple(sorted((name, power) for name, power in reader.dimensions.items() if power))
    return Unit(dimensions, reader.factor, label)


def same_label(gold: Unit, answer: Unit) -> bool:
    """Whether units of which one is unknown may be the same: `boys` and `boys and girls`, not `cm` and `smoots`."""
    if (gold.factor is None) != (answer.factor is None):
        return not (gold.label and answer.label) or {gold.label, answer.label} & DIMENSIONLESS_WORDS != set()
    words = [{word.removesuffix("s") for word in unit.label.split()} for unit in (gold, answer)]
    return not all(words) or words[0] <= words[1] or words[1] <= words[0]


class _UnitReader:
    """Walks over the tokens once, multiplying units together."""

    def __init__(self, tokens: list[Token]) -> None:
        self.tokens = tokens
        self.position = 0
        self.dimensions: dict[str, int] = {}
        self.factor = Fraction(1)
        self.unknown = False

    def run(self) -> bool:
        sign, prefix = 1, 1
        while self.position < len(self.tokens):
            kind, value = self.tokens[self.position]
            self.position += 1
            if kind == "word" and value.lower() in UNIT_PREFIXES:
                prefix = UNIT_PREFIXES[value.lower()]
            elif (kind == "word" and value.lower() == "per") or (kind, value) == ("op", "/"):
                sign = -1
            elif kind == "word" or (kind == "sym" and self.position > 1):
                power = self._power()
                if power is None:
                    return False
                self._multiply(value, sign * prefix * power)
                sign, prefix = 1, 1
            elif (kind, value) not in (
                ("op", "*"),
                ("op", "."),
                ("op", "-"),
                ("op", "("),
                ("op", ")"),
                ("op", "{"),
                ("op", "}"),
            ):
                return False
        return True

    def _power(self) -> int | None:
        """The exponent behind a unit: `^2`, `^{-1}`, `squared`; 1 without one, None if it is no small integer."""
        rest = self.tokens[self.position :]
        if rest and rest[0][0] == "word" and rest[0][1].lower() in UNIT_SUFFIXES:
            self.position += 1
            return UNIT_SUFFIXES[rest[0][1].lower()]
        if not rest or rest[0] != ("op", "^"):
            return 1
        signs = {("op", "{"): "", ("op", "-"): "-"}
        text, used = "", 1
        while used < len(rest) and rest[used] in signs:
            text += signs[rest[used]]
            used += 1
        if used >= len(rest) or rest[used][0] != "num" or not rest[used][1].isdigit():
            return None
        text += rest[used][1]
        used += 1
        if used < len(rest) and rest[used] == ("op", "}"):
            used += 1
        self.position += used
        return int(text) if abs(int(text)) <= MAX_POWER else None

    def _multiply(self, name: str, power: int) -> None:
        known = UNITS.get(name) or (UNITS.get(name.lower()) if len(name) > 2 else None)
        if known is None:
            self.unknown = self.unknown or name.lower() not in DIMENSIONLESS_WORDS
            return
        dimensions, factor = known
        for dimension, exponent in dimensions.items():
            self.dimensions[dimension] = self.dimensions.get(dimension, 0) + exponent * power
        self.factor *= Fraction(factor) ** power
