"""Lists, relations, brackets, texts: what whole answers are made of."""

from __future__ import annotations

from typing import Any

from .lexer import ReadError
from .names import read_name
from .notation import BRACKET_PAIRS, PUNCTUATION, RELATIONS
from .sides import Sides, only_condition, unpeel
from .values import Group, NumberSet, Relation, Scalar, Text, Value
from .words import CONNECTIVES, phrase


class Structure(Sides):
    """Reads a whole answer."""

    def whole(self) -> Value:
        """All tokens as one value."""
        items = self.items(())
        if self.position < len(self.tokens):
            raise ReadError(f"unexpected {self.peek()[1]!r}")
        return items[0] if len(items) == 1 else Group("", tuple(items))

    def items(self, closers: tuple[str, ...]) -> list[Value]:
        """Values separated by commas, semicolons, `and`, `or`, up to a closer or the end."""
        items: list[Value] = []
        while True:
            value = self.item(closers)
            if value is not None:
                items.append(value)
            if not self._separator():
                break
        if not items:
            raise ReadError("empty")
        return items

    def _separator(self) -> bool:
        """Take `,`, `;`, `and`, `or` or `, and`."""
        found = self.accept(",", ";", "row") is not None
        kind, value = self.peek()
        if kind == "word" and value.lower() in CONNECTIVES:
            self.position += 1
            return True
        return found

    def _at_end_of_item(self, closers: tuple[str, ...]) -> bool:
        kind, value = self.peek()
        if kind == "op":
            return value in closers or value in (",", ";", "row")
        if kind == "cmd":
            return value in ("end", "rangle")
        return kind == "end" or (kind == "word" and value.lower() in CONNECTIVES)

    def item(self, closers: tuple[str, ...]) -> Value | None:
        r"""One relation, value or text. None for a condition on a parameter (`k \in \mathbb{Z}`, `for all n`)."""
        start, depth, bars = self.position, self.depth, self.bars
        self.deeper()
        try:
            value = self.relation()
            if self._at_end_of_item(closers):
                self.depth = depth
                return None if is_condition(value) else value
        except ReadError:
            pass
        self.position, self.depth, self.bars = start, depth, bars
        return self._text(closers)

    def _text(self, closers: tuple[str, ...]) -> Value | None:
        """Everything up to the end of the item, as words."""
        start = self.position
        while not self._at_end_of_item(closers):
            self.position += 1
        taken = self.tokens[start : self.position]
        if not any(kind == "word" for kind, _ in taken):
            raise ReadError("not readable")
        if only_condition(taken):
            return None
        if all(kind == "word" or value in PUNCTUATION for kind, value in taken):
            words = " ".join(value for _, value in taken)
            return Text(phrase(words) or words)
        return Text(" ".join(value.lower() if kind == "word" else value for kind, value in taken))

    def relation(self) -> Value:
        """Sides with relations between them, or one side alone."""
        sides, operators, names = [], [], []
        while True:
            start = self.position
            sides.append(self.side())
            names.append(read_name(self.tokens[start : self.position], sides[-1]))
            operator = self.accept(*RELATIONS)
            if operator is None:
                break
            operators.append(operator)
        sides[-1] = self._residue(sides[-1])
        return Relation(tuple(sides), tuple(operators), tuple(names)) if operators else sides[0]

    def _residue(self, value: Value) -> Value:
        r"""`3 \pmod 7`, `3 (mod 7)`: a residue with its modulus."""
        start = self.position
        bracket = self.accept("(") is not None
        if self.peek()[0] != "cmd" or self.peek()[1] not in ("pmod", "bmod", "mod"):
            self.position = start
            return value
        self.position += 1
        modulus = Scalar(self.node(self.product()))
        if bracket:
            self.expect(")")
        return Group("mod", (value, modulus))

    def bracket(self, opener: str) -> Any:
        """A grouping, a tuple, an interval or a set."""
        self.deeper()
        closers = BRACKET_PAIRS[opener]
        bars, self.bars = self.bars, 0
        builder = opener == "\\{" and self._skip_set_variable()
        items = [] if opener == "\\{" and self.peek() == ("op", "\\}") else self.items(closers)
        self.bars = bars
        closer = self.accept(*closers)
        if closer is None:
            raise ReadError(f"{opener} is not closed")
        self.depth -= 1
        if builder:
            return items[0] if len(items) == 1 else Group("", tuple(items))
        if opener == "\\{":
            return Group("{}", tuple(items)) if items else NumberSet("0")
        if len(items) > 1:
            return Group("{}" if opener == "{" else opener + closer, tuple(items))
        return self._grouped(items[0], opener, closer)

    @staticmethod
    def _grouped(value: Value, opener: str, closer: str) -> Any:
        """What a bracket around one value means: the value."""
        if isinstance(value, Scalar) and BRACKET_PAIRS[opener][0] == closer:
            return unpeel(value)
        if isinstance(value, (Relation, Text)) and opener != "{":
            raise ReadError("a relation in brackets")
        return value

    def _skip_set_variable(self) -> bool:
        r"""Step over `x |` or `x \in \mathbb{R} :` at the head of a set given by a condition."""
        if self.peek()[0] != "sym":
            return False
        offset = 1
        if self.peek(1) == ("op", "in"):
            offset = 6 if self.peek(3) == ("op", "{") else 4
        if self.peek(offset) not in (("op", "|"), ("op", ":")):
            return False
        self.position += offset + 1
        return True


def is_condition(value: Value) -> bool:
    r"""True for `k \in \mathbb{Z}`: it says what a parameter is, not what the answer is."""
    return (
        isinstance(value, Relation)
        and value.operators == ("in",)
        and isinstance(value.sides[1], NumberSet)
        and value.sides[1].letter[0] in "ZN"
    )
