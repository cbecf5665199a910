"""The quickstart's cost on this machine: time to the first step, per step and in total, memory, and accuracy.

    .venv/bin/python benchmarks/quickstart_cost.py --rounds 2

Other options go to the training command. Memory is the largest sum of PSS over the run's processes (every 0.5 s).
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

from soak import memory

from openrlhf_ktae.processes.marks import VARIABLE, marked
from openrlhf_ktae.record.metrics import read_record

ROOT = Path(__file__).resolve().parents[1]
CONFIG = "configs/grpo_ktae/quickstart.yaml"
PHASES = ("generation", "make_experience", "ppo_train", "broadcast", "step_total")
SAMPLE_SECONDS = 0.5


def all_memory(mark: str) -> int:
    """Return the PSS of a run's live processes in bytes; shared memory counts once."""
    total = 0
    for process in marked(mark):
        try:
            total += memory(process.pid)[1]
        except (OSError, KeyError):
            continue  # just ended
    return total


def play(config: str, words: list[str]) -> dict[str, Any]:
    """Run the training command and return its figures."""
    mark, peak = uuid.uuid4().hex, 0
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder)
        command = [sys.executable, "-m", "openrlhf_ktae.cli.train_ppo_ray", "--config", config, "--run.dir", folder]
        began = time.time()
        with (run / "train.log").open("wb") as log:
            process = subprocess.Popen(
                [*command, *words], cwd=ROOT, env=os.environ | {VARIABLE: mark}, stdout=log, stderr=subprocess.STDOUT
            )
            while process.poll() is None:
                peak = max(peak, all_memory(mark))
                time.sleep(SAMPLE_SECONDS)
        seconds = time.time() - began
        if process.returncode:
            raise SystemExit((run / "train.log").read_text(errors="replace"))
        rows = list(read_record(run))
    steps = [row for row in rows if row["kind"] == "step"]
    held_out = [row["eval_accuracy"] for row in rows if row["kind"] == "eval"]
    return {
        "first step": steps[0]["time"] - steps[0]["timing/step_total"] - began,
        "all": seconds,
        "peak GB": peak / 1e9,
        "before": 100 * held_out[0],
        "after": 100 * held_out[-1],
        **{phase: statistics.median(row[f"timing/{phase}"] for row in steps) for phase in PHASES},
    }


def main() -> None:
    """Print a line per round, and medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default=CONFIG)
    parser.add_argument("--rounds", type=int, default=3)
    options, words = parser.parse_known_args()
    rounds = [play(options.config, words) for _ in range(options.rounds)]
    print("".join(f"{name:>16}" for name in rounds[0]))
    for row in rounds:
        print("".join(f"{value:16.2f}" for value in row.values()))
    print("".join(f"{statistics.median(row[name] for row in rounds):16.2f}" for name in rounds[0]), "median")


if __name__ == "__main__":
    main()
