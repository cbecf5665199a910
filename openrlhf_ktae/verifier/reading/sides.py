"""One side of a relation: fillers, a currency, an expression or words, a unit, a condition."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from .commands import Commands
from .lexer import ReadError, Token
from .notation import CURRENCIES, RELATIONS, TEMPERATURES
from .units import DEGREE, PERCENT, read_unit
from .values import Node, Scalar, SetOperation, Text, Unit, Value
from .words import (
    CONDITION_STARTS,
    CONDITION_WORDS,
    CONNECTIVES,
    FILLERS,
    MULTIPLIERS,
    NUMBER_WORDS,
    OPPOSITES,
    phrase,
    spoken_number,
)


class Sides(Commands):
    """Reads a side and its unit."""

    def side(self) -> Value:
        """`[fillers] value [unit] [condition]`."""
        while self.at_word() and self._is_filler() and not self._ends_side(1):
            self.position += 1
            self.accept(":")
        self.accept("~=")
        unit = self._currency()
        if self.at_word():
            return self._words()
        value = self._multiplied(self.set_expression())
        in_degrees = isinstance(value, tuple) and peel(value)[0] == "deg" and self.peek()[1] in TEMPERATURES
        if self.at_word() and not in_degrees:
            unit = self._rate(unit) if unit is not None else self._unit()
        if isinstance(value, tuple):
            return self._finished(value, unit)
        if unit is not None and unit.factor is not None:
            raise ReadError("unit behind a structure")
        return value

    def _multiplied(self, value: Any) -> Any:
        """`3 million` as a product."""
        kind, word = self.peek()
        if kind == "word" and word.lower() in MULTIPLIERS and isinstance(value, tuple):
            self.position += 1
            return ("mul", value, ("num", Fraction(MULTIPLIERS[word.lower()]), ""))
        return value

    def _rate(self, currency: Unit) -> Unit:
        """A currency with what follows the amount: `$45 per hour`; the currency again, or a unit that says nothing."""
        following = self._unit()
        if following is None or following.dimensions in ((), currency.dimensions):
            return currency
        return Unit((), None, f"{currency.label} {following.label}")

    def _is_filler(self) -> bool:
        """A word that says nothing of the value; the largest circle is not a circle."""
        word, offset = self.peek()[1].lower(), 1
        while self.peek(offset)[0] == "word":
            offset += 1
        return word in FILLERS and (word not in OPPOSITES or self.peek(offset) not in (("end", ""), ("op", ",")))

    def at_word(self) -> bool:
        """True before a word that is no connective."""
        kind, value = self.peek()
        return kind == "word" and value.lower() not in CONNECTIVES

    def _ends_side(self, offset: int) -> bool:
        kind, value = self.peek(offset)
        return kind == "end" or (kind == "op" and value in RELATIONS)

    def _words(self) -> Value:
        """A side made of words alone: a name such as `Area`, a number word, a text."""
        start = self.position
        while self.at_word():
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

    def _currency(self) -> Unit | None:
        """A currency before its amount."""
        kind, value = self.peek()
        follows = self.peek(1)
        if kind == "word" and value in CURRENCIES and follows == ("op", "."):
            follows = self.peek(2)
            self.position += follows[0] == "num"
        if kind == "word" and value in CURRENCIES and (follows[0] == "num" or follows == ("cmd", "frac")):
            self.position += 1
            return read_unit([(kind, value)])
        return None

    def _unit(self) -> Unit | None:
        """The unit or condition that ends a value. Raises ReadError if the words mean something else."""
        start = self.position
        while self._in_unit(start):
            self.position += 1
        taken = self.tokens[start : self.position]
        if only_condition(taken):
            return None
        unit = read_unit(taken)
        if unit is None:
            raise ReadError("words behind a value")
        return unit

    def _in_unit(self, start: int) -> bool:
        """True if the next token belongs to the unit or condition that began at `start`."""
        kind, value = self.peek()
        if kind in ("end", "word"):
            return self.at_word()
        before = self.tokens[self.position - 1][1]
        inside = [token[1] for token in self.tokens[start : self.position]]
        if kind == "op" and value in ("}", ")"):
            return inside.count({"}": "{", ")": "("}[value]) > inside.count(value)
        if self.tokens[start][1].lower() in CONDITION_STARTS:
            return value not in (",", ";", "]", "\\}", "&", "row")
        if kind in ("num", "sym"):
            return before in ("^", "-", "{", "/", "*")
        if value in ("^", "/", "*", "-", "."):
            return self.peek(1)[0] in ("word", "num", "sym") or self.peek(1) in (("op", "{"), ("op", "-"))
        return value in ("{", "(") and before in ("^", "/")

    def _finished(self, node: Node, unit: Unit | None) -> Scalar:
        """Take degrees and percent off the top of an expression as its unit."""
        kind, inner = peel(node)
        if kind == "deg":
            scale = TEMPERATURES.get(self.peek()[1])
            if scale is not None:
                self.position += 1
                return Scalar(inner, read_unit([("word", scale)]))
            return Scalar(inner, unit if unit is not None and unit.factor is not None else DEGREE)
        return Scalar(inner, PERCENT) if kind == "pct" else Scalar(node, unit)

    def set_expression(self) -> Any:
        r"""Sets with `\cup`, `\cap`, `\setminus` between them, or one expression."""
        value = self.sum()
        while True:
            kind, name = self.peek()
            if (kind, name) == ("op", "-") and not isinstance(value, tuple):
                name = "setminus"
            elif kind != "cmd" or name not in ("cup", "cap", "setminus"):
                return value
            self.position += 1
            value = SetOperation(name, _boxed(value), _boxed(self.sum()))


def _boxed(value: Any) -> Value:
    return Scalar(value) if isinstance(value, tuple) else value


def peel(node: Node) -> tuple[str, Node]:
    """Take `deg` or `pct` off the top, also from under a minus or the last factor."""
    if node[0] in ("deg", "pct"):
        return node[0], node[1]
    if node[0] == "neg":
        kind, inner = peel(node[1])
        return kind, ("neg", inner) if kind else node
    if node[0] == "mul" and node[2][0] in ("deg", "pct"):
        return node[2][0], ("mul", node[1], node[2][1])
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
    """True for `for all integers k`: words about a parameter, with nothing about the value."""
    words = [value.lower() for kind, value in tokens if kind == "word"]
    return bool(words) and words[0] in CONDITION_STARTS and all(word in CONDITION_WORDS for word in words)
