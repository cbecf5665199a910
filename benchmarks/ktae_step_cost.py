"""KTAE's cost in a training step of the quickstart: one real run in which every other step skips it.

    python benchmarks/ktae_step_cost.py [--episodes 4] [--run-dir runs/step_cost] [further options of train_ppo_ray]

It gives two figures. The share: one timer, `ktae/seconds`, covers all of a step's work for KTAE (K, its metrics, its
key tokens), so its share of the step's time is exact. The difference: seconds of steps with and without KTAE. Step
times vary by more than the effect because rollouts differ, so the difference has an interval. It is repeated without
generation, which KTAE does not affect. Exits with 1 if the share is above 1 %.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Times = NDArray[np.float64]

GOAL = 0.01
ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "configs/grpo_ktae/quickstart.yaml"
FIRST = 4
"""Number of first steps left out, since loading on first use would affect only one arm."""
RESAMPLES = 10_000
MILLI = 1e3
QUANTILES = (0.025, 0.975)


def main() -> int:
    """Run, then report from the run's record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--episodes", type=int, default=4, help="passes over the 320 prompts, 40 steps each")
    parser.add_argument("--run-dir", type=Path, default=ROOT / "runs/step_cost")
    options, further = parser.parse_known_args()
    train(
        [
            *("--config", str(CONFIG), "--run.dir", str(options.run_dir), "--run.eval_edges", "false"),
            *("--train.num_episodes", str(options.episodes), *further),
        ]
    )
    return report(options.run_dir / "metrics.jsonl")


def train(words: list[str]) -> None:
    """Train with `AlternatingTrainer`."""
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH", "")])
    from openrlhf_ktae.cli import train_ppo_ray

    train_ppo_ray.host_classes = alternating_classes
    if train_ppo_ray.main(words):
        raise SystemExit("the run failed: see above")


def alternating_classes(backend: str) -> Any:
    """Return our classes for a backend; called in the process of the host's `train`, which then finds the trainer."""
    from alternating_trainer import AlternatingTrainer

    from openrlhf_ktae.trainer import ppo_trainer
    from openrlhf_ktae.trainer.ray.classes import host_classes

    ppo_trainer.KTAEPPOTrainer = AlternatingTrainer  # type: ignore[misc]
    return host_classes(backend)


def report(record: Path) -> int:
    """Print the figures; return 0 if the share is within the goal, else 1."""
    with record.open() as lines:
        steps = [row for row in map(json.loads, lines) if row["kind"] == "step"][FIRST:]
    arms = [[step for step in steps if ("ktae/seconds" in step) == on] for on in (True, False)]
    added = [step["ktae/seconds"] for step in arms[0]]
    whole = [np.array([step["timing/step_total"] for step in arm]) for arm in arms]
    rest = [times - [step["timing/generation"] for step in arm] for times, arm in zip(whole, arms, strict=True)]
    step = float(np.median(whole[1]))
    share = statistics.median(added) / step
    print(f"steps with / without KTAE       {len(arms[0])} / {len(arms[1])}")
    print(f"step without KTAE, median       {step * MILLI:.1f} ms")
    print(f"KTAE's own time, median (most)  {statistics.median(added) * MILLI:.2f} ms ({max(added) * MILLI:.2f} ms)")
    print(f"share of the step               {share:.2%}  goal <= {GOAL:.0%}  {'held' if share <= GOAL else 'MISSED'}")
    print(f"difference of medians           {difference(*whole, step)}")
    print(f"the same outside generation     {difference(*rest, step)}")
    return 0 if share <= GOAL else 1


def difference(on: Times, off: Times, step: float) -> str:
    """Return the difference of medians as a share of a step, with a bootstrap interval."""
    rng = np.random.default_rng(0)
    draws = [np.median(rng.choice(arm, (RESAMPLES, len(arm))), axis=1) for arm in (on, off)]
    low, high = np.quantile(draws[0] - draws[1], QUANTILES) / step
    return f"{(np.median(on) - np.median(off)) / step:+.1%}  95 % interval [{low:+.1%}, {high:+.1%}]"


if __name__ == "__main__":
    sys.exit(main())
