"""Is one side of a relation a mere name?"""

from __future__ import annotations

from .lexer import Token
from .notation import ACCENTS, SYMBOLS
from .values import Name

MAX_TOKENS = 40
_OPERATORS = frozenset({"_", "{", "}", "(", ")", "'", "|", ",", "*", "\\{", "\\}"})


def read_name(tokens: list[Token]) -> Name | None:
    """The name that a side is, or None if it is an expression: `x`, `S_{ABC}`, `f(x)`, `|AB|`, `(x, y)`, `Area`."""
    if not tokens or len(tokens) > 40:
        return None
    depth, base, arguments, subscript = 0, "", [], False
    brackets = 0
    for index, (kind, value) in enumerate(tokens):
        if kind == "op" and value not in _OPERATORS:
            return None
        if kind == "op":
            if value == "_":
                subscript = True
                continue
            depth += value == "{"
            depth -= value == "}"
            brackets += (value == "(") - (value == ")")
            if subscript and depth == 0 and value != "{":
                subscript = False
            continue
        in_subscript = subscript
        if subscript and depth == 0:
            subscript = False
        if kind == "num":
            if not in_subscript and not (brackets and base):
                return None
            if brackets and not in_subscript:
                arguments.append(value)
        elif kind == "cmd" and value not in SYMBOLS | ACCENTS | {"bold", "frac"}:
            return None
        elif brackets and base and not in_subscript:
            arguments.append(value)
        elif not in_subscript:
            base += ("" if kind == "sym" or not base else " ") + value
        del index
    plain = [value for kind, value in tokens if kind == "sym"]
    if not base or _is_product(tokens, plain):
        return None
    return Name(base, tuple(arguments), " ".join(value for _, value in tokens))


def _is_product(tokens: list[Token], letters: list[str]) -> bool:
    """`xy` is a product, `AB` a segment."""
    bare = all(kind == "sym" for kind, _ in tokens)
    if ("cmd", "frac") in tokens:
        return not any(kind == "sym" and value == "d" for kind, value in tokens)
    return bare and len(tokens) > 1 and not all(letter.isupper() for letter in letters)
