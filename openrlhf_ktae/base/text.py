"""Helpers for messages and tables: one-line errors, truncated values, the closest known name, figures, Markdown."""

import difflib
from collections.abc import Iterable, Sequence
from typing import Any

SHOWN = 120  # characters


def short(error: BaseException | str, shown: int = SHOWN) -> str:
    """Return the message of an error on one line, or its type if it has none."""
    return " ".join(str(error).split())[:shown] or type(error).__name__


def short_repr(value: Any, shown: int = SHOWN) -> str:
    """Return the `repr` of a value, truncated to `shown` characters."""
    text = repr(value)
    return text if len(text) <= shown else f"{text[:shown]}..."


def nearest(word: str, known: Sequence[str]) -> str:
    """Return `"; did you mean X?"` for the closest of `known`, or a pointer to --help."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    tail = [name for name in known if name.rsplit(".", 1)[-1].lstrip("-") == word.rsplit(".", 1)[-1].lstrip("-")]
    best = (tail or close)[:1]
    return f"; did you mean {best[0]}?" if best else "; --help lists all options"


def joined(value: Any) -> str:
    """Return an option's value as on a command line: a list as its words, and `true`, `false` or `none`."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def figure_cell(
    value: float | None, low: float | None = None, high: float | None = None, *, scale: float = 1.0, form: str = ".1f"
) -> str:
    """Return `value [low, high]`, each times `scale`; `-` without a value, no interval if an end is None or NaN."""
    if value is None or value != value:
        return "-"
    text = f"{value * scale:{form}}"
    if low is None or high is None or low != low:
        return text
    return f"{text} [{low * scale:{form}}, {high * scale:{form}}]"


def table_lines(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table; all columns but the first are right-aligned."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return [f"| {' | '.join(line)} |" for line in lines]
