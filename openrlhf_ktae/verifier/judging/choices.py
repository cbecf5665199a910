r"""Multiple choice: a gold that is one capital letter, and the letter that an answer picks."""

from __future__ import annotations

import re

_LETTER = re.compile(r"\(?([A-Z])\)?")
_PICKED = re.compile(r"\(([A-Za-z])\)[.:]?|([A-Z])(?:[).:]|$)")
_STYLE = re.compile(
    r"\\(?:text|textbf|textrm|mathrm|mathbf|mbox|bf|rm)(?![a-zA-Z])|[{}\s\\]|option|choice|answer", re.IGNORECASE
)


def same_choice(gold: str, answer: str) -> bool | None:
    r"""Whether `(C)`, `C.`, `\text{(C)} 12` picks the gold's letter; None if gold or answer is no choice."""
    letter = _LETTER.fullmatch(_STYLE.sub("", gold))
    if letter is None:
        return None
    picked = _PICKED.match(_STYLE.sub("", answer))
    if picked is None:
        return None
    rest = _STYLE.sub("", answer)[picked.end() :]
    if _PICKED.search(rest):  # "(C) or (D)" picks nothing
        return False
    return (picked[1] or picked[2]).upper() == letter[1]
