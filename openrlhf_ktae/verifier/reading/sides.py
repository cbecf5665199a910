"""One side of a relation: fillers, a currency, an expression or words, a unit, a condition."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from .commands import Commands
from .lexer import ReadError, Token
from .notation import RELATIONS, TEMPERATURES
from .units import DEGREE, PERCENT, read_unit
from .values import Node, Scalar, SetOperation, Text, Unit, Value
from .words import CONDITION_STARTS, CONDITION_WORDS, FILLERS, NUMBER_WORDS, phrase, spoken_number


class Sides(Commands):
    """Reads a side and its unit."""

    def side(self) -> Value:
        """`[fillers] value [unit] [condition]`."""
        while self.peek()[0] == "word" and self.peek()[1].lower() in FILLERS and not self.ends_side(1):
            self.position += 1
            self.accept(":")
        if self.peek() == ("op", "~="):
            self.position += 1
        currency = self.currency()
        if self.peek()[0] == "word":
            return self.words_side()
        value = self.set_expression()
        in_degrees = isinstance(value, tuple) and peel(value)[0] == "deg" and self.peek()[1] in TEMPERATURES
        if currency is None and self.peek()[0] == "word" and not self.is_connective() and not in_degrees:
            currency = self.unit()
        if isinstance(value, tuple):
            value = self.finish_scalar(value, currency)
        elif currency is not None and currency.factor is not None:
            raise ReadError("unit behind a structure")
        return value

    def ends_side(self, offset: int) -> bool:
        kind, value = self.peek(offset)
        return kind == "end" or (kind == "op" and value in RELATIONS)

    def words_side(self) -> Value:
        """A side made of words alone: a name such as `Area`, a number word, a text."""
        start = self.position
        while self.peek()[0] == "word" and not self.is_connective():
            self.position += 1
        words = [value for _, value in self.tokens[start : self.position]]
        spoken = phrase(" ".join(words))
        counted = spoken_number(spoken)
        if counted is not None:
            return Scalar(("num", Fraction(counted), ""))
        if len(words) > 1 and words[0].lower() in NUMBER_WORDS:
            unit = read_unit(self.tokens[start + 1 : self.position])
            if unit is not None:
                return Scalar(("num", Fraction(NUMBER_WORDS[words[0].lower()]), ""), unit)
        if not spoken:
            raise ReadError("empty text")
        return Text(spoken)

    def is_connective(self) -> bool:
        kind, value = self.peek()
        return kind == "word" and value.lower() in ("and", "or")

    def currency(self) -> Unit | None:
        kind, value = self.peek()
        if kind == "word" and value in ("dollar", "pounds_sterling", "euro", "yen", "rupee", "Rs"):
            follows = self.peek(1)
            if follows[0] == "num" or follows == ("cmd", "frac"):
                self.position += 1
                return read_unit([(kind, value)])
        return None

    def unit(self) -> Unit | None:
        """The unit phrase or condition that ends a value. Raises ReadError if the words mean something else."""
        start = self.position
        while True:
            kind, value = self.peek()
            if (
                (kind == "word" and not self.is_connective())
                or (kind == "op" and value in ("^", "/", "*", "-", ".") and self._unit_goes_on())
                or (kind in ("num", "sym") and self.tokens[self.position - 1][1] in ("^", "-", "{", "/", "*"))
                or (kind == "op" and value in ("{", "}", "(", ")") and self._unit_bracket(start))
                or (kind in ("sym", "cmd", "op") and self._in_condition(start))
            ):
                self.position += 1
            else:
                break
        taken = self.tokens[start : self.position]
        if only_condition(taken):
            return None
        unit = read_unit(taken)
        if unit is None:
            raise ReadError("words behind a value")
        return unit

    def _unit_goes_on(self) -> bool:
        return self.peek(1)[0] in ("word", "num", "sym") or self.peek(1) in (("op", "{"), ("op", "-"))

    def _unit_bracket(self, start: int) -> bool:
        value = self.peek()[1]
        if value in "{(":
            return self.tokens[self.position - 1][1] in ("^", "/")
        inside = [token[1] for token in self.tokens[start : self.position]]
        return inside.count({"}": "{", ")": "("}[value]) > inside.count(value)

    def _in_condition(self, start: int) -> bool:
        first = self.tokens[start]
        return first[1].lower() in CONDITION_STARTS and self.peek()[1] not in (")", "]", "}", "\\}")

    def finish_scalar(self, node: Node, unit: Unit | None) -> Scalar:
        """Take degrees and percent off the top of an expression as its unit."""
        kind, inner = peel(node)
        if kind == "deg":
            following = self.peek()
            if following[0] in ("sym", "word") and following[1] in TEMPERATURES:
                self.position += 1
                return Scalar(inner, read_unit([("word", TEMPERATURES[following[1]])]))
            return Scalar(inner, unit if unit is not None and unit.factor is not None else DEGREE)
        if kind == "pct":
            return Scalar(inner, PERCENT)
        return Scalar(node, unit)

    def set_expression(self) -> Any:
        value = self.sum()
        while True:
            kind, name = self.peek()
            if kind == "cmd" and name in ("cup", "cap", "setminus"):
                self.position += 1
            elif (kind, name) == ("op", "-") and not isinstance(value, tuple):
                self.position += 1
                name = "setminus"
            else:
                return value
            left = Scalar(value) if isinstance(value, tuple) else value
            right = self.sum()
            value = SetOperation(name, left, Scalar(right) if isinstance(right, tuple) else right)


def peel(node: Node) -> tuple[str, Node]:
    """Take `deg` or `pct` off the top, also from under a minus."""
    if node[0] in ("deg", "pct"):
        return node[0], node[1]
    if node[0] == "neg" and node[1][0] in ("deg", "pct"):
        return node[1][0], ("neg", node[1][1])
    return "", node


def unpeel(scalar: Scalar) -> Node:
    """A bracketed scalar as a node; its unit must be one that arithmetic knows."""
    if scalar.unit is None:
        return scalar.node
    if scalar.unit == DEGREE:
        return ("deg", scalar.node)
    if scalar.unit == PERCENT:
        return ("pct", scalar.node)
    raise ReadError("unit in brackets")


def only_condition(tokens: list[Token]) -> bool:
    words = [value.lower() for kind, value in tokens if kind == "word"]
    return bool(words) and words[0] in CONDITION_STARTS and all(word in CONDITION_WORDS for word in words)
