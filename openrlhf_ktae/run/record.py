"""The record of a run: `metrics.jsonl`, one JSON object a line, written as the run goes.

`{"kind": "plan", "steps": 200, ...}`
`{"kind": "step", "step": 3, "time": ..., "rollout/reward_mean": 0.4, ..., "key_tokens": {...}}`
`{"kind": "note", "text": "..."}` what a person should know
`{"kind": "resume", "step": 20, "checkpoint": "..."}` where the run went on after it had ended; later rows are set aside
`{"kind": "stop", "reason": "..."}` where training ended before the data did
`{"kind": "eval", "when": "before" | "during" | "after", "step": 0, "eval_accuracy": 0.2, ...}`
"""

from __future__ import annotations

import json
import math
import numbers
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from openrlhf_ktae.checkpoint.files import sync, write_text
from openrlhf_ktae.run.plain_json import parse_json

METRICS_FILE = "metrics.jsonl"


class RunRecord:
    """Append-only; each line is flushed, so that a killed run leaves whole lines."""

    def __init__(self, directory: str | Path) -> None:
        self.path = Path(directory) / METRICS_FILE
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.last_step = 0

    def plan(self, steps: int) -> None:
        """Write how many steps the run will have at most."""
        self._write({"kind": "plan", "steps": steps})

    def step(self, step: int, metrics: Mapping[str, Any], key_tokens: Mapping[str, Any]) -> None:
        """Write one training step."""
        self.last_step = step
        self._write({"kind": "step", "step": step, **plain(metrics), "key_tokens": dict(key_tokens)})

    def evaluation(self, when: str, step: int, metrics: Mapping[str, Any]) -> None:
        """Write one evaluation on held-out problems."""
        self._write({"kind": "eval", "when": when, "step": step, **plain(metrics)})

    def note(self, text: str) -> None:
        """Write what a person should know."""
        self._write({"kind": "note", "text": text})

    def stopped(self, reason: str) -> None:
        """Write why training ended early."""
        self._write({"kind": "stop", "reason": reason})

    def resumed(self, step: int, checkpoint: str) -> None:
        """Write that the run goes on after `step`."""
        self._write({"kind": "resume", "step": step, "checkpoint": checkpoint})

    def sync(self) -> None:
        """Wait until the rows are on the disk: a checkpoint must not know more steps than the record."""
        if self.path.exists():
            sync(self.path)

    def _write(self, row: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(_line({**row, "time": round(time.time(), 3)}))


def plain(metrics: Mapping[str, Any]) -> dict[str, float | None]:
    """Return the numbers among `metrics`; those that are not finite become None, which JSON can hold."""
    numeric = {name: float(v) for name, v in metrics.items() if isinstance(v, numbers.Real)}
    return {name: value if math.isfinite(value) else None for name, value in numeric.items()}


def benchmarks(row: Mapping[str, Any]) -> list[str]:
    """Return the benchmarks that an evaluation's row has an accuracy of."""
    whole = ("eval_accuracy", "eval_macro_accuracy")
    names = (name for name in row if name.startswith("eval_") and name.endswith("_accuracy") and name not in whole)
    return [name.removeprefix("eval_").removesuffix("_accuracy") for name in names]


def read_record(directory: str | Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a run; a last line that is still being written is left out."""
    path = Path(directory) / METRICS_FILE
    if not path.is_file():
        return
    with path.open(encoding="utf-8") as file:
        for line in file:
            if line.endswith("\n"):
                yield parse_json(line)


def stop_reason(directory: str | Path) -> str | None:
    """Return why the run ended early, from the last such row since its plan; None if it did not."""
    reason = None
    for row in read_record(directory):
        reason = {"plan": None, "stop": row.get("reason")}.get(row["kind"], reason)
    return reason


def rewind(directory: str | Path, step: int, evaluated: bool) -> int:
    """Set aside the rows of what a run did after `step`, whose checkpoint it goes on from; return how many.

    They go to `metrics.abandoned.jsonl`. With `evaluated`, an evaluation after this very step is in the checkpoint.
    """
    path = Path(directory) / METRICS_FILE
    kept: list[dict[str, Any]] = []
    gone: list[dict[str, Any]] = []
    for row in read_record(directory):
        (gone if _is_later(row, step, evaluated) else kept).append(row)
    if gone:
        with path.with_name("metrics.abandoned.jsonl").open("a", encoding="utf-8") as file:
            file.writelines(_line(row) for row in gone)
    write_text(path, "".join(_line(row) for row in kept))
    return len(gone)


def _is_later(row: Mapping[str, Any], step: int, evaluated: bool) -> bool:
    if row["kind"] == "step":
        return row["step"] > step
    if row["kind"] != "eval":
        return False
    return row["when"] == "after" or row["step"] > step - (row["when"] == "during" and not evaluated)


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"
