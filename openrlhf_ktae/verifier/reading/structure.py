"""Lists, relations, brackets, texts: what whole answers are made of."""

from __future__ import annotations

from typing import Any

from .arithmetic import divided
from .lexer import ReadError
from .names import read_name
from .notation import BRACKET_PAIRS, PUNCTUATION, RELATIONS
from .sides import Sides, only_condition, unpeel
from .values import Group, Name, NumberSet, Relation, Scalar, Text, Value
from .words import CONNECTIVES, OPPOSITES, phrase

INEQUALITIES = frozenset({"<", ">", "<=", ">=", "!="})


class Structure(Sides):
    """Reads a whole answer."""

    def whole(self) -> Value:
        """All tokens as one value."""
        items = self._quotient(self.items(()), ())
        if self.position < len(self.tokens):
            raise ReadError(f"unexpected {self.peek()[1]!r}")
        return items[0] if len(items) == 1 else Group(self.joint, tuple(items))

    def items(self, closers: tuple[str, ...]) -> list[Value]:
        """Values separated by commas, semicolons, `and`, `or`, up to a closer or the end; `joint` says by which."""
        items: list[Value] = []
        joints = set()
        while True:
            value = self.item(closers)
            if value is not None:
                items.append(value)
            before = self.position
            if not self._separator():
                break
            joints |= {word.lower() for kind, word in self.tokens[before : self.position] if kind == "word"}
        bounds = [item for item in items if isinstance(item, Relation) and INEQUALITIES & set(item.operators)]
        unknowns = {side for item in bounds for side in item.sides}
        stated = [item for item in items if (at := condition_on(item)) is None or at in unknowns] or items
        if not stated:
            raise ReadError("empty")
        self.joint = "" if stated != bounds or not joints else "or" if "or" in joints else "and"
        return stated

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
            return value in ("end", "rangle", "over", "choose")
        return kind == "end" or (kind == "word" and value.lower() in CONNECTIVES)

    def item(self, closers: tuple[str, ...]) -> Value | None:
        r"""One relation, value or text. None for a condition on a parameter (`k \in \mathbb{Z}`, `for all n`)."""
        start, depth, bars = self.position, self.depth, self.bars
        self.deeper()
        try:
            value = self.relation()
            if self._at_end_of_item(closers):
                self.depth = depth
                return value
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
        sides: list[Value] = []
        operators: list[str] = []
        names: list[Name | None] = []
        kind, label = self.peek()
        if kind == "word" and label.lower() in OPPOSITES and self.peek(1) == ("op", ":"):
            self.position += 2
            sides, operators, names = [Text(label.lower())], ["="], [Name(label.lower(), words=True)]
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
        builder, domain = self._set_variable() if opener == "\\{" else (False, None)
        items = [] if opener == "\\{" and self.peek() == ("op", "\\}") else self.items(closers)
        joint = self.joint
        self.bars = bars
        items = self._quotient(items, closers) if opener == "{" else items
        closer = self.accept(*closers)
        if closer is None:
            raise ReadError(f"{opener} is not closed")
        self.depth -= 1
        if builder:
            items += [domain] if domain is not None else []
            return items[0] if len(items) == 1 else Group(joint if domain is None else "and", tuple(items))
        if opener == "\\{":
            return Group("{}", tuple(items)) if items else NumberSet("0")
        if len(items) > 1:
            return Group("{}" if opener == "{" else opener + closer, tuple(items))
        return self._grouped(items[0], opener, closer)

    def _quotient(self, items: list[Value], closers: tuple[str, ...]) -> list[Value]:
        r"""`a \over b` and `a \choose b`, whose halves are all that their braces hold."""
        if len(items) != 1 or self.peek() not in (("cmd", "over"), ("cmd", "choose")):
            return items
        above, name = items[0], self.take()[1]
        below = self.items(closers)[0]
        if not isinstance(above, Scalar) or not isinstance(below, Scalar):
            raise ReadError(f"\\{name}")
        quotient = divided(above.node, below.node)
        return [Scalar(quotient if name == "over" else ("fn", "binom", above.node, below.node))]

    @staticmethod
    def _grouped(value: Value, opener: str, closer: str) -> Any:
        """What a bracket around one value means: the value."""
        if BRACKET_PAIRS[opener][0] != closer:
            raise ReadError("half an interval")
        if isinstance(value, Scalar):
            return unpeel(value)
        if isinstance(value, (Relation, Text)) and opener != "{":
            raise ReadError("a relation in brackets")
        return value

    def _set_variable(self) -> tuple[bool, Relation | None]:
        r"""Step over `x |` or `x \in \mathbb{Z} :` at the head of a set given by a condition; a domain of integers."""
        start = self.position
        kind, letter = self.take()
        domain = None
        if kind == "sym" and self.accept("in"):
            try:
                numbers = self.atom()
            except ReadError:
                numbers = None
            if isinstance(numbers, NumberSet) and numbers.letter[0] != "R":
                domain = Relation((Scalar(("sym", letter)), numbers), ("in",), (Name(letter), None))
        if kind == "sym" and self.accept("|", ":"):
            return True, domain
        self.position = start
        return False, None


def condition_on(value: Value) -> Value | None:
    r"""The k of `k \in \mathbb{Z}`: it says what a parameter is, not what the answer is. None for other values."""
    if not isinstance(value, Relation) or value.operators != ("in",) or not isinstance(value.sides[1], NumberSet):
        return None
    return value.sides[0] if value.sides[1].letter[0] in "ZN" else None
