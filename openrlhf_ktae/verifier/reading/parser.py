r"""Cleaned text -> a value.

The reader is a recursive descent over tokens: a whole answer is items, an item a relation, a relation sides, a side a
sum with its unit, and so on down to atoms, brackets and commands. It reads what answers are made of and nothing else:
no assignment, no call, no attribute, no lookup of a name in Python. Whatever it does not know raises `ReadError`, and
the caller decides what that means. A method returns a Node, or a Value where it read a structure instead of a number.
"""

import re
from fractions import Fraction
from typing import Any

from .expressions import (
    condition_on,
    divided,
    factors,
    is_proper,
    is_whole,
    mixed_number,
    number,
    only_condition,
    operand,
    peel,
    scaled,
    unpeel,
)
from .lexer import ReadError, Token, tokenise
from .names import read_name
from .nodes import spelled, walk
from .notation import (
    ACCENTS,
    BRACKET_PAIRS,
    CLOSING_COMMANDS,
    CURRENCIES,
    FUNCTIONS,
    INVERSE,
    LIST_FUNCTIONS,
    MATRICES,
    NUMBER_SETS,
    PUNCTUATION,
    RELATIONS,
    SYMBOLS,
    TEMPERATURES,
    UNIT_VECTORS,
)
from .units import DEGREE, PERCENT, read_unit
from .values import Clock, Group, Matrix, Name, Node, NumberSet, Relation, Scalar, SetOperation, Text, Unit, Value
from .words import (
    CHANGING,
    CONDITION_STARTS,
    CONNECTIVES,
    FILLERS,
    MULTIPLIERS,
    NUMBER_WORDS,
    OPENERS,
    OPPOSITES,
    VERBS,
    is_word,
    phrase,
    spoken_number,
)

MAX_DEPTH = 150  # of nested brackets and signs; one bracket takes three
MAX_TERMS = 400  # of one sum or product; the tree is as deep as there are terms
OPENING = frozenset({"(", "[", "{", "\\{"})
MAX_ARGUMENT_TOKENS = 40  # of the bracket behind a letter
APPLIED = frozenset({"f", "F", "zeta", "Gamma"})  # letters that are never a factor before a bracket
OFTEN_APPLIED = dict.fromkeys(("g", "h", "G", "H", "phi", "psi", "Phi", "Psi"), "xn") | {"T": "n", "S": "n", "u": "t"}
_ATOM = r"(?:[1axnt]|\([+-]*[1axnt]\))"
_ARGUMENTS = re.compile(rf"\({_ATOM}(,[+-]*{_ATOM})*\)")
_OF_VARIABLE = re.compile(r"\([1+*/-]*([xnt])[1+*/-]*\)")  # a shifted or scaled variable as the argument of these
PROBABILITIES = frozenset({"P", "Pr", "E"})
EVENT_MARKS = RELATIONS | {"|", "cap", "cup"}
END: Token = ("end", "")
ZERO: Node = ("num", Fraction(0), "")
MINUS_ONE: Node = ("neg", ("num", Fraction(1), "1"))
LISTS = ("()", "[]", "{}", "")
INEQUALITIES = frozenset({"<", ">", "<=", ">=", "!="})
_PLAIN_WORDS = re.compile(r"[A-Za-z][A-Za-z' -]*")
_OUTWARD_INTERVAL = re.compile(r"^(?:\s*[a-z]\s*\\in)?\s*\]|\[\s*$")
_ANY_INTERVAL = re.compile(r"([\[\]])([^\[\]]*,[^\[\]]*)([\[\]])")
_NUMERAL = re.compile(r"\(?(?:\\(?:text|mathrm)\{)?([0-9A-Z]{1,60})\}?\)?_\{?(\d{1,2})\}?")  # 1A_{16}
_CLOCK = re.compile(r"(\d{1,2}):([0-5]\d)(?::([0-5]\d))?\s*(?:([ap])\.?\s?m\.?)?", re.IGNORECASE)
_STYLED = re.compile(r"\\(?:text|mathrm|textrm|mbox)\s*\{([^{}]*)\}|[{}]")


def read_clock(text: str) -> Clock | None:
    """A time of day such as `3:45`, `15:45`, `3:45 p.m.`; None for other texts."""
    plain = _STYLED.sub(lambda m: m[1] or "", text).strip()
    match = _CLOCK.fullmatch(re.sub(r"^[A-Za-z ]{1,40} (?:is|at) +", "", plain))
    if match is None or int(match[1]) > 24:
        return None
    hour = int(match[1]) % 24
    half = (match[4] or "").lower() or ("24" if hour > 12 else "" if hour else "0")
    return Clock(3600 * (hour % 12 or 12) + 60 * int(match[2]) + int(match[3] or 0), half)


def read(text: str, join_commas: bool = True, tight_division: bool = False) -> Value:
    """The value of a cleaned answer. Raises ReadError if it cannot be read completely as one value."""
    words = re.split("[ -]", text)
    if len(words) > 1 and _PLAIN_WORDS.fullmatch(text) and any(len(word) > 1 and is_word(word) for word in words):
        text = f"\\text{{{text}}}"
    if _OUTWARD_INTERVAL.search(text):
        text = _outward_intervals(text)
    numeral = _NUMERAL.fullmatch(text.replace(" ", ""))
    if numeral is not None and 10 < int(numeral[2]) <= 36:
        return Scalar(("based", numeral[1], int(numeral[2])))
    tokens = tokenise(text.removesuffix(".") if not text.endswith("..") else text, join_commas)
    while tokens and tokens[-1] in (("op", "."), ("op", "row")):
        tokens.pop()
    tokens = _after_introduction(tokens)
    return Parser(tokens, tight_division).whole()


def _after_introduction(tokens: list[Token]) -> list[Token]:
    r"""Drop an introduction: `\text{The value of } x \text{ is } 9` -> 9, `\text{Therefore, } x = 9` -> x = 9."""
    if tokens[:1] and tokens[0][0] == "word" and tokens[0][1].lower() in OPENERS:
        tokens = tokens[1 + (tokens[1:2] == [("op", ",")]) :]
    verbs = [i for i, (kind, word) in enumerate(tokens) if kind == "word" and word.lower() in VERBS]
    if not verbs or not 0 < verbs[0] < len(tokens) - 1 or len(verbs) > 1:
        return tokens
    before = tokens[: verbs[0]]
    words = {word.lower() for kind, word in before if kind == "word"}
    if not words or (words - FILLERS) & (CHANGING | CONNECTIVES | CONDITION_STARTS) or ("op", ",") in before:
        return tokens
    return tokens[verbs[0] + 1 :]


def _outward_intervals(text: str) -> str:
    """Write the open ends of French intervals such as `]2, 3]` and `[2, 3[` as parentheses."""
    left, right = {"]": "("}, {"[": ")"}
    return _ANY_INTERVAL.sub(lambda m: left.get(m[1], m[1]) + m[2] + right.get(m[3], m[3]), text)


class Parser:
    """Reads one list of tokens."""

    def __init__(self, tokens: list[Token], tight_division: bool = False) -> None:
        self.tokens = tokens
        self.position = 0
        self.depth = 0
        self.bars = 0  # open absolute value bars in the bracket that is being read
        self.joint = ""  # "and" or "or" between the last values read, if they are inequalities
        self.tight = tight_division

    def whole(self) -> Value:
        """All tokens as one value."""
        items = self._quotient(self.items(()), ())
        if self.position < len(self.tokens):
            raise ReadError(f"unexpected {self.peek()[1]!r}")
        return items[0] if len(items) == 1 else Group(self.joint, tuple(items))

    def items(self, closers: tuple[str, ...]) -> list[Value]:
        """Values separated by commas, semicolons, `and`, `or`, up to a closer or the end; sets `joint`."""
        items: list[Value] = []
        joints = set()
        while True:
            value = self.item(closers)
            if value is not None:
                items.append(value)
            before = self.position
            if not self._separator():
                break
            joints |= {word.lower() for kind, word in self.tokens[before : self.position] if kind == "word"}
        bounds = [item for item in items if isinstance(item, Relation) and INEQUALITIES & set(item.operators)]
        unknowns = {side for item in bounds for side in item.sides}
        stated = [item for item in items if (at := condition_on(item)) is None or at in unknowns] or items
        if not stated:
            raise ReadError("empty")
        self.joint = "" if stated != bounds or not joints else "or" if "or" in joints else "and"
        return stated

    def _separator(self) -> bool:
        """Take `,`, `;`, `and`, `or` or `, and`."""
        found = self.accept(",", ";", "row") is not None
        kind, value = self.peek()
        if kind == "word" and value.lower() in CONNECTIVES:
            self.position += 1
            return True
        return found

    def _at_end_of_item(self, closers: tuple[str, ...]) -> bool:
        kind, value = self.peek()
        if kind == "op":
            return value in closers or value in (",", ";", "row")
        if kind == "cmd":
            return value in ("end", "rangle", "over", "choose")
        return kind == "end" or (kind == "word" and value.lower() in CONNECTIVES)

    def item(self, closers: tuple[str, ...]) -> Value | None:
        r"""One relation, value or text. None for a condition on a parameter (`k \in \mathbb{Z}`, `for all n`)."""
        start, depth, bars = self.position, self.depth, self.bars
        self.deeper()
        try:
            value = self.relation()
            if self._at_end_of_item(closers):
                self.depth = depth
                return value
        except ReadError:
            pass
        self.position, self.depth, self.bars = start, depth, bars
        return self._text(closers)

    def _text(self, closers: tuple[str, ...]) -> Value | None:
        """Everything up to the end of the item, as words."""
        start = self.position
        while not self._at_end_of_item(closers):
            self.position += 1
        taken = self.tokens[start : self.position]
        if not any(kind == "word" for kind, _ in taken):
            raise ReadError("not readable")
        if only_condition(taken):
            return None
        if all(kind == "word" or value in PUNCTUATION for kind, value in taken):
            words = " ".join(value for _, value in taken)
            return Text(phrase(words) or words)
        return Text(" ".join(value.lower() if kind == "word" else value for kind, value in taken))

    def relation(self) -> Value:
        """Sides with relations between them, or a single side."""
        sides: list[Value] = []
        operators: list[str] = []
        names: list[Name | None] = []
        kind, label = self.peek()
        if kind == "word" and label.lower() in OPPOSITES and self.peek(1) == ("op", ":"):
            self.position += 2
            sides, operators, names = [Text(label.lower())], ["="], [Name(label.lower(), words=True)]
        while True:
            start = self.position
            sides.append(self.side())
            end, operator = self.position, self.accept(*RELATIONS)
            if operator or operators:
                names.append(read_name(self.tokens[start:end], sides[-1]))
            if operator is None:
                break
            operators.append(operator)
        sides[-1] = self._residue(sides[-1])
        return Relation(tuple(sides), tuple(operators), tuple(names)) if operators else sides[0]

    def _residue(self, value: Value) -> Value:
        r"""`3 \pmod 7`, `3 (mod 7)`: a residue with its modulus."""
        start = self.position
        bracket = self.accept("(") is not None
        if self.peek()[0] != "cmd" or self.peek()[1] not in ("pmod", "bmod", "mod"):
            self.position = start
            return value
        self.position += 1
        modulus = Scalar(operand(self.product()))
        if bracket:
            self.expect(")")
        return Group("mod", (value, modulus))

    def side(self) -> Value:
        """`[fillers] value [unit] [condition]`."""
        while self.at_word() and self._is_filler() and self.peek(1)[0] != "end" and self.peek(1)[1] not in RELATIONS:
            self.position += 1
            self.accept(":")
        self.accept("~=")
        unit = self._currency()
        if self.at_word():
            return self._words()
        value = self.set_expression()
        if self.peek()[0] == "word" and self.peek()[1].lower() in MULTIPLIERS and isinstance(value, tuple):
            value = ("mul", value, ("num", Fraction(MULTIPLIERS[self.take()[1].lower()]), ""))  # 3 million
        in_degrees = isinstance(value, tuple) and peel(value)[0] == "deg" and self.peek()[1] in TEMPERATURES
        if self.at_word() and not in_degrees:
            unit = self._rate(unit) if unit is not None else self._unit()
        if isinstance(value, tuple):
            return self._finished(value, unit)
        if unit is not None and unit.factor is not None:
            raise ReadError("unit behind a structure")
        return value

    def _is_filler(self) -> bool:
        """True before a word that does not change the value, unlike `largest` in `largest circle`."""
        word, offset = self.peek()[1].lower(), 1
        while self.peek(offset)[0] == "word":
            offset += 1
        return word in FILLERS and (word not in OPPOSITES or self.peek(offset) not in (("end", ""), ("op", ",")))

    def at_word(self) -> bool:
        """True before a word that is not a connective."""
        kind, value = self.peek()
        return kind == "word" and value.lower() not in CONNECTIVES

    def _words(self) -> Value:
        """A side of words only: a name such as `Area`, a number word, a text."""
        start = self.position
        while self.at_word():
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

    def _currency(self) -> Unit | None:
        """A currency before its amount."""
        kind, value = self.peek()
        follows = self.peek(1)
        if kind == "word" and value in CURRENCIES and follows == ("op", "."):
            follows = self.peek(2)
            self.position += follows[0] == "num"
        if kind == "word" and value in CURRENCIES and (follows[0] == "num" or follows == ("cmd", "frac")):
            self.position += 1
            return read_unit([(kind, value)])
        return None

    def _rate(self, currency: Unit) -> Unit:
        """The unit of `$45 per hour`; the currency itself if the words after the amount add no unit."""
        following = self._unit()
        if following is None or following.dimensions in ((), currency.dimensions):
            return currency
        return Unit((), None, f"{currency.label} {following.label}")

    def _unit(self) -> Unit | None:
        """The unit or condition that ends a value. Raises ReadError if the words mean something else."""
        start = self.position
        while self._in_unit(start):
            self.position += 1
        taken = self.tokens[start : self.position]
        if only_condition(taken):
            return None
        unit = read_unit(taken)
        if unit is None:
            raise ReadError("words behind a value")
        return unit

    def _in_unit(self, start: int) -> bool:
        """True if the next token belongs to the unit or condition that began at `start`."""
        kind, value = self.peek()
        if kind in ("end", "word"):
            return self.at_word()
        before = self.tokens[self.position - 1][1]
        inside = [token[1] for token in self.tokens[start : self.position]]
        if kind == "op" and value in ("}", ")"):
            return inside.count({"}": "{", ")": "("}[value]) > inside.count(value)
        if self.tokens[start][1].lower() in CONDITION_STARTS:
            return value not in (",", ";", "]", "\\}", "&", "row")
        if kind in ("num", "sym"):
            return before in ("^", "-", "{", "/", "*")
        if value in ("^", "/", "*", "-", "."):
            return self.peek(1)[0] in ("word", "num", "sym") or self.peek(1) in (("op", "{"), ("op", "-"))
        return value in ("{", "(") and before in ("^", "/")

    def _finished(self, node: Node, unit: Unit | None) -> Scalar:
        """Make degrees and percent at the top of an expression its unit."""
        kind, inner = peel(node)
        if kind == "deg":
            scale = TEMPERATURES.get(self.peek()[1])
            if scale is not None:
                self.position += 1
                return Scalar(inner, read_unit([("word", scale)]))
            return Scalar(inner, unit if unit is not None and unit.factor is not None else DEGREE)
        return Scalar(inner, PERCENT) if kind == "pct" else Scalar(node, unit)

    def set_expression(self) -> Any:
        r"""Sets with `\cup`, `\cap`, `\setminus` between them, or one expression."""
        value = self.sum()
        while True:
            kind, name = self.peek()
            if (kind, name) == ("op", "-") and not isinstance(value, tuple):
                name = "setminus"
            elif kind != "cmd" or name not in ("cup", "cap", "setminus"):
                return value
            self.position += 1
            sides = [Scalar(side) if isinstance(side, tuple) else side for side in (value, self.sum())]
            value = SetOperation(name, *sides)

    def sum(self) -> Any:
        """Terms with `+`, `-`, `\\pm`, `\\mp` between them."""
        self.deeper()
        sign = self.accept("+-", "-+")
        value = ("pm", ZERO, operand(self.product()), sign) if sign else self.product()
        terms = 1
        while isinstance(value, tuple) and terms < MAX_TERMS:
            terms += 1
            if operator := self.accept("+", "-"):
                right = operand(self.product())
                value = ("add", value, right if operator == "+" else ("neg", right))
            elif sign := self.accept("+-", "-+"):
                value = ("pm", value, operand(self.product()), sign)
            else:
                break
        self.depth -= 1
        return value

    def product(self) -> Any:
        """Factors with `*`, `/`, `:` between them, or side by side."""
        value = self.unary()
        for _ in range(MAX_TERMS):
            if not isinstance(value, tuple):
                return value
            if self.accept("*"):
                right = self.unary()
                value = scaled(value, right) if isinstance(right, Matrix) else ("mul", value, operand(right))
            elif self.accept("/"):
                value = divided(value, self._divisor(value))
            elif self.peek() == ("op", ":") or (self.peek() == ("word", "to") and self.peek(1)[0] == "num"):
                return self._ratio(value)
            elif self.peek() == ("cmd", "begin"):
                return scaled(value, self.power())
            elif self.starts_atom() and not (value[0] == "deg" and self.peek()[1] in TEMPERATURES):
                value = self.juxtapose(value)
            else:
                break
        return value

    def _ratio(self, first: Node) -> Any:
        """`a : b` is a quotient; three or more terms form a group."""
        terms = [first]
        while len(terms) < MAX_TERMS and (self.accept(":") or self.peek() == ("word", "to")):
            self.position += self.peek() == ("word", "to")
            terms.append(operand(self.unary()))
        if len(terms) == 2:
            return ("fn", "ratio", *terms)
        return Group(":", tuple(Scalar(term) for term in terms))

    def _divisor(self, above: Node) -> Node:
        """The divisor after a slash: one factor, or with `tight_division` all following factors up to a bracket."""
        mark = next((part[1] for part in walk(factors(above)[0]) if part[0] == "sym"), "")
        differential = self.peek()[1] in ("d", "partial") and self.peek()[1] == mark
        divisor = operand(self.unary())
        if differential and self.starts_atom():
            return ("mul", divisor, operand(self.power()))
        while self.tight and self.starts_atom() and self.peek()[1] != "(":
            divisor = ("mul", divisor, operand(self.power()))
        return divisor

    def juxtapose(self, left: Node) -> Any:
        """Two factors side by side: a product, unless they are a whole number and a proper fraction."""
        after_number = self.tokens[self.position - 1][0] == "num"
        mixed = after_number and is_whole(left)
        if after_number and self.peek()[0] == "num":
            if not mixed or self.peek(1) != ("op", "/") or self.peek(2)[0] != "num":
                raise ReadError("two numbers side by side")
            right: Node = ("div", number(self.peek()[1]), number(self.peek(2)[1]))
            if not is_proper(right):
                raise ReadError("two numbers side by side")
            self.position += 3
        else:
            mixed = mixed and self.peek() == ("cmd", "frac")
            structure = self.power()
            if isinstance(structure, Group) and structure.brackets in ("(]", "[)") and left[0] == "sym":
                return Relation((Scalar(left), structure), ("in",), (Name(left[1]), None))
            right = operand(structure)
        if mixed and right[0] in ("deg", "pct") and is_proper(right[1]):
            return (right[0], mixed_number(left, right[1]))
        return mixed_number(left, right) if mixed and is_proper(right) else ("mul", left, right)

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
        sign = self.accept("-", "+")
        if sign is None:
            return self.power()
        self.deeper()
        value = self.unary()
        self.depth -= 1
        return ("neg", operand(value)) if sign == "-" else value

    def power(self) -> Any:
        """An atom with its exponent; the transpose of a structure."""
        value = self.postfix(self.atom())
        if not self.accept("^"):
            return value
        if not isinstance(value, tuple):
            return self._transposed(value)
        self.deeper()
        exponent = self.exponent()
        inverse = value[0] == "sym" and value[1] in {*APPLIED, *OFTEN_APPLIED} and exponent == MINUS_ONE
        applied = self.application(("sym", f"{value[1]}^-1")) if inverse else None
        value = self.postfix(applied or ("pow", value, exponent))
        self.depth -= 1
        return value

    def _transposed(self, value: Value) -> Value:
        if self.argument() not in (("sym", "T"), ("sym", "t"), ("sym", "top")):
            raise ReadError("power of a structure")
        return Matrix(tuple(zip(*value.rows, strict=True))) if isinstance(value, Matrix) else value

    def exponent(self) -> Node:
        """The exponent after `^`: a signed atom, which may have an exponent itself."""
        self.deeper()
        if self.accept("-"):
            value: Node = ("neg", self.exponent())
        else:
            self.accept("+")
            value = operand(self.atom())
            if self.accept("^"):
                value = ("pow", value, self.exponent())
        self.depth -= 1
        return value

    def postfix(self, value: Any) -> Any:
        """Factorials, percent, degrees, subscripts, primes and arguments after an atom."""
        for _ in range(MAX_TERMS):
            if not isinstance(value, tuple) or self.peek()[0] not in ("op", "cmd"):
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
        """`x_{0}` is a separate symbol, `52_8` a numeral with its base."""
        name = self.skip_argument()
        if value[0] == "num" and name.isdigit() and len(name) <= 2 and value[2].isalnum():
            return ("based", value[2], int(name))
        if value[0] != "sym":
            raise ReadError("subscript")
        letter, primes = value[1].rstrip("'"), "'" * value[1].count("'")
        return ("sym", f"{letter}_{name}{primes}")

    def application(self, function: Node) -> Node | None:
        """`y(t)`, `I(0)`, `u(x, y)`: a letter before a bracket of letters or numbers; for `f`, of any expressions."""
        event = self._event() if function[1] in PROBABILITIES else None
        if event is not None:
            return ("app", function[1], event)
        if self.peek() != ("op", "(") or not (function[1] in APPLIED or self._is_applied(function[1])):
            return None
        self.position += 1
        arguments = [operand(self.sum())]
        while self.accept(","):
            arguments.append(operand(self.sum()))
        self.expect(")")
        return ("app", function[1], *arguments)

    def _event(self) -> Node | None:
        r"""The event in `P(X > 2)` and `\Pr[A \mid B]` as one symbol; None for other brackets."""
        closer = {"(": ")", "[": "]"}.get(self.peek()[1])
        values = [value for _, value in self.tokens[self.position : self.position + MAX_ARGUMENT_TOKENS]]
        if closer is None or closer not in values:
            return None
        inside = values[1 : values.index(closer)]
        random = inside[:1] in (["X"], ["Y"], ["Z"])
        if not random and not any(value in EVENT_MARKS or (value.isalpha() and len(value) > 2) for value in inside):
            return None
        self.position += len(inside) + 2
        return ("sym", " ".join(inside))

    def _is_applied(self, letter: str) -> bool:
        """True if the next bracket holds arguments: letters or numbers; for `g` also `2x - 1`, for `T` also `n - 1`."""
        ahead = ""
        for kind, value in self.tokens[self.position : self.position + MAX_ARGUMENT_TOKENS]:
            named = kind == "sym" or (kind == "cmd" and value in SYMBOLS)
            ahead += value if kind == "op" or value in [*"xnt"] else "1" if kind == "num" else "a" if named else "?"
        shifted = _OF_VARIABLE.match(ahead)
        return bool(_ARGUMENTS.match(ahead) or (shifted and shifted[1] in OFTEN_APPLIED.get(letter, "")))

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
        inner = operand(self.sum())
        self.bars -= 1
        self.expect("|")
        self.depth -= 1
        return ("fn", "abs", inner)

    def argument(self) -> Node:
        """One TeX argument as a node: a brace group, one digit, one letter, one command."""
        kind, value = self.peek()
        if kind == "num" and len(value) > 1 and value.isdigit():
            self.tokens[self.position : self.position + 1] = [("num", value[0]), ("num", value[1:])]
        return operand(self.atom())

    def bracket(self, opener: str) -> Any:
        """A grouping, a tuple, an interval or a set."""
        self.deeper()
        closers = BRACKET_PAIRS[opener]
        bars, self.bars = self.bars, 0
        builder, domain = self._set_variable() if opener == "\\{" else (False, None)
        items = [] if opener == "\\{" and self.peek() == ("op", "\\}") else self.items(closers)
        joint = self.joint
        self.bars = bars
        items = self._quotient(items, closers) if opener == "{" else items
        closer = self.accept(*closers)
        if closer is None:
            raise ReadError(f"{opener} is not closed")
        self.depth -= 1
        if builder:
            items += [domain] if domain is not None else []
            return items[0] if len(items) == 1 else Group(joint if domain is None else "and", tuple(items))
        if opener == "\\{":
            return Group("{}", tuple(items)) if items else NumberSet("0")
        if len(items) > 1:
            return Group("{}" if opener == "{" else opener + closer, tuple(items))
        return self._grouped(items[0], opener, closer)

    def _set_variable(self) -> tuple[bool, Relation | None]:
        r"""Skip `x |` or `x \in \mathbb{Z} :` at the start of a set with a condition; return any domain of integers."""
        start = self.position
        kind, letter = self.take()
        domain = None
        if kind == "sym" and self.accept("in"):
            try:
                numbers = self.atom()
            except ReadError:
                numbers = None
            if isinstance(numbers, NumberSet) and numbers.letter[0] != "R":
                domain = Relation((Scalar(("sym", letter)), numbers), ("in",), (Name(letter), None))
        if kind == "sym" and self.accept("|", ":"):
            return True, domain
        self.position = start
        return False, None

    def _quotient(self, items: list[Value], closers: tuple[str, ...]) -> list[Value]:
        r"""`a \over b` and `a \choose b`, which must fill their braces."""
        if len(items) != 1 or self.peek() not in (("cmd", "over"), ("cmd", "choose")):
            return items
        above, name = items[0], self.take()[1]
        below = self.items(closers)[0]
        if not isinstance(above, Scalar) or not isinstance(below, Scalar):
            raise ReadError(f"\\{name}")
        quotient = divided(above.node, below.node)
        return [Scalar(quotient if name == "over" else ("fn", "binom", above.node, below.node))]

    @staticmethod
    def _grouped(value: Value, opener: str, closer: str) -> Any:
        """The value in a bracket around a single value."""
        if BRACKET_PAIRS[opener][0] != closer:
            raise ReadError("half an interval")
        if isinstance(value, Scalar):
            return unpeel(value)
        if isinstance(value, (Relation, Text)) and opener != "{":
            raise ReadError("a relation in brackets")
        return value

    def command(self, name: str) -> Any:
        """The expression that begins with a command. Raises ReadError for a command that answers do not use."""
        match name:
            case "pi" | "infty":
                return ("const", "pi" if name == "pi" else "inf")
            case "rational":
                return ("num", Fraction(int(self.skip_argument()), int(self.skip_argument())), "")
            case "frac":
                return divided(self.argument(), self.argument())
            case "binom":
                return ("fn", "binom", self.argument(), self.argument())
            case "sqrt" | "radical":
                return self._root()
            case "lfloor" | "lceil":
                return self._rounded(name)
            case "langle":
                return self._vector()
            case "sum" | "prod":
                return self._series(name)
            case "mathbb" | "emptyset":
                return self._number_set(name)
            case "bold":
                return self._bold()
            case "begin":
                return self._matrix()
        if name in FUNCTIONS:
            return self.function(name)
        if name in ACCENTS:
            return self.accent(name)
        if name in SYMBOLS:
            return ("sym", name)
        raise ReadError(f"\\{name}")

    def _root(self) -> Node:
        degree = None
        if self.accept("["):
            degree = operand(self.sum())
            self.expect("]")
        inner = number(self.take()[1]) if self.peek()[0] == "num" else self.argument()
        return ("fn", "sqrt", inner) if degree is None else ("fn", "root", inner, degree)

    def _rounded(self, name: str) -> Node:
        inner = operand(self.sum())
        if self.take() != ("cmd", "r" + name[1:]):
            raise ReadError("floor or ceiling is not closed")
        return ("fn", name[1:], inner)

    def _vector(self) -> Group:
        items = self.items(())
        if self.take() != ("cmd", "rangle"):
            raise ReadError("angle bracket is not closed")
        return Group("<>", tuple(items))

    def _series(self, name: str) -> Node:
        self.expect("_")
        self.expect("{")
        kind, variable = self.take()
        self.expect("=")
        low = operand(self.sum())
        self.expect("}")
        self.expect("^")
        high = operand(self.atom())
        if kind != "sym":
            raise ReadError(f"\\{name}")
        return (name, variable, low, high, operand(self.product()))

    def _number_set(self, name: str) -> NumberSet:
        letter = "0" if name == "emptyset" else self.skip_argument()
        if letter not in NUMBER_SETS:
            raise ReadError("\\mathbb")
        mark = self.accept("^", "_")
        return NumberSet(letter if mark is None else letter + mark + self.skip_argument())

    def _bold(self) -> Any:
        """Bold letters are the letters; i, j, k are the unit vectors."""
        value = self.atom()
        letter = value[1] if isinstance(value, tuple) and value[0] in ("sym", "const") else ""
        return ("sym", UNIT_VECTORS[letter]) if letter in UNIT_VECTORS else value

    def _matrix(self) -> Matrix | Group:
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
        if kind == "cases":  # with one column a system of equations
            values = (Group("()", tuple(row)) if len(row) > 1 else row[0] for row in rows)
            return Group("cases" if len(rows[0]) > 1 else "", tuple(values))
        return Matrix(tuple(tuple(row) for row in rows))

    def accent(self, name: str) -> Node:
        r"""`\dot{x}`, `\overline{AB}`: a separate symbol; dots are derivatives."""
        letters = spelled(self.argument())
        if not letters:
            raise ReadError("accent over an expression")
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
        r"""Only `(…)`, or else the factors up to the next sign, function or bracket: `\sin 2t`."""
        self.deeper()
        if self.peek() in (("op", "("), ("op", "["), ("op", "{")):
            opener = self.peek()[1]
            argument = self.postfix(operand(self.atom()))
            if opener != "(" and self.accept("^"):
                argument = ("pow", argument, self.exponent())
        else:
            negative = self.accept("-") is not None
            argument = operand(self.power())
            while self.starts_atom() and self.peek()[1] not in FUNCTIONS | {"(", "["}:
                argument = self.juxtapose(argument)
            argument = ("neg", argument) if negative else argument
        self.depth -= 1
        return argument

    def peek(self, offset: int = 0) -> Token:
        """The token at an offset from the position, without taking it."""
        try:
            return self.tokens[self.position + offset]
        except IndexError:
            return END

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
        """Take this operator or raise ReadError."""
        if self.accept(value) is None:
            raise ReadError(f"expected {value}, found {self.peek()[1]!r}")

    def deeper(self) -> None:
        """Count one more level of nesting; the caller lowers `depth` again."""
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise ReadError("nested too deeply")

    def skip_argument(self) -> str:
        """Skip one TeX argument, a brace group or one token, and return its text without braces."""
        start, depth = self.position, 0
        while True:
            kind, value = self.take()
            if kind == "end":
                raise ReadError("unbalanced braces")
            if kind == "op":
                depth += (value == "{") - (value == "}")
            if depth == 0 and (kind != "cmd" or value in SYMBOLS):
                return "".join(v for _, v in self.tokens[start : self.position] if v not in "{}")
