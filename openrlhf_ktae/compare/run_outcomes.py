"""Outcomes of a training run, from its record: curves over steps and tokens, and scalars to compare.

Legend: `N` steps, `E` evaluations.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from openrlhf_ktae.base.errors import Refusal
from openrlhf_ktae.record.metrics import METRICS_FILE, read_record

Floats = NDArray[np.float64]

SEED_FOLDER = re.compile(r"seed-?\d+")
OPTIONS = "config.yaml"
LARGEST = 1e300  # larger values are not measurements, and sums of them overflow
SAMPLES, LENGTH = "rollout/num_samples", "rollout/response_length_mean"
DRAWN = "dynamic_sampling/prompts_drawn"
SMOOTHED = 5  # steps: one step's reward is the mean of few rollouts, so it is noisy
OUTCOMES = {
    "final_accuracy": "held-out accuracy at equal steps",
    "accuracy_at_tokens": "held-out accuracy at equal tokens",
    "auc_accuracy": "mean held-out accuracy over steps",
    "auc_reward": "mean training reward over steps",
    "auc_reward_tokens": "mean training reward over equal tokens",
    "response_length": "held-out response length",
    "steps_to_threshold": "steps to the threshold",
}


class BadRun(Refusal):
    """A run directory has no readable record; the message names it."""


@dataclass(frozen=True)
class Run:
    """The record of one run."""

    path: Path
    steps: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]
    """In step order; if a step has several, only the last."""
    samples_per_prompt: int = 0
    """0 if the run's options are missing."""

    def series(self, metric: str) -> tuple[Floats, Floats]:
        """Return steps and values (N,) of a metric, for the steps that recorded it."""
        return _series(self.steps, metric)

    def held_out(self, metric: str = "eval_accuracy") -> tuple[Floats, Floats]:
        """Return steps and values (E,) of an evaluation metric."""
        return _series(self.evaluations, metric)

    def tokens(self) -> Floats:
        """Return the response tokens generated up to each step (N,).

        Groups that dynamic sampling discarded count with the mean length of the step's rollouts.
        """
        return np.cumsum([self._rollouts(row) * _number(row, LENGTH) for row in self.steps])

    def _rollouts(self, row: dict[str, Any]) -> float:
        if self.samples_per_prompt and _is_number(row.get(DRAWN)):
            return float(row[DRAWN]) * self.samples_per_prompt
        return _number(row, SAMPLES)


def _series(rows: list[dict[str, Any]], metric: str) -> tuple[Floats, Floats]:
    known = [(row["step"], row[metric]) for row in rows if _is_number(row.get(metric))]
    table = np.array(known, dtype=np.float64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def _number(row: dict[str, Any], name: str) -> float:
    return float(row[name]) if _is_number(row.get(name)) else 0.0


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < LARGEST


@dataclass(frozen=True)
class Budget:
    """The steps and response tokens at which runs are compared."""

    steps: float
    tokens: float


def arm_of(path: Path) -> Path:
    """Return the parent of a directory named `seed-N` or `seedN`; any other directory is its own arm."""
    path = path.resolve()
    return path.parent if SEED_FOLDER.fullmatch(path.name) else path


def arm_labels(arms: Iterable[Path]) -> dict[Path, Path]:
    """Return a label for each arm: its folder's name, with as many parent folders as needed to be unique."""
    ends = {arm: [Path(*arm.parts[-n:]) for n in range(1, len(arm.parts) + 1)] for arm in arms}
    counts = Counter(end for of_arm in ends.values() for end in of_arm)
    return {arm: next(end for end in of_arm if counts[end] == 1) for arm, of_arm in ends.items()}


def read_run(path: Path) -> Run:
    """Return the run of a directory.

    Raises BadRun if it is not a run directory, its record is damaged, or no step was recorded.
    """
    if not (path / METRICS_FILE).is_file():
        raise BadRun(f"{path}: not a run directory (it has no {METRICS_FILE})")
    try:
        damaged: list[bytes] = []
        rows = list(read_record(path, damaged))
        if damaged:
            raise ValueError(f"{len(damaged)} lines cannot be read; remove them, or resume with --resume auto")
        steps = sorted((row for row in rows if row["kind"] == "step"), key=lambda row: row["step"])
        evaluations = {row["step"]: row for row in rows if row["kind"] == "eval"}
        for row in (*steps, *evaluations.values()):
            if not _is_number(row["step"]):
                raise ValueError(f"a step is {row['step']!r}")
    except (ValueError, KeyError, TypeError) as error:
        raise BadRun(f"{path / METRICS_FILE}: damaged ({error})") from None
    if not steps:
        raise BadRun(f"{path}: a run directory without steps; nothing was trained yet")
    return Run(path, steps, [evaluations[step] for step in sorted(evaluations)], _samples_per_prompt(path))


def _samples_per_prompt(path: Path) -> int:
    try:
        samples = yaml.safe_load((path / OPTIONS).read_text(encoding="utf-8"))["rollout"]["n_samples_per_prompt"]
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return 0
    return samples if isinstance(samples, int) and samples > 0 else 0


def outcomes(run: Run, threshold: float, budget: Budget) -> dict[str, float]:
    """Return the OUTCOMES of one run; NaN for an outcome whose data the run did not record.

    Accuracy and length are interpolated between evaluations.

    Args:
        run: the run.
        threshold: training reward that counts as learnt; a run that never reaches it gets the budget's steps plus one.
        budget: steps and response tokens at which runs are compared.
    """
    steps, reward = run.series("rollout/reward_mean")
    at, accuracy = run.held_out()
    _, lengths = run.held_out("eval_response_length_mean")
    tokens = run.tokens()
    recorded = np.array([row["step"] for row in run.steps], dtype=np.float64)
    until, height = curve_until(at, accuracy, budget.steps)
    tokens_at = np.interp(at, np.concatenate([[0.0], recorded]), np.concatenate([[0.0], tokens]))
    nan = float("nan")
    early = steps <= budget.steps
    within = tokens[np.isin(recorded, steps)] <= budget.tokens * (1 + 1e-9)
    learnt = first_at_least(reward[early], threshold)
    return {
        "final_accuracy": float(height[-1]) if height.size else nan,
        "accuracy_at_tokens": float(np.interp(budget.tokens, tokens_at, accuracy)) if accuracy.size > 1 else nan,
        "auc_accuracy": mean_height(until, height),
        "auc_reward": float(reward[early].mean()) if early.any() else nan,
        "auc_reward_tokens": float(reward[within].mean()) if within.any() else nan,
        "response_length": float(np.interp(budget.steps, at, lengths)) if lengths.size else nan,
        "steps_to_threshold": float(steps[learnt] if learnt is not None else budget.steps + 1) if early.any() else nan,
    }


def curve_until(x: Floats, y: Floats, end: float) -> tuple[Floats, Floats]:
    """Return the curve up to `end`, with an interpolated last point there."""
    if x.size < 2 or x[-1] <= end:
        return x, y
    kept = x < end
    return np.append(x[kept], end), np.append(y[kept], np.interp(end, x, y))


def mean_height(x: Floats, y: Floats) -> float:
    """Return the mean height of a curve: its trapezoidal area divided by its width."""
    if x.size < 2 or x[-1] == x[0]:
        return float("nan")
    return float(np.trapezoid(y, x) / (x[-1] - x[0]))


def first_at_least(values: Floats, threshold: float) -> int | None:
    """Return the first index at which the mean of the last SMOOTHED values reaches `threshold`, or None."""
    for i in range(SMOOTHED - 1, values.size):
        if values[i + 1 - SMOOTHED : i + 1].mean() >= threshold:
            return i
    return None


def common_budget(runs: Sequence[Run]) -> Budget:
    """Return the steps and response tokens that every run reached."""
    steps = min(run.steps[-1]["step"] for run in runs)
    return Budget(float(steps), float(min(run.tokens()[-1] for run in runs)))
