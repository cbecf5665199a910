"""Lists, relations, brackets, texts: what whole answers are made of."""

from __future__ import annotations

from typing import Any

from .lexer import ReadError
from .names import read_name
from .notation import BRACKET_PAIRS, PUNCTUATION, RELATIONS
from .sides import Sides, only_condition, unpeel
from .values import Group, NumberSet, Relation, Scalar, Text, Value
from .words import CONDITION_STARTS, phrase


class Structure(Sides):
    """Reads a whole answer."""

    def whole(self) -> Value:
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
            if not self.separator():
                break
        if not items:
            raise ReadError("empty")
        return items

    def separator(self) -> bool:
        """Take `,`, `;`, `and`, `or` or `, and`."""
        found = self.accept(",", ";", "row") is not None
        kind, value = self.peek()
        if kind == "word" and value.lower() in ("and", "or"):
            self.position += 1
            found = True
        return found

    def at_end_of_item(self, closers: tuple[str, ...]) -> bool:
        kind, value = self.peek()
        if kind == "end" or (kind == "op" and (value in closers or value in (",", ";", "row"))):
            return True
        if kind == "cmd":
            return value in ("end", "rangle")
        return self.is_connective()

    def item(self, closers: tuple[str, ...]) -> Value | None:
        """One relation or value. None for a condition on a parameter (`k \\in \\mathbb{Z}`, `for all n`)."""
        start = self.position
        self.deeper()
        try:
            value = self.relation(closers)
            if self.at_end_of_item(closers):
                return None if is_condition(value) else value
        except ReadError:
            pass
        finally:
            self.depth -= 1
        self.position = start
        return self.text(closers)

    def text(self, closers: tuple[str, ...]) -> Value | None:
        """Everything up to the end of the item, as words."""
        words: list[str] = []
        start = self.position
        while not self.at_end_of_item(closers):
            words.append(self.take()[1])
        taken = self.tokens[start : self.position]
        if not words:
            raise ReadError("empty")
        if taken[0][0] == "word" and taken[0][1].lower() in CONDITION_STARTS and only_condition(taken):
            return None
        if not any(kind == "word" for kind, _ in taken):
            raise ReadError("not readable")
        if all(kind == "word" or value in PUNCTUATION for kind, value in taken):
            return Text(phrase(" ".join(words)) or " ".join(words))
        return Text(" ".join(value.lower() if kind == "word" else value for kind, value in taken))

    def relation(self, closers: tuple[str, ...]) -> Value:
        sides, operators, names = [], [], []
        while True:
            start = self.position
            sides.append(self.side())
            names.append(read_name(self.tokens[start : self.position]))
            operator = self.accept(*RELATIONS)
            if operator is None:
                break
            operators.append(operator)
        if not operators:
            return sides[0]
        return Relation(tuple(sides), tuple(operators), tuple(names))

    def bracket(self, opener: str) -> Any:
        """A grouping, a tuple, an interval or a set."""
        self.deeper()
        closers = BRACKET_PAIRS[opener]
        saved, self.bars = self.bars, 0
        builder = opener == "\\{" and self.skip_set_variable()
        items = self.items(closers)
        self.bars = saved
        closer = self.accept(*closers)
        if closer is None:
            raise ReadError(f"{opener} is not closed")
        self.depth -= 1
        if builder:
            return items[0] if len(items) == 1 else Group("", tuple(items))
        if opener == "\\{":
            return Group("{}", tuple(items))
        if len(items) > 1:
            return Group("{}" if opener == "{" else opener + closer, tuple(items))
        only = items[0]
        if isinstance(only, Scalar) and BRACKET_PAIRS[opener][0] == closer:
            return unpeel(only)
        if isinstance(only, (Relation, Text)) and opener != "{":
            raise ReadError("a relation in brackets")
        return only

    def skip_set_variable(self) -> bool:
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
