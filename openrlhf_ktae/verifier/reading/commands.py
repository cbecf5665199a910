"""LaTeX commands: fractions, roots, functions, accents, series, matrices."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from .arithmetic import MINUS_ONE, Arithmetic, divided, number
from .lexer import ReadError
from .notation import ACCENTS, FUNCTIONS, INVERSE, LIST_FUNCTIONS, MATRICES, NUMBER_SETS, SYMBOLS, UNIT_VECTORS
from .values import Group, Matrix, Node, NumberSet, Scalar, Value

LISTS = ("()", "[]", "{}", "")


class Commands(Arithmetic):
    """Reads what follows a command."""

    def items(self, closers: tuple[str, ...]) -> list[Value]:
        """Read values up to a closer."""
        raise NotImplementedError

    def item(self, closers: tuple[str, ...]) -> Value | None:
        """Read one value."""
        raise NotImplementedError

    def command(self, name: str) -> Any:
        """Whatever the command begins. Raises ReadError for commands that answers are not made of."""
        if name in FUNCTIONS:
            return self.function(name)
        if name in ACCENTS:
            return self.accent(name)
        if name in self._READERS:
            return self._READERS[name](self, name)
        if name in SYMBOLS:
            return ("sym", name)
        raise ReadError(f"\\{name}")

    def _constant(self, name: str) -> Node:
        return ("const", {"pi": "pi", "infty": "inf"}[name])

    def _rational(self, name: str) -> Node:
        above, below = self.skip_argument(), self.skip_argument()
        return ("num", Fraction(int(above), int(below)), "")

    def _fraction(self, name: str) -> Node:
        above = self.argument()
        return divided(above, self.argument())

    def _root(self, name: str) -> Node:
        degree = None
        if self.accept("["):
            degree = self.node(self.sum())
            self.expect("]")
        inner = number(self.take()[1]) if self.peek()[0] == "num" else self.argument()
        return ("fn", "sqrt", inner) if degree is None else ("fn", "root", inner, degree)

    def _binomial(self, name: str) -> Node:
        above = self.argument()
        return ("fn", "binom", above, self.argument())

    def _rounded(self, name: str) -> Node:
        inner = self.node(self.sum())
        if self.take() != ("cmd", "r" + name[1:]):
            raise ReadError("floor or ceiling is not closed")
        return ("fn", name[1:], inner)

    def _vector(self, name: str) -> Group:
        items = self.items(())
        if self.take() != ("cmd", "rangle"):
            raise ReadError("angle bracket is not closed")
        return Group("<>", tuple(items))

    def _series(self, name: str) -> Node:
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

    def _number_set(self, name: str) -> NumberSet:
        letter = "0" if name == "emptyset" else self.skip_argument()
        if letter not in NUMBER_SETS:
            raise ReadError("\\mathbb")
        mark = self.accept("^", "_")
        return NumberSet(letter if mark is None else letter + mark + self.skip_argument())

    def _bold(self, name: str) -> Any:
        """Bold letters are the letters; i, j, k are the unit vectors."""
        value = self.atom()
        letter = value[1] if isinstance(value, tuple) and value[0] in ("sym", "const") else ""
        return ("sym", UNIT_VECTORS[letter]) if letter in UNIT_VECTORS else value

    def _matrix(self, name: str) -> Matrix | Group:
        r"""`\begin{pmatrix} … \end{pmatrix}`; other environments are not read."""
        kind = self.skip_argument()
        if kind not in MATRICES | {"cases"}:
            raise ReadError(kind)
        if kind == "array" and self.peek() == ("op", "{"):
            self.skip_argument()
        rows: list[list[Value]] = [[]]
        while True:
            while kind == "cases" and self.peek()[1] in ("if", "when", "for", "where", ","):
                self.position += 1
            value = self.item(("&",))
            if value is None:
                raise ReadError("matrix entry")
            rows[-1].append(value)
            if kind == "cases":
                self.accept(",", ".")
            if self.accept("&"):
                continue
            if not self.accept("row") or self.peek() == ("cmd", "end"):
                break
            rows.append([])
        if self.take() != ("cmd", "end") or self.skip_argument() != kind:
            raise ReadError("matrix is not closed")
        if len({len(row) for row in rows}) != 1:
            raise ReadError("ragged matrix")
        if kind == "cases":
            return Group("cases", tuple(Group("()", tuple(row)) for row in rows))
        return Matrix(tuple(tuple(row) for row in rows))

    _READERS = {  # noqa: RUF012 - a table of methods
        "pi": _constant,
        "infty": _constant,
        "rational": _rational,
        "frac": _fraction,
        "sqrt": _root,
        "radical": _root,
        "binom": _binomial,
        "lfloor": _rounded,
        "lceil": _rounded,
        "langle": _vector,
        "sum": _series,
        "prod": _series,
        "mathbb": _number_set,
        "emptyset": _number_set,
        "bold": _bold,
        "begin": _matrix,
    }

    def accent(self, name: str) -> Node:
        r"""`\dot{x}`, `\overline{AB}`: a symbol of its own; dots are derivatives."""
        letters = _letters(self.argument())
        if name == "hat" and letters in UNIT_VECTORS:
            return ("sym", UNIT_VECTORS[letters])
        return ("sym", letters + {"dot": "'", "ddot": "''"}[name] if "dot" in name else f"{name}_{letters}")

    def function(self, name: str) -> Node:
        """A named function with its base or power and its argument, bracketed or not."""
        if name in LIST_FUNCTIONS:
            return self._list_function(name)
        base = self.argument() if name == "log" and self.accept("_") else None
        power = self.exponent() if self.accept("^") else None
        if name == "log" and base is None and self.accept("_"):
            base = self.argument()
        if name in INVERSE and power == MINUS_ONE:
            name, power = INVERSE[name], None
        bracketed = self.peek() == ("op", "(")
        argument = self._function_argument()
        if name == "cis":
            return ("add", ("fn", "cos", argument), ("mul", ("const", "i"), ("fn", "sin", argument)))
        node: Node = ("fn", name, argument) if base is None else ("fn", "logbase", argument, base)
        if bracketed and power is None and self.accept("^"):
            power = self.exponent()
        return node if power is None else ("pow", node, power)

    def _list_function(self, name: str) -> Node:
        if self.peek()[0] == "end" or self.peek() == ("op", "="):
            return ("sym", name)
        group = self.atom()
        if (
            not isinstance(group, Group)
            or group.brackets not in LISTS
            or not all(isinstance(item, Scalar) for item in group.items)
        ):
            raise ReadError(f"\\{name}")
        return ("fn", name, *(item.node for item in group.items))

    def _function_argument(self) -> Node:
        r"""`(…)` alone, else the factors up to the next sign, function or bracket: `\sin 2t`."""
        self.deeper()
        if self.peek() in (("op", "("), ("op", "["), ("op", "{")):
            opener = self.peek()[1]
            argument = self.postfix(self.node(self.atom()))
            if opener != "(" and self.accept("^"):
                argument = ("pow", argument, self.exponent())
        else:
            negative = self.accept("-") is not None
            argument = self.node(self.power())
            while self.starts_atom() and self.peek()[1] not in FUNCTIONS | {"(", "["}:
                argument = self.juxtapose(argument)
            argument = ("neg", argument) if negative else argument
        self.depth -= 1
        return argument


def _letters(node: Node) -> str:
    """The letters under an accent, in their order."""
    if node[0] in ("sym", "const"):
        return str(node[1])
    if node[0] == "mul":
        return _letters(node[1]) + _letters(node[2])
    raise ReadError("accent over an expression")
