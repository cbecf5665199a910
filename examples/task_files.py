"""Shared by the task generators: distinct problems, written as two JSONL files."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import TypeVar

P = TypeVar("P", bound=Hashable)


def draw_distinct(draw: Callable[[random.Random], P], count: int, seed: int) -> list[P]:
    """Return `count` different problems; the same seed gives the same list."""
    rng = random.Random(seed)
    problems: dict[P, None] = {}
    while len(problems) < count:
        problems[draw(rng)] = None
    return list(problems)


def write_rows(output: Path, rows: Sequence[dict[str, str]], n_heldout: int) -> None:
    """Write the first rows to `heldout.jsonl` and the rest to `train.jsonl`, the same bytes on every platform."""
    output.mkdir(parents=True, exist_ok=True)
    for name, part in (("heldout", rows[:n_heldout]), ("train", rows[n_heldout:])):
        (output / f"{name}.jsonl").write_bytes("".join(json.dumps(row) + "\n" for row in part).encode())
