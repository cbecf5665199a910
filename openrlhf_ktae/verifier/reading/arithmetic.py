"""Sums, products, powers: the operators and what they bind.

A method returns a Node, or a Value where a bracket held a structure instead of a number.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from .cursor import Cursor
from .lexer import ReadError
from .nodes import walk
from .notation import CLOSING_COMMANDS, RELATIONS, SYMBOLS, TEMPERATURES
from .values import Group, Matrix, Name, Node, Relation, Scalar, Value

MAX_DIGITS = 4000  # of one literal; Python converts no more than 4,300 digits by default
MAX_EXPONENT = 5000  # of e-notation
MAX_TERMS = 400  # of one sum or product: the tree is as deep as they are many
OPENING = frozenset({"(", "[", "{", "\\{"})
MAX_ARGUMENT_TOKENS = 40  # of the bracket behind a letter
APPLIED = frozenset({"f", "F", "zeta", "Gamma"})  # letters that are never a factor before a bracket
PROBABILITIES = frozenset({"P", "Pr", "E"})
EVENT_MARKS = RELATIONS | {"|", "cap", "cup"}
ZERO: Node = ("num", Fraction(0), "")
MINUS_ONE: Node = ("neg", ("num", Fraction(1), "1"))


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


class Arithmetic(Cursor):
    """Reads expressions. Commands and brackets are read by the subclasses."""

    def command(self, name: str) -> Any:
        """Read a LaTeX command whose name has been taken."""
        raise NotImplementedError

    def bracket(self, opener: str) -> Any:
        """Read what a bracket holds that has been opened."""
        raise NotImplementedError

    def matrix(self) -> Matrix:
        """Read a matrix whose `begin` is next."""
        value = self.power()
        if not isinstance(value, Matrix):
            raise ReadError("no matrix")
        return value

    @staticmethod
    def node(value: Any) -> Node:
        """The value as an operand; structures are none."""
        if not isinstance(value, tuple):
            raise ReadError("arithmetic with a structure")
        return value

    def sum(self) -> Any:
        """Terms with `+`, `-`, `\\pm`, `\\mp` between them."""
        self.deeper()
        sign = self._plus_minus()
        value = ("pm", ZERO, self.node(self.product()), sign) if sign else self.product()
        terms = 1
        while isinstance(value, tuple) and terms < MAX_TERMS:
            terms += 1
            if operator := self.accept("+", "-"):
                right = self.node(self.product())
                value = ("add", value, right if operator == "+" else ("neg", right))
            elif sign := self._plus_minus():
                value = ("pm", value, self.node(self.product()), sign)
            else:
                break
        self.depth -= 1
        return value

    def _plus_minus(self) -> str | None:
        kind, value = self.peek()
        if kind == "cmd" and value in ("pm", "mp"):
            self.position += 1
            return "+-" if value == "pm" else "-+"
        return None

    def product(self) -> Any:
        """Factors with `*`, `/`, `:` between them, or side by side."""
        value = self.unary()
        for _ in range(MAX_TERMS):
            if not isinstance(value, tuple):
                return value
            if self.accept("*"):
                right = self.unary()
                value = _scaled(value, right) if isinstance(right, Matrix) else ("mul", value, self.node(right))
            elif self.accept("/"):
                value = divided(value, self._divisor(value))
            elif self.peek() == ("op", ":") or (self.peek() == ("word", "to") and self.peek(1)[0] == "num"):
                return self._ratio(value)
            elif self.peek() == ("cmd", "begin"):
                return _scaled(value, self.matrix())
            elif self.starts_atom() and not (value[0] == "deg" and self.peek()[1] in TEMPERATURES):
                value = self.juxtapose(value)
            else:
                break
        return value

    def _ratio(self, first: Node) -> Any:
        """`a : b` is their quotient; three terms and more are a group of their own."""
        terms = [first]
        while len(terms) < MAX_TERMS and (self.accept(":") or self.peek() == ("word", "to")):
            self.position += self.peek() == ("word", "to")
            terms.append(self.node(self.unary()))
        if len(terms) == 2:
            return ("fn", "ratio", *terms)
        return Group(":", tuple(Scalar(term) for term in terms))

    def _divisor(self, above: Node) -> Node:
        """What a slash divides by: one factor, or with `tight_division` all factors that follow, up to a bracket."""
        mark = next((part[1] for part in walk(_factors(above)[0]) if part[0] == "sym"), "")
        differential = self.peek()[1] in ("d", "partial") and self.peek()[1] == mark
        divisor = self.node(self.unary())
        if differential and self.starts_atom():
            return ("mul", divisor, self.node(self.power()))
        while self.tight and self.starts_atom() and self.peek()[1] != "(":
            divisor = ("mul", divisor, self.node(self.power()))
        return divisor

    def juxtapose(self, left: Node) -> Any:
        """Two factors side by side: a product, unless they are a whole number and a proper fraction."""
        after_number = self.tokens[self.position - 1][0] == "num"
        mixed = after_number and _is_whole(left)
        if after_number and self.peek()[0] == "num":
            if not mixed or self.peek(1) != ("op", "/") or self.peek(2)[0] != "num":
                raise ReadError("two numbers side by side")
            right: Node = ("div", number(self.peek()[1]), number(self.peek(2)[1]))
            if not _is_proper(right):
                raise ReadError("two numbers side by side")
            self.position += 3
        else:
            mixed = mixed and self.peek() == ("cmd", "frac")
            structure = self.power()
            if isinstance(structure, Group) and structure.brackets in ("(]", "[)") and left[0] == "sym":
                return Relation((Scalar(left), structure), ("in",), (Name(left[1]), None))
            right = self.node(structure)
        if mixed and right[0] in ("deg", "pct") and _is_proper(right[1]):
            return (right[0], _mixed(left, right[1]))
        return _mixed(left, right) if mixed and _is_proper(right) else ("mul", left, right)

    def starts_atom(self) -> bool:
        """True if the next token can begin a factor."""
        kind, value = self.peek()
        if kind == "op":
            if value == "(" and self.peek(1) == ("cmd", "mod"):
                return False
            return value in OPENING or (value == "|" and self.bars == 0)
        return kind in ("num", "sym") or (kind == "cmd" and value not in CLOSING_COMMANDS)

    def unary(self) -> Any:
        """A factor with its signs."""
        if self.accept("-"):
            self.deeper()
            value: Any = ("neg", self.node(self.unary()))
            self.depth -= 1
            return value
        if self.accept("+"):
            self.deeper()
            value = self.unary()
            self.depth -= 1
            return value
        return self.power()

    def power(self) -> Any:
        """An atom with its exponent; the transpose of a structure."""
        value = self.postfix(self.atom())
        if not self.accept("^"):
            return value
        if not isinstance(value, tuple):
            return self._transposed(value)
        self.deeper()
        exponent = self.exponent()
        inverse = value[0] == "sym" and value[1] in APPLIED | {"g", "h"} and exponent == MINUS_ONE
        applied = self.application(("sym", f"{value[1]}^-1")) if inverse else None
        value = self.postfix(applied or ("pow", value, exponent))
        self.depth -= 1
        return value

    def _transposed(self, value: Value) -> Value:
        if self.argument() not in (("sym", "T"), ("sym", "t"), ("sym", "top")):
            raise ReadError("power of a structure")
        return Matrix(tuple(zip(*value.rows, strict=True))) if isinstance(value, Matrix) else value

    def exponent(self) -> Node:
        """What follows `^`: a signed atom, itself perhaps with an exponent."""
        self.deeper()
        if self.accept("-"):
            value: Node = ("neg", self.exponent())
        else:
            self.accept("+")
            value = self.node(self.atom())
            if self.accept("^"):
                value = ("pow", value, self.exponent())
        self.depth -= 1
        return value

    def postfix(self, value: Any) -> Any:
        """Factorials, percent, degrees, subscripts, primes and arguments behind an atom."""
        for _ in range(MAX_TERMS):
            if not isinstance(value, tuple):
                break
            if self.accept("!"):
                value = ("fn", "factorial", value)
            elif self.accept("%"):
                value = ("pct", value)
            elif self.peek() == ("cmd", "degrees"):
                self.position += 1
                value = ("deg", value)
            elif self.accept("_"):
                value = self.subscript(value)
            elif value[0] == "sym" and self.accept("'"):
                value = ("sym", value[1] + "'")
            elif value[0] == "sym" and (application := self.application(value)) is not None:
                value = application
            else:
                break
        return value

    def subscript(self, value: Node) -> Node:
        """`x_{0}` is another symbol, `52_8` a numeral with its base."""
        name = self.skip_argument()
        if value[0] == "num" and name.isdigit() and len(name) <= 2 and value[2].isalnum():
            return ("based", value[2], int(name))
        if value[0] != "sym":
            raise ReadError("subscript")
        letter, primes = value[1].rstrip("'"), "'" * value[1].count("'")
        return ("sym", f"{letter}_{name}{primes}")

    def application(self, function: Node) -> Node | None:
        """`y(t)`, `I(0)`, `u(x, y)`: a letter before brackets that hold letters or numbers, any expressions for `f`."""
        event = self._event() if function[1] in PROBABILITIES else None
        if event is not None:
            return ("app", function[1], event)
        if self.peek() != ("op", "(") or not (function[1] in APPLIED or self._simple_arguments()):
            return None
        self.position += 1
        arguments = [self.node(self.sum())]
        while self.accept(","):
            arguments.append(self.node(self.sum()))
        self.expect(")")
        return ("app", function[1], *arguments)

    def _event(self) -> Node | None:
        r"""What `P(X > 2)` and `\Pr[A \mid B]` are the probability of, as one symbol; None for other brackets."""
        closer = {"(": ")", "[": "]"}.get(self.peek()[1])
        values = [value for _, value in self.tokens[self.position : self.position + MAX_ARGUMENT_TOKENS]]
        if closer is None or closer not in values:
            return None
        inside = values[1 : values.index(closer)]
        if not any(value in EVENT_MARKS or (value.isalpha() and len(value) > 2) for value in inside):
            return None
        self.position += len(inside) + 2
        return ("sym", " ".join(inside))

    def _simple_arguments(self) -> bool:
        """True if the bracket ahead holds single letters or numbers, the latter perhaps in brackets with a sign."""
        wanted, depth, offset, several = True, 0, 0, False
        while offset < MAX_ARGUMENT_TOKENS:
            kind, value = self.peek(offset)
            offset += 1
            if value == "(" and wanted:
                depth += 1
            elif value == ")" and not wanted:
                depth -= 1
                if depth == 0:
                    return True
            elif value in ("-", "+") and wanted and (depth > 1 or several):
                continue
            elif kind == "op" and value == "," and not wanted:
                wanted = several = True
            elif wanted and (kind in ("num", "sym") or (kind == "cmd" and value in SYMBOLS)):
                wanted = False
            else:
                return False
        return False

    def atom(self) -> Any:
        """A number, a letter, a command, a bracket, an absolute value."""
        kind, value = self.take()
        if kind == "num":
            return number(value)
        if kind == "sym":
            return ("const", value) if value in ("e", "i") else ("sym", value)
        if kind == "cmd":
            return self.command(value)
        if kind == "op" and value in OPENING:
            return self.bracket(value)
        if kind == "op" and value == "|":
            return self._absolute()
        raise ReadError(f"unexpected {value!r}")

    def _absolute(self) -> Node:
        self.deeper()
        self.bars += 1
        inner = self.node(self.sum())
        self.bars -= 1
        self.expect("|")
        self.depth -= 1
        return ("fn", "abs", inner)

    def argument(self) -> Node:
        """One TeX argument as a node: a brace group, one digit, one letter, one command."""
        kind, value = self.peek()
        if kind == "num" and len(value) > 1 and value.isdigit():
            self.tokens[self.position : self.position + 1] = [("num", value[0]), ("num", value[1:])]
        return self.node(self.atom())


def divided(above: Node, below: Node) -> Node:
    r"""A quotient; `\frac{dy}{dt}`, `d^2y/dt^2` and their partial kin are one symbol, like `y'` and `y''`: `y''/t`."""
    top, bottom = _factors(above), _factors(below)
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


def _factors(node: Node) -> list[Node]:
    """The factors of a product, from the left."""
    return [*_factors(node[1]), *_factors(node[2])] if node[0] == "mul" else [node]


def _mixed(whole: Node, fraction: Node) -> Node:
    """`-1 1/2` is -(1 + 1/2)."""
    return ("add", whole, ("neg", fraction) if whole[0] == "neg" else fraction)


def _scaled(factor: Node, matrix: Matrix) -> Matrix:
    """A number times a matrix."""
    if not all(isinstance(entry, Scalar) for row in matrix.rows for entry in row):
        raise ReadError("factor of a matrix")
    return Matrix(tuple(tuple(Scalar(("mul", factor, e.node), e.unit) for e in row) for row in matrix.rows))


def _is_whole(node: Node) -> bool:
    """True for a whole number literal, also under a minus."""
    return _is_whole(node[1]) if node[0] == "neg" else node[0] == "num" and node[2].isdigit()


def _is_proper(node: Node) -> bool:
    """True for a fraction of two whole number literals below one."""
    return (
        node[0] == "div"
        and all(part[0] == "num" and part[2].isdigit() for part in node[1:])
        and 0 < node[1][1] < node[2][1]
    )
