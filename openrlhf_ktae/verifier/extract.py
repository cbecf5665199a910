r"""Find the answer in a whole response: the last `\boxed{...}`, in one linear scan."""

from __future__ import annotations

import re
from dataclasses import dataclass

MAX_BOX = 65536  # characters; a box that does not close within them is taken as malformed
_BOX_START = re.compile(r"\\(?:boxed|fbox)\s{0,8}\{")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)


@dataclass(frozen=True)
class Extraction:
    """The answer found, or the reason why there is none."""

    answer: str | None
    reason: str = ""


def extract_answer(response: str) -> Extraction:
    r"""The content of the last box; a malformed last box is not replaced by an earlier one."""
    start = max(response.rfind("\\boxed"), response.rfind("\\fbox"))
    if start < 0:
        return Extraction(None, "no boxed answer")
    opening = _BOX_START.match(response, start)
    if opening is None:
        return Extraction(None, "malformed box")
    depth = 1
    for brace in _BRACE.finditer(response, opening.end(), opening.end() + MAX_BOX):
        token = brace.group()
        depth += (token == "{") - (token == "}")
        if depth == 0:
            answer = response[opening.end() : brace.start()].strip()
            return Extraction(answer) if answer else Extraction(None, "empty box")
    return Extraction(None, "box never closed")
