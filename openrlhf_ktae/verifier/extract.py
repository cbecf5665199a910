r"""Find the answer in a whole response, in linear time: a box, else `<answer>` tags, else "final answer is".

The last box is the answer. If it is malformed or empty there is none: an earlier box, or a number from the prose, is
never taken instead.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from .reading.clean import restore_escapes
from .verdict import Reason

MAX_BOX = 65536  # characters; a box that does not close within them is taken as malformed
PHRASE = "final answer is"
HASHES = "####"
PHRASE_WINDOW = 2000  # characters at the end of the response in which the phrase is looked for
MAX_PHRASE_ANSWER = 400
_BOX_START = re.compile(r"\\(?:boxed|fbox)\s{0,8}\{")
_BARE_BOX = re.compile(r"\\boxed\s{1,8}([^\s\\{}$.,;]{1,40})")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_OPEN_TAG, _CLOSE_TAG = "<answer>", "</answer>"
_MATHS = re.compile(r"\$\$?([^$]{1,400})\$\$?|\\\((.{1,400}?)\\\)|\\\[(.{1,400}?)\\\]", re.DOTALL)
_MORE = re.compile(r"\s*(?:,|or\b|and\b)\s*(?:or\b|and\b)?\s*(?:\$|\\[(\[]|\d)")  # another answer
_SENTENCE_END = re.compile(r"\.\s|\.$|\n|\bI hope\b")


@dataclass(frozen=True)
class Extraction:
    """The answer found, or the reason why there is none."""

    answer: str | None
    reason: Reason = Reason.ANSWER_FOUND


def extract_answer(response: str, answer_format: str = "auto", gold: object = "") -> Extraction:
    r"""The answer of a response. `answer_format`: `auto` (box, else tags, else phrase), `box` or `tags` alone.

    Where the gold is of GSM8K's form (`#### 18`), a last line of that form is an answer too.
    """
    response = response.replace("\x08oxed", "\\boxed")  # a JSON reader took backslash and b for a control character
    if answer_format == "tags":
        return tagged(response) or Extraction(None, Reason.NO_TAG)
    if response.rfind("<think>") > response.rfind("</think>"):
        return Extraction(None, Reason.OPEN_THINKING)
    last_box = max(response.rfind("\\boxed"), response.rfind("\\fbox"))
    if answer_format == "box" or last_box >= 0:
        later = tagged(response[last_box:]) if answer_format == "auto" and last_box >= 0 else None
        return later or boxed(response)
    hashed = HASHES in gold and _hashed(response) if isinstance(gold, str) else None
    return tagged(response) or hashed or stated(response) or Extraction(None, Reason.NO_BOX)


def _hashed(response: str) -> Extraction | None:
    """What follows the last `####` on its line, or None if there is none."""
    _, hashes, rest = response.rpartition(HASHES)
    return _found(rest.strip().partition("\n")[0][:MAX_PHRASE_ANSWER], Reason.EMPTY_ANSWER) if hashes else None


def boxed(response: str) -> Extraction:
    r"""The content of the last `\boxed{...}`, braces matched."""
    start = max(response.rfind("\\boxed"), response.rfind("\\fbox"))
    if start < 0:
        return Extraction(None, Reason.NO_BOX)
    opening = _BOX_START.match(response, start)
    if opening is None:
        bare = _BARE_BOX.match(response, start)
        return Extraction(bare[1]) if bare else Extraction(None, Reason.MALFORMED_BOX)
    depth = 1
    for brace in _BRACE.finditer(response, opening.end(), opening.end() + MAX_BOX):
        token = brace.group()
        depth += (token == "{") - (token == "}")
        if depth == 0:
            outer = max(response.rfind("\\boxed{", 0, start), response.rfind("\\fbox{", 0, start))
            if (
                outer >= 0
                and response.count("{", outer, brace.end()) - response.count("}", outer, brace.end()) == 1
                and ("\n" not in response[outer:start])
                and "}" not in response[brace.end() : brace.end() + MAX_BOX]
            ):
                return Extraction(None, Reason.OPEN_BOX)
            return _found(response[opening.end() : brace.start()], Reason.EMPTY_BOX)
    return Extraction(None, Reason.OPEN_BOX)


def tagged(response: str) -> Extraction | None:
    """The content of the last `<answer>...</answer>`, or None if there is no such tag."""
    opened, closed = response.rfind(_OPEN_TAG), response.rfind(_CLOSE_TAG)
    if opened < 0:
        return None
    if closed < opened:
        return Extraction(None, Reason.OPEN_TAG)
    content = response[opened + len(_OPEN_TAG) : closed]
    if "\\boxed" in content or "\\fbox" in content:
        return boxed(content)
    return _found(content[:MAX_BOX], Reason.EMPTY_TAG)


def stated(response: str) -> Extraction | None:
    """What follows the last "final answer is" near the end, or None if the phrase does not occur."""
    tail = response[-PHRASE_WINDOW:]
    at = tail.lower().rfind(PHRASE)
    if at < 0:
        return None
    rest = tail[at + len(PHRASE) :].lstrip(" :*\n")[: 2 * MAX_PHRASE_ANSWER]
    maths = _MATHS.match(rest)
    if maths is not None and not _MORE.match(rest, maths.end()):
        return _found(next(group for group in maths.groups() if group is not None), Reason.EMPTY_ANSWER)
    return _found(_SENTENCE_END.split(rest, maxsplit=1)[0][:MAX_PHRASE_ANSWER].strip("* "), Reason.EMPTY_ANSWER)


def _found(content: str, otherwise: Reason) -> Extraction:
    answer = restore_escapes(content).strip()
    return Extraction(answer) if answer else Extraction(None, otherwise)
