"""The text of a response to grade, and whether it keeps the required format. Counts tags and boxes in linear time."""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

_OPENING = re.compile(r"(?:<\w+>|\\(?:boxed|fbox)\{)\s*$")
OPENING_CHARACTERS = 100  # an opening tag is looked for in this many characters at the end of a prompt


def response_text(tokenizer: Any, ids: Sequence[int]) -> str:
    """Return the text of the generated `ids` without tokens that end, pad or begin a sequence.

    Other special tokens of the tokenizer stay: `<answer>` or `</think>` may be among them.
    """
    control = _control_ids(tokenizer.name_or_path, tokenizer.eos_token_id, tokenizer.pad_token_id)
    control |= {tokenizer.bos_token_id}
    kept = [one for one in ids if one not in control]
    return tokenizer.decode(np.array(kept, np.int64), skip_special_tokens=False)  # a list's items are type-checked


@lru_cache(maxsize=16)
def _control_ids(model: str, *known: int | None) -> frozenset[int | None]:
    """Return `known` and the end-of-sequence ids in the model's generation configuration."""
    from transformers import GenerationConfig

    try:
        ends = GenerationConfig.from_pretrained(model).eos_token_id
    except Exception:  # no generation configuration, or a tokenizer of unknown origin
        ends = None
    return frozenset((*known, *(ends if isinstance(ends, list) else [ends])))


def opening_of(prompt: str) -> str:
    r"""Return the end of a prompt that belongs to the response: an opening tag (`<think>`) or `\boxed{`, else empty."""
    found = _OPENING.search(prompt[-OPENING_CHARACTERS:])
    return found[0] if found else ""


def keeps_format(response: str, require_tags: Sequence[str], require_single_answer: bool) -> bool:
    r"""Return whether each of `require_tags` is opened and closed exactly once, in this order. With
    `require_single_answer` there must also be exactly one answer: one box, or one `<answer>` if there is no box."""
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
