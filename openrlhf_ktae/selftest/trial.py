"""The runs of a trial: a configuration on a few of its steps, in a folder of their own, and what differs."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openrlhf_ktae.processes.deaths import START_MINUTES
from openrlhf_ktae.processes.marks import VARIABLE
from openrlhf_ktae.record.metrics import read_record
from openrlhf_ktae.selftest.killing import kill_all
from openrlhf_ktae.selftest.same import first_difference, first_different_weight

TRAIN = "openrlhf_ktae.cli.train_ppo_ray"
LOG = "train.log"
EPISODES = 2  # so that the end of one is among the steps
ENGINE_RESTARTS = 100  # as many as there are deaths
STRAIGHT, AGAIN, KILLED = "straight", "again", "killed"


class TrialFailed(RuntimeError):
    """A run of the trial ended on its own where it should not have; the message has its last words."""


@dataclass(frozen=True)
class Trial:
    """The runs of one trial: below `folder`, with the user's `words`, over `prompts` prompts in two episodes."""

    words: Sequence[str]
    folder: Path
    prompts: int
    save_steps: int = 1

    def command(self, name: str, resume: str) -> list[str]:
        """Return the command of one run; the user's words come first, so that ours win."""
        ours = {
            "run.dir": str(self.folder / name),
            "ckpt.output_dir": str(self.folder / name / "model"),
            "ckpt.path": str(self.folder / name / "checkpoints"),
            "ckpt.save_steps": self.save_steps,
            "ckpt.max_num": 2,
            "data.max_samples": self.prompts,
            "train.num_episodes": EPISODES,
            "train.full_determinism_enable": "true",
            "run.restarts": 0,
            "run.watchdog_minutes": START_MINUTES,
            "faults.engine_restarts": ENGINE_RESTARTS,
            "run.eval_edges": "false",
            "eval.steps": -1,
            "logger.wandb.key": "",
            "resume": resume,
        }
        return [sys.executable, "-m", TRAIN, *self.words, *(f"--{option}={value}" for option, value in ours.items())]

    def start(self, name: str, resume: str = "never", mark: str = "") -> subprocess.Popen[bytes]:
        """Start one run in a session of its own; every process of it carries `mark` in its environment."""
        directory = self.folder / name
        directory.mkdir(parents=True, exist_ok=True)
        with self.log(name).open("ab") as log:
            return subprocess.Popen(
                self.command(name, resume),
                env={**os.environ, VARIABLE: mark or uuid.uuid4().hex},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def finish(self, name: str, resume: str = "never") -> None:
        """Run to the end.

        Raises:
            TrialFailed: it did not end well.
        """
        self.wait(name, self.start(name, resume))

    def wait(self, name: str, process: subprocess.Popen[bytes]) -> None:
        """Wait for the end of a run that was started.

        Raises:
            TrialFailed: it did not end well.
        """
        try:
            code = process.wait()
        except BaseException:
            kill_all(process)
            raise
        if code:
            raise TrialFailed(self.last_words(name, f"ended with exit code {code}"))

    def steps(self, name: str, since: float = 0.0) -> list[dict[str, Any]]:
        """Return the steps in the record of a run, of those that were made after a moment."""
        rows = read_record(self.folder / name)
        return [row for row in rows if row["kind"] == "step" and row["time"] > since]

    def log(self, name: str) -> Path:
        """Return the file of what a run printed."""
        return self.folder / name / LOG

    def last_words(self, name: str, what: str) -> str:
        """Return what a run printed last."""
        log = self.log(name)
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-8:]
        return "\n".join([f"the run {name} {what}; {log}:", *lines])

    def difference(self, name: str) -> str | None:
        """Return where a run differs from the straight one first, in its record or in its final weights."""
        straight, other = self.folder / STRAIGHT, self.folder / name
        return first_difference(straight, other) or first_different_weight(straight / "model", other / "model")
