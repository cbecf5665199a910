"""The record of a run: `metrics.jsonl`, one JSON object per line, written during the run.

`{"kind": "plan", "steps": 200, ...}`
`{"kind": "step", "step": 3, "time": ..., "rollout/reward_mean": 0.4, ..., "key_tokens": {...}}`
`{"kind": "note", "text": "..."}` a message for the user
`{"kind": "resume", "step": 20, "checkpoint": "..."}` the run resumed here; rows of later steps were set aside
`{"kind": "stop", "reason": "..."}` training stopped early
`{"kind": "eval", "when": "before" | "during" | "after", "step": 0, "eval_accuracy": 0.2, ...}`
"""

import json
import logging
import math
import numbers
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from openrlhf_ktae.base.plain_json import parse_json
from openrlhf_ktae.checkpoint.files import sync, write_bytes

METRICS_FILE = "metrics.jsonl"
ABANDONED_FILE = "metrics.abandoned.jsonl"
DAMAGED_FILE = "metrics.damaged"
NEEDED: dict[str, dict[str, type]] = {"step": {"step": int}, "eval": {"step": int, "when": str}, "plan": {"steps": int}}
"""Fields that a row of each kind must have; other kinds have none. Rows without them count as malformed."""
logger = logging.getLogger(__name__)


class UnwrittenStop(OSError):
    """The stop reason could not be written (disk full)."""


class RunRecord:
    """An append-only file. Lines are written atomically, so a killed run leaves only complete lines.

    A full disk does not stop the run: rows wait in memory and are written, with a note, once there is space.
    """

    def __init__(self, directory: str | Path) -> None:
        self.path = Path(directory) / METRICS_FILE
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.last_step = 0
        self._waiting: list[bytes] = []
        self._reason = ""

    def plan(self, steps: int) -> None:
        """Write the maximum number of steps of the run."""
        self._write({"kind": "plan", "steps": steps})

    def step(self, step: int, metrics: Mapping[str, Any], key_tokens: Mapping[str, Any]) -> None:
        """Write one training step."""
        self.last_step = step
        self._write({"kind": "step", "step": step, **plain(metrics), "key_tokens": dict(key_tokens)})

    def evaluation(self, when: str, step: int, metrics: Mapping[str, Any]) -> None:
        """Write one evaluation on held-out problems."""
        self._write({"kind": "eval", "when": when, "step": step, **plain(metrics)})

    def note(self, text: str) -> None:
        """Write a message for the user."""
        self._write({"kind": "note", "text": text})

    def stopped(self, reason: str) -> None:
        """Write why training stopped early.

        Raises UnwrittenStop if the reason could not be written: otherwise the run would look successful.
        """
        self._write({"kind": "stop", "reason": reason})
        if self._waiting:
            raise UnwrittenStop(f"{reason} ({self.path} cannot be written: {self._reason})")

    def resumed(self, step: int, checkpoint: str) -> None:
        """Write that the run resumes after `step`."""
        self._write({"kind": "resume", "step": step, "checkpoint": checkpoint})

    def sync(self) -> None:
        """Flush the rows to disk: a checkpoint must not include more steps than the record.

        Rows that do not fit on the disk keep waiting: a checkpoint on another disk matters more.
        """
        self._flush(len(self._waiting))
        if self.path.exists():
            sync(self.path)

    def _write(self, row: dict[str, Any]) -> None:
        late = len(self._waiting)
        self._waiting.append(_line({**row, "time": round(time.time(), 3)}))
        self._flush(late)

    def _flush(self, late: int) -> None:
        rows = list(self._waiting)
        if not rows:
            return
        if late:
            text = f"{late} rows of {METRICS_FILE} were written late: {self._reason}"
            rows.append(_line({"kind": "note", "text": text, "time": round(time.time(), 3)}))
        try:
            append(self.path, b"".join(rows))
        except OSError as error:
            if not self._reason:
                logger.warning(f"{self.path} cannot be written, its rows wait in memory: {error}")
            self._reason = str(error)
            with suppress(OSError):
                os.utime(self.path)  # keeps the watchdog from firing
            return
        self._waiting, self._reason = [], ""


def append(path: Path, data: bytes) -> None:
    """Append all of `data` to a file, or nothing. Raises OSError if nothing was appended."""
    with path.open("ab", buffering=0) as file:
        written = 0
        try:
            while written < len(data):
                written += file.write(data[written:])
        except OSError:
            if written:
                file.truncate(file.tell() - written)
            raise


def plain(metrics: Mapping[str, Any]) -> dict[str, float | None]:
    """Return the numeric entries of `metrics`; non-finite values become None, because JSON has no NaN."""
    numeric = {name: float(v) for name, v in metrics.items() if isinstance(v, numbers.Real)}
    return {name: value if math.isfinite(value) else None for name, value in numeric.items()}


def benchmarks(row: Mapping[str, Any]) -> list[str]:
    """Return the benchmarks for which an evaluation row has an accuracy."""
    whole = ("eval_accuracy", "eval_macro_accuracy")
    names = (name for name in row if name.startswith("eval_") and name.endswith("_accuracy") and name not in whole)
    return [name.removeprefix("eval_").removesuffix("_accuracy") for name in names]


def read_record(directory: str | Path, damaged: list[bytes] | None = None) -> Iterator[dict[str, Any]]:
    """Yield the rows of a run, without a last line that is still being written.

    Malformed lines, which a machine crash can leave, are skipped and appended to `damaged`.
    """
    path = Path(directory) / METRICS_FILE
    if not path.is_file():
        return
    with path.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                return
            row = _row(line)
            if row is not None:
                yield row
            elif damaged is not None:
                damaged.append(line)


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = parse_json(line.decode("utf-8"))
    except ValueError:
        return None
    if not isinstance(row, dict) or not isinstance(row.get("kind"), str):
        return None
    needed = NEEDED.get(row["kind"], {})
    whole = all(isinstance(row.get(name), kind) and not isinstance(row[name], bool) for name, kind in needed.items())
    return row if whole else None


def stop_reason(directory: str | Path) -> str | None:
    """Return why the run stopped early, from the last stop row since the last plan row; None if it did not."""
    reason = None
    for row in read_record(directory):
        reason = {"plan": None, "stop": row.get("reason")}.get(row["kind"], reason)
    return reason


def rewind(directory: str | Path, step: int, evaluated: bool) -> int:
    """Set aside the rows of steps after `step`, the step of the checkpoint to resume from; return how many.

    They go to `metrics.abandoned.jsonl`. Malformed lines go to `metrics.damaged`, with a note. Unless `evaluated`, an
    evaluation at `step` is set aside too, because it will be repeated.
    """
    path = Path(directory) / METRICS_FILE
    kept: list[dict[str, Any]] = []
    gone: list[dict[str, Any]] = []
    damaged: list[bytes] = []
    for row in read_record(directory, damaged):
        (gone if _is_later(row, step, evaluated) else kept).append(row)
    if damaged:
        append(path.with_name(DAMAGED_FILE), b"".join(damaged))
        text = f"{len(damaged)} lines of {METRICS_FILE} were damaged; they are in {DAMAGED_FILE}"
        kept.append({"kind": "note", "text": text, "time": round(time.time(), 3)})
    if gone:
        append(path.with_name(ABANDONED_FILE), b"".join(map(_line, gone)))
    write_bytes(path, b"".join(map(_line, kept)))
    return len(gone)


def _is_later(row: Mapping[str, Any], step: int, evaluated: bool) -> bool:
    if row["kind"] == "step":
        return row["step"] > step
    if row["kind"] != "eval":
        return False
    return row["when"] == "after" or row["step"] > step - (row["when"] == "during" and not evaluated)


def _line(row: Mapping[str, Any]) -> bytes:
    """Encode a row as a line; an unpaired surrogate, which UTF-8 cannot encode, becomes a question mark."""
    return json.dumps(row, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
