"""LaTeX commands: fractions, roots, functions, accents, series, matrices."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from .arithmetic import Arithmetic, number
from .lexer import ReadError
from .notation import ACCENTS, FUNCTIONS, INVERSE, NUMBER_SETS, SYMBOLS
from .values import Group, Matrix, Node, NumberSet, Scalar, Value


class Commands(Arithmetic):
    """Reads what follows a command."""

    def items(self, closers: tuple[str, ...]) -> list[Value]:
        """Read values up to a closer."""
        raise NotImplementedError

    def item(self, closers: tuple[str, ...]) -> Value | None:
        """Read one value."""
        raise NotImplementedError

    def command(self, name: str) -> Any:
        if name == "rational":
            above, below = self.argument_group(), self.argument_group()
            return ("num", Fraction(int(above), int(below)), "")
        if name == "frac":
            return self.fraction()
        if name == "sqrt":
            return self.root()
        if name == "radical":
            kind, _value = self.peek()
            return ("fn", "sqrt", number(self.take()[1]) if kind == "num" else self.argument())
        if name == "binom":
            above = self.argument()
            return ("fn", "binom", above, self.argument())
        if name in ("lfloor", "lceil"):
            inner = self.node(self.sum())
            if self.take() != ("cmd", "r" + name[1:]):
                raise ReadError("floor or ceiling is not closed")
            return ("fn", name[1:], inner)
        if name in ("langle",):
            return self.angle_brackets()
        if name in FUNCTIONS:
            return self.function(name)
        if name in ("sum", "prod"):
            return self.series(name)
        if name == "begin":
            return self.matrix()
        return self.symbol_command(name)

    def argument_group(self) -> str:
        self.expect("{")
        digits = self.take()[1]
        self.expect("}")
        return digits

    def symbol_command(self, name: str) -> Any:
        if name == "pi":
            return ("const", "pi")
        if name == "infty":
            return ("const", "inf")
        if name in ("mathbb", "emptyset"):
            return self.number_set(name)
        if name == "bold":
            return self.atom()
        if name in ACCENTS:
            inner = self.argument()
            if inner[0] == "mul":
                return ("sym", name + "_" + _letters(inner))
            if inner[0] not in ("sym", "const"):
                raise ReadError(f"\\{name}")
            return ("sym", f"{name}_{inner[1]}")
        if name in SYMBOLS:
            return ("sym", name)
        raise ReadError(f"\\{name}")

    def number_set(self, name: str) -> NumberSet:
        if name == "emptyset":
            return NumberSet("0")
        braces = self.accept("{") is not None
        letter = self.take()[1]
        if braces:
            self.expect("}")
        if letter not in NUMBER_SETS:
            raise ReadError("\\mathbb")
        if self.peek() == ("op", "^") or self.peek() == ("op", "_"):
            mark = self.take()[1]
            start = self.position
            self.skip_argument()
            letter += mark + "".join(v for _, v in self.tokens[start : self.position] if v not in "{}")
        return NumberSet(letter)

    def fraction(self) -> Node:
        derivative = self.derivative()
        if derivative is not None:
            return derivative
        above = self.argument()
        return ("div", above, self.argument())

    def derivative(self) -> Node | None:
        r"""`\frac{dy}{dt}` and `\frac{d^2 y}{dt^2}` as one symbol."""
        start = self.position
        if self.peek() != ("op", "{") or self.peek(1) not in (("sym", "d"), ("cmd", "partial")):
            return None
        try:
            self.skip_argument()
            middle = self.position
            self.skip_argument()
        except ReadError:
            middle = start
        above = [v for _, v in self.tokens[start:middle] if v not in "{}"]
        below = [v for _, v in self.tokens[middle : self.position] if v not in "{}"]
        if len(above) > 1 and len(below) > 1 and below[0] == above[0]:
            return ("sym", "".join(above) + "/" + "".join(below))
        self.position = start
        return None

    def root(self) -> Node:
        degree = None
        if self.accept("["):
            degree = self.node(self.sum())
            self.expect("]")
        kind, _value = self.peek()
        inner = number(self.take()[1]) if kind == "num" else self.argument()
        if degree is None:
            return ("fn", "sqrt", inner)
        return ("fn", "root", inner, degree)

    def angle_brackets(self) -> Group:
        items = self.items(())
        if self.take() != ("cmd", "rangle"):
            raise ReadError("angle bracket is not closed")
        return Group("<>", tuple(items))

    def function(self, name: str) -> Any:
        """A named function with its base or power and its argument, bracketed or not."""
        base = power = None
        if name == "log" and self.accept("_"):
            base = self.argument()
        if self.accept("^"):
            power = self.exponent()
        if name == "log" and base is None and self.accept("_"):
            base = self.argument()
        if name in INVERSE and power == ("neg", ("num", Fraction(1), "1")):
            name, power = INVERSE[name], None
        if name in ("gcd", "lcm", "max", "min"):
            return self.list_function(name)
        argument = self.function_argument()
        node: Node = ("fn", name, argument) if base is None else ("fn", "logbase", argument, base)
        return node if power is None else ("pow", node, power)

    def list_function(self, name: str) -> Node:
        group = self.atom()
        if not isinstance(group, Group) or not all(isinstance(item, Scalar) for item in group.items):
            raise ReadError(f"\\{name}")
        return ("fn", name, *(item.node for item in group.items))

    def function_argument(self) -> Node:
        """`(…)` alone, else the factors up to the next sign, function or separator: `\\sin 2t`."""
        self.deeper()
        if self.peek() in (("op", "("), ("op", "["), ("op", "{")):
            argument = self.postfix(self.node(self.atom()))
            if self.accept("^"):
                argument = ("pow", argument, self.exponent())
        else:
            negative = self.accept("-") is not None
            argument = self.node(self.power())
            while (
                self.starts_atom() and self.peek()[1] not in FUNCTIONS and self.peek() not in (("op", "("), ("op", "["))
            ):
                argument = self.juxtapose(argument)
            argument = ("neg", argument) if negative else argument
        self.depth -= 1
        return argument

    def series(self, name: str) -> Node:
        self.expect("_")
        self.expect("{")
        kind, variable = self.take()
        self.expect("=")
        low = self.node(self.sum())
        self.expect("}")
        self.expect("^")
        high = self.node(self.atom())
        if kind != "sym":
            raise ReadError(f"\\{name}")
        return (name, variable, low, high, self.node(self.product()))

    def matrix(self) -> Matrix:
        """`\\begin{pmatrix} … \\end{pmatrix}`; other environments are not read."""
        kind = self.environment()
        if kind not in ("pmatrix", "bmatrix", "matrix", "smallmatrix", "array", "Bmatrix"):
            raise ReadError(kind)
        if kind == "array" and self.peek() == ("op", "{"):
            self.skip_argument()
        rows: list[list[Value]] = [[]]
        while True:
            value = self.item(("&",))
            if value is None:
                raise ReadError("matrix entry")
            rows[-1].append(value)
            if self.accept("&"):
                continue
            if self.accept("row"):
                if self.peek() == ("cmd", "end"):
                    break
                rows.append([])
                continue
            break
        if self.take() != ("cmd", "end") or self.environment() != kind:
            raise ReadError("matrix is not closed")
        if len({len(row) for row in rows}) != 1:
            raise ReadError("ragged matrix")
        return Matrix(tuple(tuple(row) for row in rows))

    def environment(self) -> str:
        self.expect("{")
        name = ""
        while self.accept("}") is None:
            kind, value = self.take()
            if kind == "end":
                raise ReadError("environment")
            name += value
        return name


def _letters(node: Node) -> str:
    if node[0] == "sym":
        return str(node[1])
    if node[0] == "mul":
        return _letters(node[1]) + _letters(node[2])
    raise ReadError("accent over an expression")
