"""A cursor over tokens: look, take, insist."""

from __future__ import annotations

from .lexer import ReadError, Token
from .notation import SYMBOLS

MAX_DEPTH = 150  # of nested brackets and signs; one bracket takes three


class Cursor:
    """A position in a list of tokens, and how deep the reader is."""

    def __init__(self, tokens: list[Token], tight_division: bool) -> None:
        self.tokens = tokens
        self.position = 0
        self.depth = 0
        self.tight = tight_division

    def peek(self, offset: int = 0) -> Token:
        index = self.position + offset
        return self.tokens[index] if index < len(self.tokens) else ("end", "")

    def take(self) -> Token:
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
        if self.accept(value) is None:
            raise ReadError(f"expected {value}, found {self.peek()[1]!r}")

    def deeper(self) -> None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise ReadError("nested too deeply")

    def skip_argument(self) -> None:
        """Step over one TeX argument: a brace group or one token."""
        depth = 0
        while True:
            kind, value = self.take()
            if kind == "end":
                raise ReadError("unbalanced braces")
            depth += (value == "{" and kind == "op") - (value == "}" and kind == "op")
            if depth == 0 and kind != "cmd":
                return
            if depth == 0 and value in SYMBOLS:
                return
