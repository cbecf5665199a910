"""Edits of a gold that keep or change its value: answers whose verdict is known without labels."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator

Edit = Callable[[str, random.Random], str | None]


def _at(pattern: str, change: Callable[[re.Match[str]], str | None]) -> Edit:
    """Return an edit of one match of the pattern, drawn at random."""
    compiled = re.compile(pattern)

    def edit(gold: str, draw: random.Random) -> str | None:
        places = list(compiled.finditer(gold))
        if not places:
            return None
        place = draw.choice(places)
        new = change(place)
        return None if new is None else gold[: place.start()] + new + gold[place.end() :]

    return edit


def _around(before: str, after: str, fixed: str = "") -> Edit:
    """Return an edit that wraps an expression, except values (`fixed`) that it would not change."""
    same = re.compile(fixed) if fixed else None
    return lambda gold, draw: (
        f"{before}{gold}{after}" if _is_formula(gold) and not (same and same.fullmatch(gold)) else None
    )


def _is_formula(gold: str) -> bool:
    """Whether the gold is one expression, which brackets may enclose."""
    return not re.search(
        r"[,;=<>:$]|\\(?:text|cup|le|ge|in|to|ne|begin|pm|mbox|max|min|gcd|operator|\{|mathrm|%|\$)|\^\\circ|[A-Za-z]{3,}",
        gold,
    )


def _mirrored(left: str, right: str) -> Edit:
    def edit(gold: str, draw: random.Random) -> str | None:
        parts = re.fullmatch(rf"(.*{re.escape(left)})(.*?){re.escape(right)}(.*)", gold, re.DOTALL)
        return None if parts is None else f"{parts[1]}{parts[2]}{right}{parts[3]}"

    return edit


NUMBER = r"(?<![\d.,_^{])\d+(?![\d.,%])"  # not part of a decimal, an exponent or an index
LETTER = r"(?<![a-zA-Z\\{])[a-zA-Z](?![a-zA-Z])"
OTHER = {"x": "q", "y": "q", "n": "w", "C": "Q"}


def _interval_end(match: re.Match[str]) -> str:
    return {"(": "[", "[": "("}[match[1]] + match[2] + match[3]


def _element_dropped(gold: str, draw: random.Random) -> str | None:
    parts = re.split(r",(?![^(\[{]*[)\]}])", gold.strip("$"))
    return None if len(parts) < 2 or ("\\" in "".join(parts) and "$" in gold) else ",".join(parts[:-1])


ZERO, UNIT = r"-?0+(\.0*)?", r"-?1(\.0*)?|\(-1\).*|e\^\{i\\pi\}"
ROUNDED = r".*(\de\d|10\^\{?\d\d).*"  # adding 1 does not change the given digits

CHANGING: dict[str, Edit] = {
    "plus one": _around("1+", "", ROUNDED),
    "times two": _around(r"2\cdot(", ")", ZERO),
    "negated": _around("-(", ")", ZERO),
    "inverted": _around(r"\frac{1}{", "}", UNIT),
    "squared": _around("(", ")^2", f"{ZERO}|1(\\.0*)?"),
    "times a letter": _around("q(", ")"),
    "plus a letter": _around("", "+q"),
    "digit changed": _at(r"(?<=\d)\d|\d(?=\d)", lambda m: str((int(m[0]) + 3) % 10)),
    "number plus one": _at(NUMBER, lambda m: str(int(m[0]) + 1)),
    "number times ten": _at(r"(?<![\d.,])(?<!frac\{0\}\{)[1-9]\d*(?![\d.,])", lambda m: f"{m[0]}0"),
    "sign changed": _at(r"(?<=[\w})] )[-+](?= ?[\w\\(])", lambda m: {"+": "-", "-": "+"}[m[0]]),
    "exponent plus one": _at(r"\^\{?(\d)\}?", lambda m: f"^{{{int(m[1]) + 1}}}"),
    "denominator dropped": _at(
        r"\\frac\{([^{}]+)\}\{([^{}]+)\}", lambda m: None if m[1] == "0" or m[2] == "1" else m[1]
    ),
    "fraction turned": _at(
        r"\\frac\{([^{}]+)\}\{([^{}]+)\}", lambda m: None if m[1] == m[2] else rf"\frac{{{m[2]}}}{{{m[1]}}}"
    ),
    "root dropped": _at(r"\\sqrt\{([^{}]+)\}", lambda m: f"({m[1]})"),
    "letter changed": _at(LETTER, lambda m: OTHER.get(m[0], "q")),
    "letter to C": _at(LETTER, lambda m: None if m[0] in "ceCkA" else "C"),
    "letter to k": _at(LETTER, lambda m: None if m[0] in "nmkltjcCA" else "k"),
    "letter's case": _at(
        rf"(?<!\d)(?<!\(){LETTER}(?!_|[^=]{{0,9}}(?:=|\\in|\\equiv)|\.?[mM]|.*all|\}})",
        lambda m: None if m[0] in "cCkK" else m[0].swapcase(),
    ),
    "letter doubled": _at(rf"(?<!gcd\(){LETTER}", lambda m: m[0] * 2),
    "term dropped": _at(r"(?<=[\w})]) ?[-+] ?(?:[\d\w]|\\pi|\\sqrt\{\d+\})+$", lambda m: ""),
    "factor dropped": _at(r"(?<![\d.,^_{\w])(?:[2-9]|\d\d+)(?=\\sqrt|\\pi|[a-z](?![a-z]))", lambda m: ""),
    "pi dropped": _at(r"(?<=\d)\\pi$", lambda m: ""),
    "times i": _around("i(", ")", ZERO),
    "percent": _around("", r"\%", rf"{ZERO}|[+\d]?[\d ]+(\.\d+)?"),
    "interval end": _at(r"([(\[])((?:-?\d+|-?\\infty),\s*(?:\d+|\\infty))([)\]])(?=$|\$| \\cup)", _interval_end),
    "element dropped": _element_dropped,
    "element added": lambda gold, draw: f"{gold.strip('$')}, 98765",
    "base": _at(r"(?<=\d)_\{?([2-9])\}?$", lambda m: f"_{{{int(m[1]) + 1}}}"),
    "unit": _at(r"\\text\s*\{ ?(cm|m|km|feet|inches|hours|minutes|degrees|dollars|cents) ?\}", lambda m: r"\text{ kg}"),
    "wrapped in a claim": lambda gold, draw: rf"\text{{not }} {gold}",
    "two answers": lambda gold, draw: rf"{gold.strip('$')} \text{{ or }} 98765",
}
KEEPING: dict[str, Edit] = {
    "as written": lambda gold, draw: gold,
    "spaces": lambda gold, draw: re.sub(r"(?<=[\d})])([-+=])(?=[\d\\(])", r" \1 ", gold),
    "dfrac": lambda gold, draw: gold.replace(r"\frac", r"\dfrac"),
    "full stop": lambda gold, draw: f"{gold}.",
    "dollars": lambda gold, draw: gold if "$" in gold else f"${gold}$",
    "left right": lambda gold, draw: gold
    if "\\left" in gold
    else gold.replace("(", r"\left(").replace(")", r"\right)"),
    "sentence": lambda gold, draw: rf"\text{{The answer is }} {gold}",
    "plus zero": _around("", "+0"),
    "times one": _around(r"1\cdot(", ")"),
    "twice the half": _around(r"2\cdot\frac{", "}{2}"),
    "minus minus": _around("-(-(", "))"),
}


def edited(gold: str, edits: dict[str, Edit], seed: int = 0) -> Iterator[tuple[str, str]]:
    """Yield (name of the edit, edited gold) for edits that apply and, unless they are `KEEPING`, change the text."""
    for name, edit in edits.items():
        new = edit(gold, random.Random(f"{seed} {name} {gold}"))
        if new is not None and (edits is KEEPING or new != gold):
            yield name, new
