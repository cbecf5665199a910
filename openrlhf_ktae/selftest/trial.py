"""The runs of a trial (a few steps of a configuration, each in its own folder) and their differences."""

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from openrlhf_ktae.base.errors import Refusal
from openrlhf_ktae.processes import stacks
from openrlhf_ktae.processes.deaths import START_MINUTES
from openrlhf_ktae.processes.marks import VARIABLE, marked
from openrlhf_ktae.record.metrics import read_record
from openrlhf_ktae.selftest.killing import kill_all
from openrlhf_ktae.selftest.same import first_difference, first_different_weight

TRAIN = "openrlhf_ktae.cli.train_ppo_ray"
LOG = "train.log"
EPISODES = 2  # so that the steps cross the end of an episode
ENGINE_RESTARTS = 100  # more than any trial's deaths
POLL_SECONDS = 0.05
STRAIGHT, AGAIN, KILLED = "straight", "again", "killed"


class TrialFailed(Refusal):
    """A run of the trial ended unexpectedly; the message has its last output."""


@dataclass(frozen=True)
class Trial:
    """The runs of one trial, in `folder`: they train on `prompts` prompts with the user's arguments, `words`."""

    words: Sequence[str]
    folder: Path
    prompts: int
    save_steps: int = 1
    module: str = TRAIN

    def command(self, name: str, resume: str) -> list[str]:
        """Return the command of one run. The user's arguments come first, so that ours override them."""
        folder = self.folder / name
        ours = {
            "run.dir": folder,
            "ckpt.output_dir": folder / "model",
            "ckpt.path": folder / "checkpoints",
            "ckpt.save_steps": self.save_steps,
            "data.max_samples": self.prompts,
            "resume": resume,
            **self.settings(),
        }
        given = (f"--{option}={value}" for option, value in ours.items())
        return [sys.executable, "-m", self.module, *self.words, *given]

    def settings(self) -> dict[str, Any]:
        """Return options that make two runs comparable, whichever processes die."""
        return {
            "ckpt.max_num": 2,
            "train.num_episodes": EPISODES,
            "train.full_determinism_enable": "true",
            "run.restarts": 0,
            "run.watchdog_minutes": START_MINUTES,
            "faults.engine_restarts": ENGINE_RESTARTS,
            "run.eval_edges": "false",
            "eval.steps": -1,
            "logger.wandb.key": "",
        }

    def start(self, name: str, resume: str = "never", mark: str = "") -> subprocess.Popen[bytes]:
        """Start one run in its own session; all its processes have `mark` in their environment."""
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
        """Run to the end. Raises TrialFailed if the run fails."""
        self.wait(name, self.start(name, resume))

    def wait(self, name: str, process: subprocess.Popen[bytes]) -> None:
        """Wait for the end of a started run. Raises TrialFailed if the run fails."""
        try:
            code = process.wait()
        except BaseException:
            kill_all(process)
            raise
        if code:
            raise TrialFailed(self.last_words(name, f"ended with exit code {code}"))

    def write_stacks(self, name: str, mark: str) -> None:
        """Write the stacks of a hanging run's processes, which have `mark`, next to its log."""
        for process in marked(mark):
            with suppress(psutil.Error, OSError):
                if folder := process.environ().get(stacks.VARIABLE):
                    stacks.dump(folder, mark, self.folder / name / stacks.FILE)
                    return

    def steps(self, name: str, since: float = 0.0) -> list[dict[str, Any]]:
        """Return the steps of a run that were recorded after the time `since`."""
        rows = read_record(self.folder / name)
        return [row for row in rows if row["kind"] == "step" and row["time"] > since]

    def log(self, name: str) -> Path:
        """Return the log file of a run."""
        return self.folder / name / LOG

    def last_words(self, name: str, what: str) -> str:
        """Return a message with the last lines that a run printed."""
        log = self.log(name)
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-8:]
        return "\n".join([f"the run {name} {what}; {log}:", *lines])

    def difference(self, name: str) -> str | None:
        """Return a run's first difference from the uninterrupted run, in record or final weights; None if equal."""
        straight, other = self.folder / STRAIGHT, self.folder / name
        return first_difference(straight, other) or first_different_weight(straight / "model", other / "model")


def holds_within(
    seconds: float, condition: Callable[[], bool], process: subprocess.Popen[bytes], poll_seconds: float = POLL_SECONDS
) -> bool:
    """Wait until the condition holds; return False if time runs out or the run ends first."""
    end = time.monotonic() + seconds
    while not condition():
        if process.poll() is not None or time.monotonic() > end:
            return False
        time.sleep(poll_seconds)
    return True
