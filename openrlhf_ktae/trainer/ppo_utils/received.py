"""Received rollouts whose fields are made on first read, from the arrays that engines sent.

The host makes 15 tensors for each rollout, which takes 165 us. The controller reads few of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from openrlhf.trainer.ppo_utils.experience import Experience

from openrlhf_ktae.trainer.ppo_utils.messages import LOG_PROBS, TOKENS, Arrived

NAMES = tuple(field.name for field in fields(Experience))
TABLES = ("sequences", "attention_mask", "action_mask", "rollout_log_probs")
LISTS = {"prompts": "prompt", "labels": "label", "images": "images", "mm_train_inputs": "mm_train_inputs"}
NUMBERS = {"rewards": "reward", "scores": "scores", "response_length": "", "truncated": "", "total_length": ""}
FIELDS = {**dict.fromkeys(TABLES, ""), **LISTS, **NUMBERS, "info": ""}
"""Field of a received rollout -> its key in an engine's answer, or empty if the field is computed."""


class Group:
    """The answers to one prompt, from which the fields of its rollouts are made as the host makes them.

    Args:
        among: what the engine returned; its arrays are read-only, in Ray's memory.
        max_len: largest number of tokens of a rollout; the rest is cut off.
    """

    def __init__(self, among: Arrived, max_len: int) -> None:
        self.answers, self._lengths, self._max_len = among.answers, among.lengths[TOKENS], max_len
        self.arrays = {"sequences": among.arrays[TOKENS], "rollout_log_probs": among.arrays.get(LOG_PROBS)}
        self.kept = [min(length, max_len) for length in self._lengths]
        positions = [max(length - 1, 0) for length in self.kept]
        of_log_probs = among.lengths.get(LOG_PROBS, [0] * len(self.kept))
        self.widths = {
            "sequences": self.kept,
            "attention_mask": self.kept,
            "action_mask": positions,
            "rollout_log_probs": [min(length, max_len) - 1 for length in of_log_probs],
        }
        self.starts = {
            "sequences": list(accumulate(self._lengths, initial=0)),
            "rollout_log_probs": list(accumulate(of_log_probs, initial=1)),
        }
        self._tables: dict[str, Sequence[Any]] = {}
        self._columns: dict[str, list[Any]] = {}

    def value(self, name: str, place: int) -> Any:
        """Return a field of rollout `place`."""
        if name in TABLES:
            if name not in self._tables:
                self._tables[name] = self._made(name)
            return self._tables[name][place]
        value = self.column(name)[place]
        if name in LISTS:
            return [value]
        if name == "info":
            return {key: torch.tensor([number]) for key, number in value.items()}
        return None if value is None else torch.tensor([value])

    def column(self, name: str) -> list[Any]:
        """Return a field of each rollout as plain values: a number, text or dictionary; for a mask, its spans of 1."""
        if name not in self._columns:
            key = FIELDS[name]
            self._columns[name] = [a.get(key) for a in self.answers] if key else self._plain(name)
        return self._columns[name]

    def _plain(self, name: str) -> list[Any]:
        if name == "attention_mask":
            return [[(0, kept)] for kept in self.kept]
        if name == "action_mask":
            return list(map(shifted_spans, self.answers, self._lengths, self.widths[name]))
        if name == "info":
            clipped = (length >= self._max_len for length in self._lengths)
            return [figures_of(*one) for one in zip(self.answers, clipped, strict=True)]
        if name == "total_length":
            return list(map(float, self.kept))
        if name == "truncated":
            return [answer.get(name, False) for answer in self.answers]
        spans = self.column("action_mask")  # for the length of the response
        return [max(end for _, end in one) - min(start for start, _ in one) if one else 0 for one in spans]

    def _made(self, name: str) -> Sequence[Any]:
        """Return the row (1, T) of each rollout in a table, as views of one tensor."""
        widths, rows = self.widths[name], len(self.kept)
        if name not in self.arrays:
            whole_1N, starts = torch.zeros((1, sum(widths)), dtype=torch.int64), list(accumulate(widths, initial=0))
            for place in range(rows):
                for start, end in self.column(name)[place]:
                    whole_1N[:, starts[place] + start : starts[place] + end] = 1
        elif self.arrays[name] is None:
            return [None] * rows
        else:
            dtype = np.int64 if name == "sequences" else np.float32
            whole_1N, starts = torch.from_numpy(np.array(self.arrays[name], dtype))[None], self.starts[name]
        return [whole_1N[:, starts[place] : starts[place] + max(widths[place], 0)] for place in range(rows)]


def shifted_spans(answer: dict[str, Any], length: int, width: int) -> list[tuple[int, int]]:
    """Return the spans of 1 in the action mask (`width` positions) of an answer of `length` tokens."""
    pairs = [slice(*pair).indices(length) for pair in answer["action_ranges"]]
    shifted = [(max(start, 1) - 1, min(end - 1, width)) for start, end, _ in pairs]  # position t is token t + 1
    return [(start, end) for start, end in shifted if start < end]


def figures_of(answer: dict[str, Any], clipped: bool) -> dict[str, Any]:
    """Return the numbers that the host puts into `info` of a rollout."""
    given = {"response_clip_ratio": clipped, "reward": answer.get("reward"), "score": answer.get("scores")}
    figures = {name: value for name, value in given.items() if value is not None}
    for name, value in answer.get("extra_logs", {}).items():
        figures[name] = value.flatten()[0].item() if isinstance(value, torch.Tensor) else value
    return figures


class Field:
    """A field of a rollout that is made when it is first read."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, rollout: Any, _: Any = None) -> Any:
        if rollout is None:
            return None  # the host's default
        made = vars(rollout)[self._name] = rollout.group.value(self._name, rollout.place)
        return made


class Rollout(Experience):
    """Rollout number `place` of a `group`, with the fields of the host's experience, made when they are read."""

    def __init__(self, group: Group, place: int) -> None:
        self.group, self.place = group, place

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Experience, tuple(fields_of(self).values())


def fields_of(rollout: Any) -> dict[str, Any]:
    """Return all fields by name. Fields that were never read are made but not stored, so they stay unread."""
    known = vars(rollout)
    unread = FIELDS.keys() - known.keys() if "group" in known else ()
    group, place = known.get("group"), known.get("place")
    return {name: group.value(name, place) if name in unread else getattr(rollout, name) for name in NAMES}


for _name in FIELDS:
    setattr(Rollout, _name, Field(_name))


def peek(rollout: Any, name: str) -> Any:
    """Return a field of a rollout; if it was never read, as plain values, without making a tensor."""
    known = vars(rollout)
    if "group" not in known or name in known:
        return getattr(rollout, name)
    value = known["group"].column(name)[known["place"]]
    return [value] if name in LISTS else value


def row_of(rollout: Any, name: str) -> NDArray[Any]:
    """Return token ids or the action mask of a rollout (T,), without making a tensor."""
    known = vars(rollout)
    if "group" not in known or name in known:
        return getattr(rollout, name)[0].numpy()
    group, place = known["group"], known["place"]
    width = group.widths[name][place]
    if name in group.arrays:
        start = group.starts[name][place]
        return group.arrays[name][start : start + width]
    row = np.zeros(width, np.bool_)
    for start, end in group.column(name)[place]:
        row[start:end] = True
    return row
