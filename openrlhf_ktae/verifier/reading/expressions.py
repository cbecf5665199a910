"""Build and take apart expressions while reading."""

from fractions import Fraction
from typing import Any

from .lexer import ReadError, Token
from .units import DEGREE, PERCENT
from .values import Matrix, Node, NumberSet, Relation, Scalar, Value
from .words import CONDITION_STARTS, CONDITION_WORDS

MAX_DIGITS = 4000  # of one literal; Python converts no more than 4,300 digits by default
MAX_EXPONENT = 5000  # of e-notation


def operand(value: Any) -> Node:
    """The value as an operand of arithmetic; raises ReadError for a structure."""
    if not isinstance(value, tuple):
        raise ReadError("arithmetic with a structure")
    return value


def number(text: str) -> Node:
    """The exact number node of a literal such as `0.5`, `.5`, `42.` or `1.5e-7`."""
    mantissa, _, exponent = text.lower().partition("e")
    if len(mantissa) > MAX_DIGITS:
        raise ReadError("number too long")
    whole, _, decimals = mantissa.partition(".")
    value = Fraction(int(whole + decimals or "0"), 10 ** len(decimals))
    if exponent:
        if len(exponent) > 8 or abs(int(exponent)) > MAX_EXPONENT:
            raise ReadError("exponent too large")
        value *= Fraction(10) ** int(exponent)
    return ("num", value, text.lower())


def divided(above: Node, below: Node) -> Node:
    r"""A quotient. Derivatives such as `\frac{dy}{dt}` and `d^2y/dt^2`, also partial ones, are one symbol: `y''/t`."""
    top, bottom = factors(above), factors(below)
    marks = [part[:2] for part in (top[0], bottom[0])]
    order = 1
    if top[0][0] == "pow" and top[0][2][0] == "num" and top[0][2][1] in (2, 3, 4):
        marks[0], order = top[0][1][:2], int(top[0][2][1])
    if (
        len(top) != 2
        or marks[0] not in (("sym", "d"), ("sym", "partial"))
        or {p[:2] for p in bottom[::2]} != {marks[0]}
    ):
        return ("div", above, below)
    variables: list[str] = []
    for part in bottom[1::2]:
        times = 1
        if part[0] == "pow" and part[2][0] == "num":
            part, times = part[1], int(part[2][1])
        variables += [part[1] if part[0] == "sym" else ""] * min(times, 9)
    name = top[1][1] if top[1][0] in ("sym", "app") else ""
    if not name or len(variables) != order or "" in variables or len(bottom) % 2:
        return ("div", above, below)
    partial = "∂" if marks[0][1] == "partial" else ""
    return ("sym", f"{name}{chr(39) * order}/{partial}{','.join(dict.fromkeys(variables))}")


def factors(node: Node) -> list[Node]:
    """The factors of a product, from the left."""
    return [*factors(node[1]), *factors(node[2])] if node[0] == "mul" else [node]


def mixed_number(whole: Node, fraction: Node) -> Node:
    """`-1 1/2` is -(1 + 1/2)."""
    return ("add", whole, ("neg", fraction) if whole[0] == "neg" else fraction)


def scaled(factor: Node, matrix: Any) -> Matrix:
    """A number times a matrix."""
    if not isinstance(matrix, Matrix) or not all(isinstance(entry, Scalar) for row in matrix.rows for entry in row):
        raise ReadError("factor of a matrix")
    return Matrix(tuple(tuple(Scalar(("mul", factor, e.node), e.unit) for e in row) for row in matrix.rows))


def is_whole(node: Node) -> bool:
    """True for a whole number literal, also under a minus."""
    return is_whole(node[1]) if node[0] == "neg" else node[0] == "num" and node[2].isdigit()


def is_proper(node: Node) -> bool:
    """True for a fraction of two whole number literals below one."""
    return (
        node[0] == "div"
        and all(part[0] == "num" and part[2].isdigit() for part in node[1:])
        and 0 < node[1][1] < node[2][1]
    )


def peel(node: Node) -> tuple[str, Node]:
    """Split off `deg` or `pct` at the top, below a minus or in the last factor."""
    if node[0] in ("deg", "pct"):
        return node[0], node[1]
    if node[0] == "neg":
        kind, inner = peel(node[1])
        return kind, ("neg", inner) if kind else node
    if node[0] == "mul" and node[2][0] in ("deg", "pct"):
        return node[2][0], ("mul", node[1], node[2][1])
    return "", node


def unpeel(scalar: Scalar) -> Node:
    """A bracketed scalar as a node; raises ReadError for a unit other than degrees and percent."""
    if scalar.unit is None:
        return scalar.node
    if scalar.unit == DEGREE:
        return ("deg", scalar.node)
    if scalar.unit == PERCENT:
        return ("pct", scalar.node)
    raise ReadError("unit in brackets")


def only_condition(tokens: list[Token]) -> bool:
    """True for words about a parameter only, not about the value: `for all integers k`."""
    words = [value.lower() for kind, value in tokens if kind == "word"]
    return bool(words) and words[0] in CONDITION_STARTS and all(word in CONDITION_WORDS for word in words)


def condition_on(value: Value) -> Value | None:
    r"""The k of `k \in \mathbb{Z}`, a condition on a parameter and not an answer; None for other values."""
    if not isinstance(value, Relation) or value.operators != ("in",) or not isinstance(value.sides[1], NumberSet):
        return None
    return value.sides[0] if value.sides[1].letter[0] in "ZN" else None
