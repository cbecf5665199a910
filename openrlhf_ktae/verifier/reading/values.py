"""The values of answers: scalars, texts, bracketed groups, sets, matrices, relations. Plain frozen data.

The arithmetic in a scalar is a `Node`, a tuple that begins with its kind:

    ("num", Fraction, text)      an exact number; `text` is the literal as written, "" if it was computed
    ("sym", name)  ("const", "pi" | "e" | "i" | "inf")
    ("add", a, b)  ("mul", a, b)  ("div", a, b)  ("pow", a, b)  ("neg", a)
    ("pm", a, b, sign)           a + b and a - b (sign "+-"), or a - b and a + b (sign "-+")
    ("fn", name, *arguments)     a function of the table in `evaluate`
    ("app", name, *arguments)    `y(t)`: an unknown function
    ("deg", a)  ("pct", a)       degrees and percent
    ("based", digits, base)      a numeral with its base
    ("sum" | "prod", name, low, high, body)
"""

from dataclasses import dataclass
from typing import Any

Node = tuple[Any, ...]


@dataclass(frozen=True)
class Unit:
    """A unit of measure. `factor` is None for a label that is not a known unit, such as "students"."""

    dimensions: tuple[tuple[str, int], ...]
    factor: Any
    label: str


@dataclass(frozen=True)
class Scalar:
    """One expression, with its unit if one was written."""

    node: Node
    unit: Unit | None = None


@dataclass(frozen=True)
class Text:
    """An answer in words, in a normalised spelling."""

    phrase: str


@dataclass(frozen=True)
class Group:
    """Several values. `brackets` is "" for a bare list, "and" or "or" for inequalities joined by it, else the opening
    and closing character, `{}` for a set, `<>` for a vector, `mod` for a residue and its modulus, `:` for a ratio of
    three terms or more, `cases` for values with their conditions."""

    brackets: str
    items: tuple[Any, ...]


@dataclass(frozen=True)
class Clock:
    """A time on a dial of twelve hours, in seconds; `half` is "a", "p", "24" for 15:45, "0" for 0:45, else empty."""

    seconds: int
    half: str = ""


@dataclass(frozen=True)
class SetOperation:
    """A union, intersection or difference of sets."""

    operator: str
    left: Any
    right: Any


@dataclass(frozen=True)
class NumberSet:
    """The reals, integers, ... by their letter; the empty set is `0`."""

    letter: str


@dataclass(frozen=True)
class Matrix:
    """Rows of values."""

    rows: tuple[tuple[Any, ...], ...]


@dataclass(frozen=True)
class Name:
    """A name such as the left side of `x_1 = 5`, `f(x) = 2x`, `(x, y) = (1, 2)` or `\\text{Area} = 9`."""

    base: str
    label: str = ""
    """The subscript."""
    arguments: tuple[Any, ...] = ()
    """Expressions."""
    words: bool = False
    """Whether it is spelled out in words."""


@dataclass(frozen=True)
class Relation:
    """`a = b < c`: the sides, the operators between them, and for each side that is only a name, the name."""

    sides: tuple[Any, ...]
    operators: tuple[str, ...]
    names: tuple[Name | None, ...]


Value = Scalar | Text | Clock | Group | SetOperation | NumberSet | Matrix | Relation
