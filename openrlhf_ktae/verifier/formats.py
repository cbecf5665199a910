"""Does a response keep the format that was asked for? Counting only; no parsing, linear time."""

from __future__ import annotations

from collections.abc import Sequence


def keeps_format(response: str, require_tags: Sequence[str], require_single_answer: bool) -> bool:
    r"""True if each tag of `require_tags` is opened and closed exactly once, in this order, and, with
    `require_single_answer`, there is exactly one answer: one box, or one `<answer>` element where no box is used."""
    position = 0
    for tag in require_tags:
        opening, closing = f"<{tag}>", f"</{tag}>"
        if response.count(opening) != 1 or response.count(closing) != 1:
            return False
        start = response.find(opening, position)
        end = response.find(closing, start + len(opening)) if start >= 0 else -1
        if end < 0:
            return False
        position = end + len(closing)
    return not require_single_answer or _answers(response) == 1


def _answers(response: str) -> int:
    boxes = response.count("\\boxed{") + response.count("\\fbox{")
    return boxes if boxes else response.count("<answer>")
