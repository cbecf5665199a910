r"""Extract the answer from a response in linear time: a box, else `<answer>` tags, else "final answer is".

The last box is the answer, unless `<answer>` tags follow it. If it is malformed or empty, there is no answer: earlier
boxes and numbers in the text are never used instead.
"""

import re
from dataclasses import dataclass

from .reading.clean import restore_escapes
from .verdict import Reason

MAX_NESTED_BOXES = 4
MAX_BOX = 65536  # characters; a box that does not close within them is malformed
PHRASE = "final answer is"
HASHES = "####"
PHRASE_WINDOW = 2000  # the phrase is looked for in this many characters at the end of the response
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
    """The answer, or the reason why there is none."""

    answer: str | None
    reason: Reason = Reason.ANSWER_FOUND


def extract_answer(response: str, answer_format: str = "auto", gold: object = "") -> Extraction:
    r"""Return the answer of a response. `answer_format`: `auto` (box, else tags, else phrase), or only `box` or `tags`.

    If the gold is written as in GSM8K (`#### 18`), a last line of that form is an answer too.
    """
    response = response.replace("\x08oxed", "\\boxed")  # a JSON reader took `\b` for a control character
    if answer_format == "tags":
        return tagged(response) or Extraction(None, Reason.NO_TAG)
    if response.rfind("<think>") > response.rfind("</think>"):
        return Extraction(None, Reason.OPEN_THINKING)
    last_box = _last_box(response, len(response))
    if answer_format == "box" or last_box >= 0:
        found = boxed(response)
        inside = answer_format == "box" or _OPEN_TAG in (found.answer or "")
        return found if inside else tagged(response[last_box:]) or found
    answer = tagged(response)
    if answer is None and isinstance(gold, str) and HASHES in gold and HASHES in response:
        line = response.rpartition(HASHES)[2].strip().partition("\n")[0]
        answer = _found(line[:MAX_PHRASE_ANSWER], Reason.EMPTY_ANSWER)
    return answer or stated(response) or Extraction(None, Reason.NO_BOX)


def boxed(response: str) -> Extraction:
    r"""Return the content of the last `\boxed{...}` with matched braces, or of the outer box if boxes are nested."""
    start = _last_box(response, len(response))
    if start < 0:
        return Extraction(None, Reason.NO_BOX)
    opening = _BOX_START.match(response, start)
    if opening is None:
        bare = _BARE_BOX.match(response, start)
        return Extraction(bare[1]) if bare else Extraction(None, Reason.MALFORMED_BOX)
    begin, end = opening.end(), _closing(response, opening.end())
    if end < 0:
        return Extraction(None, Reason.OPEN_BOX)
    content = response[begin:end]
    for _ in range(MAX_NESTED_BOXES):
        outer = _last_box(response, start)
        opening = _BOX_START.match(response, outer) if outer >= 0 else None
        if opening is None:
            break
        outer_end = _closing(response, opening.end())
        if outer_end < 0 and "\n" not in response[outer:start]:
            return Extraction(None, Reason.OPEN_BOX)
        if outer_end < end:
            break
        if response[opening.end() : outer_end].strip() != response[start : end + 1]:
            content = response[opening.end() : outer_end]  # the outer box holds more than the inner one
        start, end = outer, outer_end
    return _found(content, Reason.EMPTY_BOX)


def _last_box(response: str, before: int) -> int:
    """Return the start of the last box before a position; -1 if there is none."""
    return max(response.rfind("\\boxed", 0, before), response.rfind("\\fbox", 0, before))


def _closing(response: str, begin: int) -> int:
    """Return where the brace just before `begin` is closed; -1 if not within MAX_BOX characters."""
    depth = 1
    for brace in _BRACE.finditer(response, begin, begin + MAX_BOX):
        depth += (brace.group() == "{") - (brace.group() == "}")
        if depth == 0:
            return brace.start()
    return -1


def tagged(response: str) -> Extraction | None:
    """Return the content of the last `<answer>...</answer>`, or None if there is no such tag."""
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
    """Return the text after the last "final answer is" near the end, or None if the phrase does not occur there."""
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
    if answer.startswith(_OPEN_TAG) and answer.endswith(_CLOSE_TAG):
        answer = answer[len(_OPEN_TAG) : -len(_CLOSE_TAG)].strip()
    return Extraction(answer) if answer else Extraction(None, otherwise)
