"""math-verify, asked about one short answer that our own reader cannot read.

It never sees the text around an answer, nor constructions on which sympy may work for ever. Its timeouts are off (they
need the main thread and an alarm): the worker's limits stand behind it.
"""

from __future__ import annotations

import functools
import re
from typing import Any

AGREE = 9  # relative digits to which two constants it accepts must agree: it rounds to an absolute 6 digits
MAX_CHARACTERS = 400
MAX_POWERS = 8
_LONG_NUMBER = re.compile(r"\d{40}")
_OPEN_ENDED = re.compile(r"\\(?:i+nt|oint|lim|sum|prod|det|begin)(?![a-zA-Z])|!\s*[!)]")
_TOWER = re.compile(r"\^\s*(?:\{[^{}]*|[^{}]\s*)\^")


def too_heavy(text: str) -> bool:
    """True for text on which sympy may work for ever: long, towering, with limits, series or very long numbers."""
    return (
        len(text) > MAX_CHARACTERS
        or text.count("^") > MAX_POWERS
        or any(pattern.search(text) for pattern in (_LONG_NUMBER, _OPEN_ENDED, _TOWER))
    )


def accepts(gold: str, answer: str) -> bool | None:
    """math-verify's verdict; None if it cannot read one of the two."""
    from math_verify import verify

    gold_read, answer_read = parse(gold), parse(answer)
    if not gold_read or not answer_read:
        return None
    accepted = verify(list(gold_read), list(answer_read), timeout_seconds=None, raise_on_error=True)
    return bool(accepted) and _constants_agree(gold_read[0], answer_read[0])


@functools.lru_cache(maxsize=1024)
def parse(text: str) -> tuple[Any, ...]:
    """math-verify's reading of one expression, without the texts it falls back to."""
    from math_verify import LatexExtractionConfig, parse

    config = [LatexExtractionConfig(boxed_match_priority=0)]
    return tuple(parse(f"\\boxed{{{text}}}", config, fallback_mode="no_fallback", parsing_timeout=None))


def _constants_agree(gold: Any, answer: Any) -> bool:
    """Two constants must agree relative to their size; anything else passes."""
    if getattr(gold, "free_symbols", True) or getattr(answer, "free_symbols", True):
        return True
    try:
        g, a = gold.evalf(30), answer.evalf(30)
        return bool(abs(g - a) <= abs(g) * 10**-AGREE)
    except (TypeError, AttributeError, ValueError):
        return True
