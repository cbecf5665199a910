r"""Multiple choice: a gold of capital letters, and the letters that an answer picks."""

import re

_GOLD = re.compile(r"\(?([A-Z])\)?|(?=A?B?C?D?E?F?G?H?$)([A-H]{2,8})")
_GOLD_WITH_TEXT = re.compile(r"\(([A-Z])\)(.+)", re.DOTALL)
_PICKED = re.compile(r"\(([A-Za-z])\)[.:]?|([A-Z])(?:[).:]|$)")
_ANOTHER = re.compile(r"\(([A-Z])\)|(?:^|or|and|,|/)([A-Z])[).:]?(?=$|or|and|,|/)")
_MORE = re.compile(r"[,;+*/^%]|or(?![a-z])|and(?![a-z])")
_SEVERAL = re.compile(r"[,;/&]|and")
_STYLE = re.compile(
    r"\\(?:text|textbf|textrm|mathrm|mathbf|mbox|bf|rm)(?![a-zA-Z])|[{}\s\\]|option|choice|answer", re.IGNORECASE
)


def same_choice(gold: str, answer: str) -> bool | None:
    r"""Whether `(C)`, `C.`, `\text{(C)} 12` picks the gold's letter; None if gold or answer is not a choice."""
    plain = _STYLE.sub("", gold)
    letters, described = _GOLD.fullmatch(plain), _GOLD_WITH_TEXT.fullmatch(plain)
    if letters is None and described is None:
        return None
    picks = _STYLE.sub("", answer)
    if letters is None:
        own = _GOLD_WITH_TEXT.fullmatch(picks) or _GOLD.fullmatch(picks)
        if described is None or own is None or own[1] is None:
            return None
        return own[1] == described[1] and (own.re is _GOLD or own[2] == described[2])
    if letters[2]:
        listed = [part.strip("().") for part in _SEVERAL.split(picks.replace(")(", "),("))]
        several = len(listed) > 1 and all(len(part) == 1 and part.isupper() for part in listed)
        return "".join(sorted(listed)) == letters[2] if several else None
    picked = _PICKED.match(picks)
    if picked is None:
        return None
    rest = picks[picked.end() :]
    if _ANOTHER.search(rest) or _MORE.match(rest):  # "(C) or (D)" picks nothing
        return False
    return (picked[1] or picked[2]).upper() == letters[1]
