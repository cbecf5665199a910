"""Is one side of a relation a mere name?"""

from __future__ import annotations

from .lexer import Token
from .notation import ACCENTS, SYMBOLS
from .values import Name

MAX_TOKENS = 40
_OPERATORS = frozenset({"_", "{", "}", "(", ")", "'", "|", ",", "*", "[", "]", "\\{", "\\}"})
_COMMANDS = SYMBOLS | ACCENTS | {"bold", "frac"}


def read_name(tokens: list[Token]) -> Name | None:
    """The name that a side is, or None if it is an expression: `x`, `S_{ABC}`, `f(x)`, `|AB|`, `(x, y)`, `Area`."""
    if not tokens or len(tokens) > MAX_TOKENS or _is_product(tokens):
        return None
    base, arguments = "", []
    for kind, value, brackets in _outside_subscripts(tokens):
        if (kind == "op" and value not in _OPERATORS) or (kind == "cmd" and value not in _COMMANDS):
            return None
        if kind == "op":
            continue
        if brackets and base:
            arguments.append(value)
        elif kind == "num":
            return None
        else:
            base += value if kind == "sym" or not base else f" {value}"
    return Name(base, tuple(arguments)) if base else None


def _outside_subscripts(tokens: list[Token]) -> list[tuple[str, str, int]]:
    """The tokens that are in no subscript, each with the number of round brackets around it."""
    found: list[tuple[str, str, int]] = []
    depth = brackets = 0
    in_subscript = False
    for kind, value in tokens:
        if kind == "op":
            depth += (value == "{") - (value == "}")
            brackets += (value == "(") - (value == ")")
        if not in_subscript:
            found.append((kind, value, brackets))
            in_subscript = (kind, value) == ("op", "_")
        elif depth == 0:
            in_subscript = False
    return found


def _is_product(tokens: list[Token]) -> bool:
    """`xy` is a product, `AB` a segment; a fraction is a name only as a derivative."""
    if ("cmd", "frac") in tokens:
        return ("sym", "d") not in tokens
    letters = [value for kind, value in tokens if kind == "sym"]
    return len(tokens) > 1 and len(letters) == len(tokens) and not all(letter.isupper() for letter in letters)
