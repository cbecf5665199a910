"""Console output of a run: one line per step, read from the run record, and a final summary."""

from __future__ import annotations

import shlex
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from openrlhf_ktae.base.text import figure_cell
from openrlhf_ktae.checkpoint.folder import folders
from openrlhf_ktae.record.metrics import METRICS_FILE, benchmarks, read_record

POLL_SECONDS = 0.2
RAY_UNPACKED = "/runtime_resources/working_dir_files/_ray_pkg_"  # in the path of a submitted job's working directory


class Console:
    """Context manager that prints the record of `directory` as it grows."""

    def __init__(self, directory: str | Path) -> None:
        self._directory = Path(directory)
        self._started = time.time()
        self._stream = sys.stdout  # the host's prints are redirected, but not this
        self._rows = sum(1 for _ in read_record(directory))  # a resumed run does not print old rows again
        self._planned = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> Console:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self._print_new()

    def say(self, text: str) -> None:
        """Print one line, prefixed with the seconds since the start."""
        line = f"[{time.time() - self._started:5.1f} s] {text}"
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        print(line.encode(encoding, "replace").decode(encoding), file=self._stream, flush=True)

    def _follow(self) -> None:
        size = -1
        path = self._directory / METRICS_FILE
        while not self._done.wait(POLL_SECONDS):
            now = path.stat().st_size if path.is_file() else 0
            if now != size:
                size = now
                self._print_new()

    def _print_new(self) -> None:
        rows = list(read_record(self._directory))
        for row in rows[self._rows :]:
            if row["kind"] == "plan":
                self._planned = row["steps"]
            elif row["kind"] in ("note", "stop"):
                self.say(str(row.get("text", "training stopped")))
            elif row["kind"] in ("step", "eval"):
                self.say(step_line(row, self._planned) if row["kind"] == "step" else evaluation_line(row))
        self._rows = len(rows)


def step_line(row: Mapping[str, Any], planned: int) -> str:
    """Return the console line of one training step."""
    total = f"/{planned}" if planned >= row["step"] else ""
    parts = [
        f"step {row['step']:>4}{total}",
        _number(row, "rollout/reward_mean", "reward {:.3f}"),
        _number(row, "rollout/response_length_mean", "length {:.1f}"),
        _number(row, "dynamic_sampling/prompts_drawn", "prompts {:.0f}"),
        _number(row, "dynamic_sampling/kept_share", "kept {:.0%}"),
        _number(row, "ktae/mixed_group_share", "mixed groups {:.0%}"),
        _number(row, "credit/mixed_group_share", "mixed groups {:.0%}"),
        _number(row, "ktae/mean_abs_k", "|K| {:.3f}"),
        _number(row, "credit/mean_abs_added", "|credit| {:.3f}"),
        _number(row, "timing/step_total", "{:.2f} s"),
        _number(row, "timing/generation", "(generation {:.2f}"),
        _number(row, "timing/make_experience", "experience {:.2f}"),
        _number(row, "timing/ppo_train", "update {:.2f}"),
        _number(row, "timing/broadcast", "weights {:.2f})"),
    ]
    return "  ".join(part for part in parts if part)


def evaluation_line(row: Mapping[str, Any]) -> str:
    """Return the console line of one evaluation."""
    accuracy, length = interval(row, "eval_accuracy", 100), interval(row, "eval_response_length_mean", 1)
    line = f"held-out {row['when']:>6}  accuracy {accuracy} %  length {length}"
    if len(benchmarks(row)) < 2:
        return line
    of_each = "  ".join(f"{name} {_percent(row, f'eval_{name}_accuracy')}" for name in benchmarks(row))
    return f"{line}  macro {interval(row, 'eval_macro_accuracy', 100)} %  {of_each}"


def interval(row: Mapping[str, Any], name: str, scale: float) -> str:
    """Return `mean [low, high]` of one evaluation metric; `unknown` if one of them is missing."""
    values = [figure(row, name + end) for end in ("", "_low", "_high")]
    if any(value is None for value in values):
        return "unknown"
    return figure_cell(*values, scale=scale)


def figure(row: Mapping[str, Any], name: str) -> float | None:
    """Return a number of a row; None if it is missing or not a number."""
    value = row.get(name)
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    return float(value) if is_number and value is not None else None


def _number(row: Mapping[str, Any], name: str, form: str) -> str:
    value = figure(row, name)
    return "" if value is None else form.format(value)


def _percent(row: Mapping[str, Any], name: str) -> str:
    value = figure(row, name)
    return "unknown" if value is None else f"{100 * value:.1f}"


def summary(args: SimpleNamespace) -> str:
    """Return the closing lines: held-out metrics before and after, and where the outputs are."""
    rows = list(read_record(args.run.dir))
    lines = [*_comparison(rows), *_places(args)]
    if reason := untrained(args.run.dir):
        lines.insert(0, f"NO STEP WAS TRAINED: {reason}; the model is unchanged.")
    return "\n".join(lines)


def untrained(directory: str | Path) -> str | None:
    """Return why a finished run trained no step; None if it trained any."""
    trained = any(row["kind"] == "step" for row in read_record(directory))
    return None if trained else "the data ran out or every group was filtered"


def _comparison(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    edges = {row["when"]: row for row in rows if row["kind"] == "eval" and row["when"] != "during"}
    if set(edges) != {"before", "after"}:
        return []
    before, after = edges["before"], edges["after"]
    return [
        f"held-out accuracy  {interval(before, 'eval_accuracy', 100)} % -> {interval(after, 'eval_accuracy', 100)} %",
        f"response length    {interval(before, 'eval_response_length_mean', 1)} -> "
        f"{interval(after, 'eval_response_length_mean', 1)} tokens",
        f"                   {_number(after, 'eval_problems', '{:.0f}')} problems, "
        f"{_number(after, 'eval_rollouts', '{:.0f}')} rollouts, "
        f"{after['step']} steps; [95 % interval over problems]",
    ]


def _places(args: SimpleNamespace) -> list[str]:
    directory = Path(args.run.dir).absolute()
    places = [
        ("model", args.ckpt.output_dir),
        ("checkpoints", args.ckpt.path if folders(Path(args.ckpt.path)) else None),
        ("metrics", directory / METRICS_FILE),
        ("options", directory / "config.yaml"),
        ("TensorBoard", args.logger.tensorboard_dir),
    ]
    lines = [f"{name:<18} {Path(place).absolute()}" for name, place in places if place]
    lines += [f"warning            {text}" for text in deleted_later(args)]
    board = Path(args.logger.tensorboard_dir or directory).absolute()
    lines.append(f"next               look: tensorboard --logdir {shlex.quote(str(board))}")
    command = "python -m openrlhf_ktae.cli.train_ppo_ray"
    lines.append(f"                   repeat: {command} --config {shlex.quote(f'{directory}/config.yaml')}")
    return lines


def deleted_later(args: SimpleNamespace) -> list[str]:
    """Return warnings for outputs inside a submitted job's working directory, which Ray deletes later."""
    outputs = {"--run.dir": args.run.dir, "--ckpt.output_dir": args.ckpt.output_dir, "--ckpt.path": args.ckpt.path}
    return [
        f"{flag} {place}: is {Path(place).absolute()}, which Ray deletes later; give an absolute path outside it"
        for flag, place in outputs.items()
        if place and RAY_UNPACKED in str(Path(place).absolute())
    ]
