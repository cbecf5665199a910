"""What an answer can be: a scalar, a text, a bracketed group, a set, a matrix, a relation. Plain frozen data.

The arithmetic inside a scalar is a `Node`: a tuple whose first entry is its kind.

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

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Node = tuple[Any, ...]


@dataclass(frozen=True)
class Unit:
    """A unit of measure. `factor` is None for a label that is no known unit, such as "students"."""

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
    """An answer in words, in one spelling."""

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
    """The left side of `x_1 = 5`, `f(x) = 2x`, `(x, y) = (1, 2)`, `\\text{Area} = 9`: what is said to be something."""

    base: str
    label: str = ""
    """The subscript."""
    arguments: tuple[Any, ...] = ()
    """Expressions."""
    words: bool = False
    """It is spelled out."""


@dataclass(frozen=True)
class Relation:
    """`a = b < c`: sides, the operators between them, and the sides' names where they are mere names."""

    sides: tuple[Any, ...]
    operators: tuple[str, ...]
    names: tuple[Name | None, ...]


Value = Scalar | Text | Clock | Group | SetOperation | NumberSet | Matrix | Relation
