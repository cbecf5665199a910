"""The cost of a run's startup: seconds to the first step, processor seconds and memory by kind of process.

    .venv/bin/python benchmarks/start_up.py --rounds 3
    .venv/bin/python benchmarks/start_up.py --before ../main --trl-python /tmp/trl/bin/python

A run is one step of 32 rollouts x 16 tokens with the quickstart's model and prompts. The sides take turns: this
checkout, with `--before` another one, with `--trl-python` TRL's `GRPOTrainer` (`step_vs_trl.py` says how to install
it). `quickstart` is a run of the quickstart's own configuration, which evaluates before its first step. Seconds count
from the command to the end of the first step (or evaluation). Processor seconds count to the end of the run, except for
children that ended between two samples. Memory is the peak PSS of each kind, and of all together.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import psutil
import step_vs_trl
from soak import memory, role_of

from openrlhf_ktae.processes.marks import VARIABLE, marked
from openrlhf_ktae.record.metrics import read_record

SAMPLE_SECONDS = 0.4
CONFIG = "configs/grpo_ktae/quickstart.yaml"


class Sampler(threading.Thread):
    """Samples processor time (s) and PSS (bytes) of all processes with a mark until stopped."""

    def __init__(self, mark: str) -> None:
        super().__init__(daemon=True)
        self.mark, self.over = mark, threading.Event()
        self.seconds: dict[tuple[str, int], float] = {}
        self.peak: dict[str, int] = defaultdict(int)

    def run(self) -> None:
        """Take samples."""
        while not self.over.wait(SAMPLE_SECONDS):
            now: dict[str, int] = defaultdict(int)
            for process in marked(self.mark):
                try:
                    role = role_of(process, -1)
                    times = process.cpu_times()
                    self.seconds["driver" if role == "other" else role, process.pid] = times.user + times.system
                    now["driver" if role == "other" else role] += memory(process.pid)[1]
                except (OSError, KeyError, psutil.Error):
                    continue  # it has just ended
            now["all"] = sum(now.values())
            for role, size in now.items():
                self.peak[role] = max(self.peak[role], size)

    def figures(self) -> dict[str, float]:
        """Return `cpu ROLE` (s) and `MB ROLE`; a process that changed its title counts under its last role."""
        last = {pid: role for role, pid in self.seconds}
        cpu: dict[str, float] = defaultdict(float)
        for pid, role in last.items():
            cpu[role] += self.seconds[role, pid]
        cpu["all"] = sum(cpu.values())
        return {f"cpu {k}": v for k, v in cpu.items()} | {f"MB {k}": v / 1e6 for k, v in self.peak.items()}


def sampled(play: Callable[[Path], float]) -> dict[str, float]:
    """Run one side in a folder; return its seconds to the first step and its processes' figures."""
    sampler = Sampler(uuid.uuid4().hex)
    with tempfile.TemporaryDirectory() as folder:
        os.environ[VARIABLE] = sampler.mark
        sampler.start()
        try:
            start = play(Path(folder))
        finally:
            del os.environ[VARIABLE]
            sampler.over.set()
    return {"start": start, **sampler.figures()}


def ours(tree: Path) -> Callable[[Path], float]:
    """Return a function that runs one step with the package of that checkout and returns the seconds to its end."""

    def play(folder: Path) -> float:
        os.environ["PYTHONPATH"] = str(tree)
        step_vs_trl.ROOT = tree
        return step_vs_trl.run_ours("quickstart", 1, folder, "ktae")[0]["start"]

    return play


def quickstart(tree: Path) -> Callable[[Path], float]:
    """Return a function that runs one step of the quickstart and returns the seconds to its first evaluation's end."""

    def play(folder: Path) -> float:
        os.environ["PYTHONPATH"] = str(tree)
        words = ["--config", CONFIG, "--data.max_samples", "8", "--run.dir", str(folder)]
        began = time.time()
        done = subprocess.run(
            [sys.executable, "-m", "openrlhf_ktae.cli.train_ppo_ray", *words], cwd=tree, capture_output=True, text=True
        )
        if done.returncode:
            sys.exit(done.stdout + done.stderr)
        return next(row["time"] for row in read_record(folder) if row["kind"] == "eval") - began

    return play


def main() -> None:
    """Run the sides in turns; print each side's medians and each round's ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, help="another checkout of this package")
    parser.add_argument("--trl-python", help="interpreter of an environment with trl==1.16.0")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    here = step_vs_trl.ROOT
    sides = {"ours": ours(here), "quickstart": quickstart(here)}
    if args.before:
        sides |= {"before": ours(args.before.resolve()), "quickstart before": quickstart(args.before.resolve())}
    if args.trl_python:
        sides["trl"] = lambda folder: step_vs_trl.run_trl("quickstart", 1, folder, args.trl_python)[0]["start"]
    rounds: dict[str, list[dict[str, float]]] = defaultdict(list)
    for _ in range(args.rounds):
        for side, play in sides.items():
            rounds[side].append(sampled(play))
            print(f"{side}: {rounds[side][-1]['start']:.1f} s, {rounds[side][-1]['cpu all']:.1f} s of CPU", flush=True)
    names = dict.fromkeys(name for rows in rounds.values() for row in rows for name in row)
    print(f"{'median':32}" + "".join(f"{side:>20}" for side in rounds))
    for name in sorted(names, key=lambda name: name.split()[0]):
        cells = (statistics.median(row.get(name, 0.0) for row in rows) for rows in rounds.values())
        print(f"{name:32}" + "".join(f"{cell:20.1f}" for cell in cells))
    for side in [side for side in ("before", "trl") if side in rounds]:
        ratios = (a["start"] / b["start"] for a, b in zip(rounds["ours"], rounds[side], strict=True))
        print(f"ours / {side}, start, by round: " + ", ".join(f"{ratio:.2f}" for ratio in ratios))


if __name__ == "__main__":
    main()
