"""A cursor over tokens: look, take, insist."""

from __future__ import annotations

from .lexer import ReadError, Token
from .notation import SYMBOLS

MAX_DEPTH = 150  # of nested brackets and signs; one bracket takes three


class Cursor:
    """A position in a list of tokens, and how deep the reader is."""

    def __init__(self, tokens: list[Token], tight_division: bool = False) -> None:
        self.tokens = tokens
        self.position = 0
        self.depth = 0
        self.bars = 0  # open absolute value bars in the bracket that is being read
        self.joint = ""  # the word between the values that were read last, where they are inequalities
        self.tight = tight_division

    def peek(self, offset: int = 0) -> Token:
        """The token at an offset from the position, without taking it."""
        index = self.position + offset
        return self.tokens[index] if index < len(self.tokens) else ("end", "")

    def take(self) -> Token:
        """The next token."""
        token = self.peek()
        self.position += 1
        return token

    def accept(self, *values: str) -> str | None:
        """Take the next token if it is one of these operators."""
        kind, value = self.peek()
        if kind == "op" and value in values:
            self.position += 1
            return value
        return None

    def expect(self, value: str) -> None:
        """Take this operator or give up."""
        if self.accept(value) is None:
            raise ReadError(f"expected {value}, found {self.peek()[1]!r}")

    def deeper(self) -> None:
        """Note one more level of nesting; whoever calls it lowers `depth` again."""
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise ReadError("nested too deeply")

    def skip_argument(self) -> str:
        """Step over one TeX argument, a brace group or one token, and return its text without braces."""
        start, depth = self.position, 0
        while True:
            kind, value = self.take()
            if kind == "end":
                raise ReadError("unbalanced braces")
            if kind == "op":
                depth += (value == "{") - (value == "}")
            if depth == 0 and (kind != "cmd" or value in SYMBOLS):
                return "".join(v for _, v in self.tokens[start : self.position] if v not in "{}")
