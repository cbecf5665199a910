"""How often each prompt was answered correctly over the whole run: kept in memory, saved with the checkpoint."""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple

import torch

from openrlhf_ktae.trainer.ppo_utils.group_filter import GroupVerdict


class Judged(NamedTuple):
    """One judgement of one prompt, small enough to travel with every batch."""

    key: int
    known: int
    correct: int

    @classmethod
    def of(cls, prompt: str, label: str, verdict: GroupVerdict) -> Judged:
        """Return the judgement of a prompt."""
        return cls(prompt_key(prompt, label), verdict.known, verdict.correct)


def prompt_key(prompt: str, label: str) -> int:
    """Return a 63-bit number for a prompt and its label, the same in every process and run."""
    digest = hashlib.blake2b(f"{prompt}\0{label}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


class PassRates:
    """For each prompt: known rollouts, correct rollouts, and how often in a row it was solved."""

    def __init__(self) -> None:
        self._rows: dict[int, tuple[int, int, int]] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, judged: Judged) -> None:
        """Add one judgement; one without known rollouts is ignored."""
        if not judged.known:
            return
        known, correct, streak = self._rows.get(judged.key, (0, 0, 0))
        streak = streak + 1 if judged.correct == judged.known else 0
        self._rows[judged.key] = (known + judged.known, correct + judged.correct, streak)

    def solved_in_a_row(self, key: int) -> int:
        """Return how many of the latest judgements in a row found every rollout correct."""
        return self._rows.get(key, (0, 0, 0))[2]

    def state_dict(self) -> dict[str, Any]:
        """Return tensors: `keys` (P,) int64 and `rows` (P, 3) int64. 100,000 prompts take 3.2 MB."""
        rows = list(self._rows.values())
        return {
            "keys": torch.tensor(list(self._rows), dtype=torch.int64),
            "rows": torch.tensor(rows, dtype=torch.int64).reshape(-1, 3),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`."""
        keys, rows = state["keys"].tolist(), state["rows"].tolist()
        self._rows = {key: (row[0], row[1], row[2]) for key, row in zip(keys, rows, strict=True)}
