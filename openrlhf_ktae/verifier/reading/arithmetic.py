"""Sums, products, powers: the operators and what they bind.

A method returns a Node, or a Value where a bracket held a structure instead of a number.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from .cursor import Cursor
from .lexer import ReadError
from .notation import SYMBOLS, TEMPERATURES
from .values import Matrix, Node, Value

MAX_DIGITS = 20000  # of one literal; the caps on whole answers are lower, golds may be longer
MAX_EXPONENT = 5000  # of e-notation
MAX_TERMS = 400  # of one sum or product
OPENING = frozenset({"(", "[", "{", "\\{"})


def number(text: str) -> Node:
    """The exact number node of a literal such as `0.5`, `.5`, `42.` or `1.5e-7`."""
    mantissa, _, exponent = text.lower().partition("e")
    if len(mantissa) > MAX_DIGITS:
        raise ReadError("number too long")
    whole, _, decimals = mantissa.partition(".")
    value = Fraction(int(whole + decimals or "0"), 10 ** len(decimals))
    if exponent:
        if abs(int(exponent)) > MAX_EXPONENT:
            raise ReadError("exponent too large")
        value *= Fraction(10) ** int(exponent)
    return ("num", value, text.lower())


class Arithmetic(Cursor):
    """Reads expressions. Commands and brackets are read by the subclasses."""

    bars = 0

    def command(self, name: str) -> Any:
        """Read a LaTeX command whose name has been taken."""
        raise NotImplementedError

    def bracket(self, opener: str) -> Any:
        """Read what a bracket holds that has been opened."""
        raise NotImplementedError

    def sum(self) -> Any:
        self.deeper()
        value: Any
        sign = self._plus_minus()
        value = ("pm", ("num", Fraction(0), ""), self.node(self.product()), sign) if sign else self.product()
        while True:
            operator = self.accept("+", "-") if isinstance(value, tuple) else None
            sign = self._plus_minus() if operator is None and isinstance(value, tuple) else None
            if sign:
                value = ("pm", value, self.node(self.product()), sign)
            elif operator:
                right = self.node(self.product())
                value = ("add", value, right if operator == "+" else ("neg", right))
            else:
                self.depth -= 1
                return value

    def _plus_minus(self) -> str | None:
        kind, value = self.peek()
        if kind == "cmd" and value in ("pm", "mp"):
            self.position += 1
            return "+-" if value == "pm" else "-+"
        return None

    @staticmethod
    def node(value: Any) -> Node:
        if not isinstance(value, tuple):
            raise ReadError("arithmetic with a structure")
        return value

    def product(self) -> Any:
        value = self.unary()
        if not isinstance(value, tuple):
            return value
        while True:
            if self.accept("*"):
                value = ("mul", value, self.node(self.unary()))
            elif self.accept("/"):
                divisor = self.node(self.unary())
                while self.tight and self.starts_atom() and self.peek()[1] != "(":
                    divisor = ("mul", divisor, self.node(self.power()))
                value = ("div", value, divisor)
            elif self.accept(":"):
                value = ("fn", "ratio", value, self.node(self.unary()))
            elif self.peek() == ("cmd", "mod"):
                return value
            elif self.starts_atom() and not (value[0] == "deg" and self.peek()[1] in TEMPERATURES):
                value = self.juxtapose(value)
            else:
                return value

    def juxtapose(self, left: Node) -> Node:
        """Two factors side by side: a product, unless they are a whole number and a proper fraction."""
        mark = self.position
        whole = _integer(left)
        if self.peek()[0] == "num" and self.tokens[mark - 1][0] == "num":
            fraction = self._plain_fraction() if whole is not None else None
            if fraction is None:
                raise ReadError("two numbers side by side")
            return ("add", left, ("neg", fraction) if left[0] == "neg" else fraction)
        is_fraction = self.peek() == ("cmd", "frac")
        right = self.node(self.power())
        if whole is not None and is_fraction and self.tokens[mark - 1][0] == "num" and _proper(right):
            return ("add", left, ("neg", right) if left[0] == "neg" else right)
        return ("mul", left, right)

    def _plain_fraction(self) -> Node | None:
        """`1/2` behind a whole number."""
        if self.peek(1) != ("op", "/") or self.peek(2)[0] != "num":
            return None
        above, below = number(self.take()[1]), (self.take(), number(self.take()[1]))[1]
        node = ("div", above, below)
        return node if _proper(node) else None

    def starts_atom(self) -> bool:
        kind, value = self.peek()
        if kind in ("num", "sym"):
            return True
        if kind == "op":
            return value in ("(", "[", "{", "\\{") or (value == "|" and self.bars == 0)
        return kind == "cmd" and value not in (
            "cup", "cap", "setminus", "pm", "mp", "mod", "pmod", "bmod", "rfloor", "rceil", "rangle", "end", "degrees",
            "quad", "to", "rightarrow", "implies", "equiv", "sim", "subset", "notin", "Rightarrow", "iff", "choose",
        )  # fmt: skip

    def unary(self) -> Any:
        if self.accept("-"):
            self.deeper()
            inner = self.unary()
            self.depth -= 1
            if not isinstance(inner, tuple):
                raise ReadError("minus a structure")
            return ("neg", inner)
        if self.accept("+"):
            return self.unary()
        return self.power()

    def power(self) -> Any:
        value = self.postfix(self.atom())
        if not isinstance(value, tuple):
            if self.accept("^"):
                self.transpose_mark()
                return transposed(value)
            return value
        if self.accept("^"):
            self.deeper()
            value = self.postfix(("pow", value, self.exponent()))
            self.depth -= 1
        return value

    def transpose_mark(self) -> None:
        mark = self.argument()
        if mark not in (("sym", "T"), ("sym", "t"), ("sym", "top")):
            raise ReadError("power of a structure")

    def exponent(self) -> Node:
        if self.accept("-"):
            return ("neg", self.exponent())
        self.accept("+")
        value = self.node(self.atom())
        while self.peek() == ("op", "^"):
            self.position += 1
            self.deeper()
            value = ("pow", value, self.exponent())
            self.depth -= 1
        return value

    def postfix(self, value: Any) -> Any:
        while isinstance(value, tuple):
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
            elif value[0] == "sym" and self.peek() == ("op", "("):
                application = self.application(value)
                if application is None:
                    return value
                value = application
            else:
                break
        return value

    def subscript(self, value: Node) -> Node:
        start = self.position
        self.skip_argument()
        name = "".join(v for _, v in self.tokens[start : self.position] if v not in "{}")
        if value[0] == "num" and name.isdigit() and value[2].isalnum():
            return ("based", value[2], int(name))
        if value[0] != "sym":
            raise ReadError("subscript")
        return ("sym", f"{value[1]}_{name}")

    def application(self, function: Node) -> Node | None:
        """`y(t)`, `I(0)`, `u(x, y)`: a letter before brackets that hold letters or numbers alone."""
        offset, arguments = 1, []
        while True:
            kind, value = self.peek(offset)
            if kind not in ("sym", "num") and not (kind == "cmd" and value in SYMBOLS):
                return None
            arguments.append(value)
            separator = self.peek(offset + 1)
            if separator == ("op", ")"):
                break
            if separator != ("op", ","):
                return None
            offset += 2
        self.position += offset + 2
        return ("app", function, tuple(arguments))

    def atom(self) -> Any:
        kind, value = self.peek()
        if kind == "num":
            self.position += 1
            return number(value)
        if kind == "sym":
            self.position += 1
            return {"e": ("const", "e"), "i": ("const", "i")}.get(value) or ("sym", value)
        if kind == "cmd":
            self.position += 1
            return self.command(value)
        if kind == "op" and value in OPENING:
            self.position += 1
            return self.bracket(value)
        if kind == "op" and value == "|":
            self.position += 1
            return self.bars_around()
        raise ReadError(f"unexpected {value!r}")

    def argument(self) -> Any:
        """One TeX argument as a node: a brace group, one digit, one letter, one command."""
        kind, value = self.peek()
        if kind == "num" and len(value) > 1 and value.isdigit():
            self.tokens[self.position] = ("num", value[1:])
            return number(value[0])
        if kind == "op" and value == "-":
            raise ReadError("a sign where an argument should be")
        return self.node(self.atom())

    def bars_around(self) -> Node:
        self.deeper()
        self.bars += 1
        inner = self.node(self.sum())
        self.bars -= 1
        self.expect("|")
        self.depth -= 1
        return ("fn", "abs", inner)


def transposed(value: Value) -> Value:
    """The transpose of a matrix; a tuple stays as it is."""
    if isinstance(value, Matrix):
        return Matrix(tuple(zip(*value.rows, strict=True)))
    return value


def _integer(node: Node) -> int | None:
    """The value of a whole number literal, also under a minus."""
    if node[0] == "neg":
        return _integer(node[1])
    return int(node[1]) if node[0] == "num" and node[2].isdigit() else None


def _proper(node: Node) -> bool:
    """True for a fraction of two whole number literals below one."""
    if node[0] != "div" or node[1][0] != "num" or node[2][0] != "num":
        return False
    return node[1][2].isdigit() and node[2][2].isdigit() and 0 < node[1][1] < node[2][1]
