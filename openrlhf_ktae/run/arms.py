"""Run arms x seeds one after the other, each through the training command in a process of its own; resumable.

OUT/ARM/seed-S is the run directory; `arm.json` in it says what it was started with, `done.json` that it ended well.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openrlhf_ktae.cli.config_file import load_config

STARTED, DONE, LOG = "arm.json", "done.json", "train.log"
TRAIN = [sys.executable, "-m", "openrlhf_ktae.cli.train_ppo_ray"]
LAST_LINES = 3


class OtherArms(ValueError):
    """The output folder holds runs of other settings."""


@dataclass(frozen=True)
class ArmRun:
    """One arm with one seed."""

    arm: str
    seed: int
    config: Path
    directory: Path
    words: tuple[str, ...]

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the run: every option of its files, and the words of the command line."""
        return {
            "options": json.loads(json.dumps(load_config(self.config))),
            "seed": self.seed,
            "words": list(self.words),
        }

    @property
    def done(self) -> bool:
        """Whether it ended well."""
        return (self.directory / DONE).is_file()

    def command(self) -> list[str]:
        """The training command of this run."""
        own = ["--config", str(self.config), "--run.dir", str(self.directory), "--train.seed", str(self.seed)]
        return [*TRAIN, *own, *self.words]


def plan(configs: Sequence[Path], seeds: Sequence[int], output: Path, words: Sequence[str]) -> list[ArmRun]:
    """Return every run, seed by seed, so that all arms have the same seeds at any time.

    Raises:
        OtherArms: two configurations have one name, or `output` holds runs of other settings.
    """
    names = [path.stem for path in configs]
    for name in names:
        if names.count(name) > 1:
            raise OtherArms(f"two configurations are called {name}.yaml; an arm is named after its file")
    runs = [
        ArmRun(path.stem, seed, path, output / path.stem / f"seed-{seed}", tuple(words))
        for seed in seeds
        for path in configs
    ]
    for run in runs:
        started, settings = run.directory / STARTED, run.settings  # reads the files: what is wrong is said before a run
        if started.is_file() and json.loads(started.read_text(encoding="utf-8")) != settings:
            raise OtherArms(f"{run.directory}: was run with other settings; give another --output or delete it")
        if run.directory.exists() and not started.is_file():
            raise OtherArms(f"{run.directory}: is no run of a comparison; give another --output")
    return runs


def execute(run: ArmRun) -> int:
    """Train from the start; return the exit code. What an interrupted attempt left is removed."""
    if run.directory.exists():
        shutil.rmtree(run.directory)
    run.directory.mkdir(parents=True)
    (run.directory / STARTED).write_text(json.dumps(run.settings, indent=2) + "\n", encoding="utf-8")
    started = time.time()
    with (run.directory / LOG).open("w", encoding="utf-8") as log:
        code = subprocess.run(run.command(), stdout=log, stderr=subprocess.STDOUT, check=False).returncode
    if code == 0:
        seconds = round(time.time() - started, 1)
        (run.directory / DONE).write_text(json.dumps({"seconds": seconds}) + "\n", encoding="utf-8")
    return code


def execute_all(runs: Sequence[ArmRun], say: Callable[[str], None]) -> list[ArmRun]:
    """Run what is not done; return the runs that failed.

    Raises:
        OtherArms: a run refuses its options, as every further run of the arm would.
    """
    failed = []
    for number, run in enumerate(runs, start=1):
        name = f"[{number}/{len(runs)}] {run.arm} seed {run.seed}"
        if run.done:
            say(f"{name}: done before")
            continue
        started = time.time()
        code = execute(run)
        if code == 2:
            raise OtherArms(f"{run.config}: {_last_lines(run)}")
        if code < 0 or code == 130:
            raise KeyboardInterrupt
        if code:
            failed.append(run)
        ended = f"FAILED with exit code {code}, see {run.directory / LOG}" if code else "done"
        say(f"{name}: {ended} in {time.time() - started:.0f} s")
    return failed


def _last_lines(run: ArmRun) -> str:
    lines = (run.directory / LOG).read_text(encoding="utf-8", errors="replace").splitlines()
    return " ".join(line.removeprefix("error: ") for line in lines[-LAST_LINES:])
