r"""Tokens -> values: a recursive descent reader for the answers of this field.

It reads what answers are made of and nothing else: no assignment, no call, no attribute, no lookup of a name in
Python. Whatever it does not know raises `ReadError`, and the caller decides what that means.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any

from .lexer import ReadError, Token, tokenise
from .units import DEGREE, PERCENT, read_unit
from .values import Group, Matrix, Name, Node, NumberSet, Relation, Scalar, SetOperation, Text, Unit, Value
from .words import CONDITION_STARTS, CONDITION_WORDS, FILLERS, NUMBER_WORDS, is_word, phrase, spoken_number

MAX_DEPTH = 40
MAX_DIGITS = 20000  # of one literal; the caps on whole answers are lower, golds may be longer
MAX_EXPONENT = 5000  # of e-notation
RELATIONS = frozenset({"=", "<", ">", "<=", ">=", "!=", "~=", "in"})
GREEK = frozenset(
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi rho sigma tau upsilon phi chi psi omega "
    "Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega hbar ell odot partial nabla triangle angle square "
    "Alpha Beta Epsilon star bullet circ top perp parallel prime ldots oplus Box imath jmath max min".split()
)
ACCENTS = frozenset("dot ddot hat widehat bar overline tilde widetilde mathcal mathscr mathfrak overarc".split())
FUNCTIONS = frozenset(
    "sin cos tan cot sec csc arcsin arccos arctan arccot sinh cosh tanh coth arcsinh arccosh arctanh ln log lg exp "
    "gcd lcm max min".split()
)
INVERSE = {name: "arc" + name for name in ("sin", "cos", "tan", "cot", "sinh", "cosh", "tanh")}
BRACKET_PAIRS = {"(": (")", "]"), "[": ("]", ")"), "\\{": ("\\}",), "{": ("}",)}
TEMPERATURES = {"C": "celsius", "F": "fahrenheit", "K": "kelvin"}
NUMBER_SETS = {"R", "Z", "N", "Q", "C"}


def read(text: str, join_commas: bool = True, tight_division: bool = False) -> Value:
    """The value of a cleaned answer. Raises ReadError when it cannot be read, whole, as one."""
    if _PLAIN_WORDS.fullmatch(text) and any(is_word(word) for word in text.split()) and " " in text.strip():
        text = f"\\text{{{text}}}"
    if _OUTWARD_INTERVAL.search(text):
        text = _outward_intervals(text)
    tokens = tokenise(text, join_commas)
    while tokens and tokens[-1] in (("op", "."), ("op", "row")):
        tokens.pop()
    if not tokens:
        raise ReadError("empty")
    return _Reader(tokens, tight_division).whole()


_PLAIN_WORDS = re.compile(r"[A-Za-z][A-Za-z' -]*")
_OUTWARD_INTERVAL = re.compile(r"^(?:\s*[a-z]\s*\\in)?\s*\]|\[\s*$")
_ANY_INTERVAL = re.compile(r"([\[\]])([^\[\]]*,[^\[\]]*)([\[\]])")


def _outward_intervals(text: str) -> str:
    """`]2, 3]` and `[2, 3[`, as written in French schools, with parentheses for the open ends."""
    open_end = {"]": "("}, {"[": ")"}
    return _ANY_INTERVAL.sub(lambda m: open_end[0].get(m[1], m[1]) + m[2] + open_end[1].get(m[3], m[3]), text)


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


_PUNCTUATION = frozenset({"(", ")", ".", "!", "?", "'", ":", "{", "}"})


class _Reader:
    """A cursor over the tokens. Methods are named after what they read."""

    def __init__(self, tokens: list[Token], tight_division: bool) -> None:
        self.tokens = tokens
        self.position = 0
        self.depth = 0
        self.tight = tight_division

    # --- cursor -------------------------------------------------------------------------------------------------

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

    # --- structure ----------------------------------------------------------------------------------------------

    def whole(self) -> Value:
        items = self.items(())
        if self.position < len(self.tokens):
            raise ReadError(f"unexpected {self.peek()[1]!r}")
        return items[0] if len(items) == 1 else Group("", tuple(items))

    def items(self, closers: tuple[str, ...]) -> list[Value]:
        """Values separated by commas, semicolons, `and`, `or`, up to a closer or the end."""
        items: list[Value] = []
        while True:
            value = self.item(closers)
            if value is not None:
                items.append(value)
            if not self.separator():
                break
        if not items:
            raise ReadError("empty")
        return items

    def separator(self) -> bool:
        """Take `,`, `;`, `and`, `or` or `, and`."""
        found = self.accept(",", ";", "row") is not None
        kind, value = self.peek()
        if kind == "word" and value.lower() in ("and", "or"):
            self.position += 1
            found = True
        return found

    def at_end_of_item(self, closers: tuple[str, ...]) -> bool:
        kind, value = self.peek()
        if kind == "end" or (kind == "op" and (value in closers or value in (",", ";", "row"))):
            return True
        if kind == "cmd":
            return value in ("end", "rangle")
        return self.is_connective()

    def item(self, closers: tuple[str, ...]) -> Value | None:
        """One relation or value. None for a condition on a parameter (`k \\in \\mathbb{Z}`, `for all n`)."""
        start = self.position
        self.deeper()
        try:
            value = self.relation(closers)
            if self.at_end_of_item(closers):
                return None if is_condition(value) else value
        except ReadError:
            pass
        finally:
            self.depth -= 1
        self.position = start
        return self.text(closers)

    def text(self, closers: tuple[str, ...]) -> Value | None:
        """Everything up to the end of the item, as words."""
        words: list[str] = []
        start = self.position
        while not self.at_end_of_item(closers):
            words.append(self.take()[1])
        taken = self.tokens[start : self.position]
        if not words:
            raise ReadError("empty")
        if taken[0][0] == "word" and taken[0][1].lower() in CONDITION_STARTS and _only_condition(taken):
            return None
        if not any(kind == "word" for kind, _ in taken):
            raise ReadError("not readable")
        if all(kind == "word" or value in _PUNCTUATION for kind, value in taken):
            return Text(phrase(" ".join(words)) or " ".join(words))
        return Text(" ".join(value.lower() if kind == "word" else value for kind, value in taken))

    def relation(self, closers: tuple[str, ...]) -> Value:
        sides, operators, names = [], [], []
        while True:
            start = self.position
            sides.append(self.side())
            names.append(read_name(self.tokens[start : self.position]))
            operator = self.accept(*RELATIONS)
            if operator is None:
                break
            operators.append(operator)
        if not operators:
            return sides[0]
        return Relation(tuple(sides), tuple(operators), tuple(names))

    def side(self) -> Value:
        """`[fillers] value [unit] [condition]`."""
        while self.peek()[0] == "word" and self.peek()[1].lower() in FILLERS and not self.ends_side(1):
            self.position += 1
            self.accept(":")
        if self.peek() == ("op", "~="):
            self.position += 1
        currency = self.currency()
        if self.peek()[0] == "word":
            return self.words_side()
        value = self.set_expression()
        in_degrees = isinstance(value, tuple) and peel(value)[0] == "deg" and self.peek()[1] in TEMPERATURES
        if currency is None and self.peek()[0] == "word" and not self.is_connective() and not in_degrees:
            currency = self.unit()
        if isinstance(value, tuple):
            value = self.finish_scalar(value, currency)
        elif currency is not None and currency.factor is not None:
            raise ReadError("unit behind a structure")
        return value

    def ends_side(self, offset: int) -> bool:
        kind, value = self.peek(offset)
        return kind == "end" or (kind == "op" and value in RELATIONS)

    def words_side(self) -> Value:
        """A side made of words alone: a name such as `Area`, a number word, a text."""
        start = self.position
        while self.peek()[0] == "word" and not self.is_connective():
            self.position += 1
        words = [value for _, value in self.tokens[start : self.position]]
        spoken = phrase(" ".join(words))
        counted = spoken_number(spoken)
        if counted is not None:
            return Scalar(("num", Fraction(counted), ""))
        if len(words) > 1 and words[0].lower() in NUMBER_WORDS:
            unit = read_unit(self.tokens[start + 1 : self.position])
            if unit is not None:
                return Scalar(("num", Fraction(NUMBER_WORDS[words[0].lower()]), ""), unit)
        if not spoken:
            raise ReadError("empty text")
        return Text(spoken)

    def is_connective(self) -> bool:
        kind, value = self.peek()
        return kind == "word" and value.lower() in ("and", "or")

    def currency(self) -> Unit | None:
        kind, value = self.peek()
        if kind == "word" and value in ("dollar", "pounds_sterling", "euro", "yen", "rupee", "Rs"):
            follows = self.peek(1)
            if follows[0] == "num" or follows == ("cmd", "frac"):
                self.position += 1
                return read_unit([(kind, value)])
        return None

    def unit(self) -> Unit | None:
        """The unit phrase or condition that ends a value. Raises ReadError if the words mean something else."""
        start = self.position
        while True:
            kind, value = self.peek()
            if (
                (kind == "word" and not self.is_connective())
                or (kind == "op" and value in ("^", "/", "*", "-", ".") and self._unit_goes_on())
                or (kind in ("num", "sym") and self.tokens[self.position - 1][1] in ("^", "-", "{", "/", "*"))
                or (kind == "op" and value in ("{", "}", "(", ")") and self._unit_bracket(start))
                or (kind in ("sym", "cmd", "op") and self._in_condition(start))
            ):
                self.position += 1
            else:
                break
        taken = self.tokens[start : self.position]
        if _only_condition(taken):
            return None
        unit = read_unit(taken)
        if unit is None:
            raise ReadError("words behind a value")
        return unit

    def _unit_goes_on(self) -> bool:
        return self.peek(1)[0] in ("word", "num", "sym") or self.peek(1) in (("op", "{"), ("op", "-"))

    def _unit_bracket(self, start: int) -> bool:
        value = self.peek()[1]
        if value in "{(":
            return self.tokens[self.position - 1][1] in ("^", "/")
        inside = [token[1] for token in self.tokens[start : self.position]]
        return inside.count({"}": "{", ")": "("}[value]) > inside.count(value)

    def _in_condition(self, start: int) -> bool:
        first = self.tokens[start]
        return first[1].lower() in CONDITION_STARTS and self.peek()[1] not in (")", "]", "}", "\\}")

    def finish_scalar(self, node: Node, unit: Unit | None) -> Scalar:
        """Take degrees and percent off the top of an expression as its unit."""
        kind, inner = peel(node)
        if kind == "deg":
            following = self.peek()
            if following[0] in ("sym", "word") and following[1] in TEMPERATURES:
                self.position += 1
                return Scalar(inner, read_unit([("word", TEMPERATURES[following[1]])]))
            return Scalar(inner, unit if unit is not None and unit.factor is not None else DEGREE)
        if kind == "pct":
            return Scalar(inner, PERCENT)
        return Scalar(node, unit)

    # --- sets ---------------------------------------------------------------------------------------------------

    def set_expression(self) -> Any:
        value = self.sum()
        while True:
            kind, name = self.peek()
            if kind == "cmd" and name in ("cup", "cap", "setminus"):
                self.position += 1
            elif (kind, name) == ("op", "-") and not isinstance(value, tuple):
                self.position += 1
                name = "setminus"
            else:
                return value
            left = Scalar(value) if isinstance(value, tuple) else value
            right = self.sum()
            value = SetOperation(name, left, Scalar(right) if isinstance(right, tuple) else right)

    # --- arithmetic: a method returns a Node, or a Value where a bracket held a structure --------------------------

    def sum(self) -> Any:
        self.deeper()
        value: Any
        sign = self._plus_minus()
        value = ("pm", ("num", Fraction(0), ""), self._node(self.product()), sign) if sign else self.product()
        while True:
            operator = self.accept("+", "-") if isinstance(value, tuple) else None
            sign = self._plus_minus() if operator is None and isinstance(value, tuple) else None
            if sign:
                value = ("pm", value, self._node(self.product()), sign)
            elif operator:
                right = self._node(self.product())
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
    def _node(value: Any) -> Node:
        if not isinstance(value, tuple):
            raise ReadError("arithmetic with a structure")
        return value

    def product(self) -> Any:
        value = self.unary()
        if not isinstance(value, tuple):
            return value
        while True:
            if self.accept("*"):
                value = ("mul", value, self._node(self.unary()))
            elif self.accept("/"):
                divisor = self._node(self.unary())
                while self.tight and self.starts_atom() and self.peek()[1] != "(":
                    divisor = ("mul", divisor, self._node(self.power()))
                value = ("div", value, divisor)
            elif self.accept(":"):
                value = ("fn", "ratio", value, self._node(self.unary()))
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
        right = self._node(self.power())
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
            return value in ("(", "[", "{", "\\{") or (value == "|" and self.bar_opens())
        return kind == "cmd" and value not in (
            "cup", "cap", "setminus", "pm", "mp", "mod", "pmod", "bmod", "rfloor", "rceil", "rangle", "end", "degrees",
            "quad", "to", "rightarrow", "implies", "equiv", "sim", "subset", "notin", "Rightarrow", "iff", "choose",
        )  # fmt: skip

    def bar_opens(self) -> bool:
        return self.bars == 0

    bars = 0

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
        value = self._node(self.atom())
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
            if depth == 0 and value in GREEK:
                return

    def application(self, function: Node) -> Node | None:
        """`y(t)`, `I(0)`, `u(x, y)`: a letter before brackets that hold letters or numbers alone."""
        offset, arguments = 1, []
        while True:
            kind, value = self.peek(offset)
            if kind not in ("sym", "num") and not (kind == "cmd" and value in GREEK):
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

    # --- atoms --------------------------------------------------------------------------------------------------

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
        if kind == "op" and value in BRACKET_PAIRS:
            self.position += 1
            return self.bracket(value)
        if kind == "op" and value == "|":
            self.position += 1
            return self.bars_around()
        raise ReadError(f"unexpected {value!r}")

    def bracket(self, opener: str) -> Any:
        """A grouping, a tuple, an interval or a set."""
        self.deeper()
        closers = BRACKET_PAIRS[opener]
        saved, self.bars = self.bars, 0
        builder = opener == "\\{" and self.skip_set_variable()
        items = self.items(closers)
        self.bars = saved
        closer = self.accept(*closers)
        if closer is None:
            raise ReadError(f"{opener} is not closed")
        self.depth -= 1
        if builder:
            return items[0] if len(items) == 1 else Group("", tuple(items))
        if opener == "\\{":
            return Group("{}", tuple(items))
        if len(items) > 1:
            return Group("{}" if opener == "{" else opener + closer, tuple(items))
        only = items[0]
        if isinstance(only, Scalar) and BRACKET_PAIRS[opener][0] == closer:
            return unpeel(only)
        if isinstance(only, (Relation, Text)) and opener != "{":
            raise ReadError("a relation in brackets")
        return only

    def skip_set_variable(self) -> bool:
        r"""Step over `x |` or `x \in \mathbb{R} :` at the head of a set given by a condition."""
        if self.peek()[0] != "sym":
            return False
        offset = 1
        if self.peek(1) == ("op", "in"):
            offset = 6 if self.peek(3) == ("op", "{") else 4
        if self.peek(offset) not in (("op", "|"), ("op", ":")):
            return False
        self.position += offset + 1
        return True

    def bars_around(self) -> Node:
        self.deeper()
        self.bars += 1
        inner = self._node(self.sum())
        self.bars -= 1
        self.expect("|")
        self.depth -= 1
        return ("fn", "abs", inner)

    def argument(self) -> Any:
        """One TeX argument as a node: a brace group, one digit, one letter, one command."""
        kind, value = self.peek()
        if kind == "num" and len(value) > 1 and value.isdigit():
            self.tokens[self.position] = ("num", value[1:])
            return number(value[0])
        if kind == "op" and value == "-":
            raise ReadError("a sign where an argument should be")
        return self._node(self.atom())

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
            inner = self._node(self.sum())
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
        if name in GREEK:
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
            degree = self._node(self.sum())
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
            argument = self.postfix(self._node(self.atom()))
            if self.accept("^"):
                argument = ("pow", argument, self.exponent())
        else:
            negative = self.accept("-") is not None
            argument = self._node(self.power())
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
        low = self._node(self.sum())
        self.expect("}")
        self.expect("^")
        high = self._node(self.atom())
        if kind != "sym":
            raise ReadError(f"\\{name}")
        return (name, variable, low, high, self._node(self.product()))

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


def peel(node: Node) -> tuple[str, Node]:
    """Take `deg` or `pct` off the top, also from under a minus."""
    if node[0] in ("deg", "pct"):
        return node[0], node[1]
    if node[0] == "neg" and node[1][0] in ("deg", "pct"):
        return node[1][0], ("neg", node[1][1])
    return "", node


def unpeel(scalar: Scalar) -> Node:
    """A bracketed scalar as a node; its unit must be one that arithmetic knows."""
    if scalar.unit is None:
        return scalar.node
    if scalar.unit == DEGREE:
        return ("deg", scalar.node)
    if scalar.unit == PERCENT:
        return ("pct", scalar.node)
    raise ReadError("unit in brackets")


def transposed(value: Value) -> Value:
    """The transpose of a matrix; a tuple stays as it is."""
    if isinstance(value, Matrix):
        return Matrix(tuple(zip(*value.rows, strict=True)))
    return value


def is_condition(value: Value) -> bool:
    r"""True for `k \in \mathbb{Z}`: it says what a parameter is, not what the answer is."""
    return (
        isinstance(value, Relation)
        and value.operators == ("in",)
        and isinstance(value.sides[1], NumberSet)
        and value.sides[1].letter[0] in "ZN"
    )


def _only_condition(tokens: list[Token]) -> bool:
    words = [value.lower() for kind, value in tokens if kind == "word"]
    return bool(words) and words[0] in CONDITION_STARTS and all(word in CONDITION_WORDS for word in words)


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


def _letters(node: Node) -> str:
    if node[0] == "sym":
        return str(node[1])
    if node[0] == "mul":
        return _letters(node[1]) + _letters(node[2])
    raise ReadError("accent over an expression")


_NAME_OPERATORS = frozenset({"_", "{", "}", "(", ")", "'", "|", ",", "*", "\\{", "\\}"})


def read_name(tokens: list[Token]) -> Name | None:
    """The name that a side is, or None if it is an expression: `x`, `S_{ABC}`, `f(x)`, `|AB|`, `(x, y)`, `Area`."""
    if not tokens or len(tokens) > 40:
        return None
    depth, base, arguments, subscript = 0, "", [], False
    brackets = 0
    for index, (kind, value) in enumerate(tokens):
        if kind == "op" and value not in _NAME_OPERATORS:
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
        elif kind == "cmd" and value not in GREEK | ACCENTS | {"bold", "frac"}:
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
