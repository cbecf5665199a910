"""Turn golds as found in data sets into accepted answers; those of texts are cached."""

import functools
import math
import re
from collections.abc import Sequence

from .extract import boxed

MAX_FORMS = 32
_LIST_TEXT = re.compile(r"\[\s*(['\"])(.*)\1\s*,?\s*\]", re.DOTALL)
_TRAILING_NEWLINE = re.compile(r"(?:\\n|\s)+$")
_WRAPPERS = (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"))


def gold_forms(gold: object) -> tuple[str, ...]:
    r"""Return the accepted answers; a list means alternatives. Empty if there is no gold.

    Understands numbers (142.0 is 142), LaTeX with and without dollars or box, `#### 42`, the text of a Python list
    (`"['9.6\n']"`), and lists of any of these.
    """
    if isinstance(gold, str):
        return _text_forms(gold)
    if isinstance(gold, bool) or gold is None:
        return () if gold is None else (str(gold),)
    if isinstance(gold, (int, float)):
        if isinstance(gold, float) and not math.isfinite(gold):
            return ()
        return (str(int(gold)) if gold == int(gold) and abs(gold) < 1e15 else repr(gold),)
    if isinstance(gold, Sequence) or hasattr(gold, "tolist"):
        items = gold.tolist() if hasattr(gold, "tolist") else gold
        if not isinstance(items, Sequence):
            return gold_forms(items)
        return _distinct([form for item in items for form in gold_forms(item)])
    return _text_forms(str(gold))


def _distinct(forms: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(form for form in forms if form))[:MAX_FORMS]


@functools.lru_cache(maxsize=65536)
def _text_forms(gold: str) -> tuple[str, ...]:
    listed = _LIST_TEXT.fullmatch(gold.strip())
    if listed is None:
        return _distinct([_unwrapped(gold)])
    quote = re.escape(listed[1])
    items = re.split(rf"{quote}\s*,\s*{quote}|'\s*,\s*\"|\"\s*,\s*'", listed[2])
    return _distinct([_unwrapped(item.replace("\\\\", "\\")) for item in items])


def _unwrapped(gold: str) -> str:
    """Remove the marks around an answer: `#### `, a box, dollar signs, white space."""
    text = _TRAILING_NEWLINE.sub("", gold).strip()
    if "####" in text:
        text = text.rsplit("####", 1)[1].strip()
    if "\\boxed" in text or "\\fbox" in text:
        text = boxed(text).answer or text
    for start, end in _WRAPPERS:
        inner = text[len(start) : len(text) - len(end)]
        if text.startswith(start) and text.endswith(end) and len(text) > len(start) + len(end) and start not in inner:
            return inner.strip()
    return text
