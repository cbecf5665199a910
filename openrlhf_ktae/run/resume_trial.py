"""Does a configuration give the same result twice, and the same after a death? Tried on a few of its steps."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openrlhf_ktae.checkpoint.folder import listed
from openrlhf_ktae.run.record import read_record
from openrlhf_ktae.run.same import first_difference, first_different_weight

TRAIN = "openrlhf_ktae.cli.train_ppo_ray"
LOG = "train.log"
POLL_SECONDS = 0.05
DEATH_SECONDS = 10.0  # until the system has taken back what a killed process held
EPISODES = 2  # so that the end of one is among the steps
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
            "run.eval_edges": "false",
            "eval.steps": -1,
            "logger.wandb.key": "",
            "resume": resume,
        }
        return [sys.executable, "-m", TRAIN, *self.words, *(f"--{option}={value}" for option, value in ours.items())]

    def start(self, name: str, resume: str = "never") -> subprocess.Popen[bytes]:
        """Start one run in a session of its own."""
        directory = self.folder / name
        directory.mkdir(parents=True, exist_ok=True)
        with (directory / LOG).open("ab") as log:
            return subprocess.Popen(
                self.command(name, resume), stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )

    def finish(self, name: str, resume: str = "never") -> None:
        """Run to the end.

        Raises:
            TrialFailed: it did not end well.
        """
        process = self.start(name, resume)
        try:
            code = process.wait()
        except BaseException:
            kill_all(process)
            raise
        if code:
            raise TrialFailed(self.last_words(name, f"ended with exit code {code}"))

    def kill_in_training(self, name: str, share: float) -> str | None:
        """Start or resume a run and kill all its processes at once; return what it had done.

        None where it ended well before it could be killed.

        Args:
            name: of the run.
            share: when to kill it: of the time that the straight run took for its steps, counted from the first step.

        Raises:
            TrialFailed: it failed on its own.
        """
        started = time.time()
        process = self.start(name, "auto")
        try:
            while process.poll() is None and not self.steps(name, since=started):
                time.sleep(POLL_SECONDS)
            times = [row["time"] for row in self.steps(STRAIGHT)]
            time.sleep(share * (times[-1] - times[0]))
            code = process.poll()
        finally:
            kill_all(process)
        if code:
            raise TrialFailed(self.last_words(name, f"ended with exit code {code} before it was killed"))
        if code == 0:
            return None
        found = listed(self.folder / name / "checkpoints")[0]
        newest = found[0].path.name if found else "none"
        return f"killed after step {self.steps(name)[-1]['step']}; newest checkpoint: {newest}"

    def steps(self, name: str, since: float = 0.0) -> list[dict[str, Any]]:
        """Return the steps in the record of a run, of those that were made after a moment."""
        rows = read_record(self.folder / name)
        return [row for row in rows if row["kind"] == "step" and row["time"] > since]

    def last_words(self, name: str, what: str) -> str:
        """Return what a run printed last."""
        log = self.folder / name / LOG
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-8:]
        return "\n".join([f"the run {name} {what}; {log}:", *lines])

    def difference(self, name: str) -> str | None:
        """Return where a run differs from the straight one first, in its record or in its final weights."""
        straight, other = self.folder / STRAIGHT, self.folder / name
        return first_difference(straight, other) or first_different_weight(straight / "model", other / "model")


def kill_all(process: subprocess.Popen[bytes]) -> None:
    """Kill a run and everything that it started, as losing a machine would."""
    import psutil

    try:
        root = psutil.Process(process.pid)
        family = [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        family = []
    for member in family:
        try:
            member.send_signal(signal.SIGSTOP)  # none may react to the death of another
        except psutil.NoSuchProcess:
            continue
    for member in family:
        try:
            member.kill()
        except psutil.NoSuchProcess:
            continue
    process.wait()
    psutil.wait_procs(family, timeout=DEATH_SECONDS)


def try_resume(trial: Trial, kills: int, seed: int, say: Callable[[str], None]) -> list[str]:
    """Run straight, run again, and run with `kills` deaths at random moments; return the differences found.

    Raises:
        TrialFailed: a run failed on its own.
    """
    say("one run without a break")
    trial.finish(STRAIGHT)
    say("the same again")
    trial.finish(AGAIN)
    moments = random.Random(seed)
    for number in range(1, kills + 1):
        share = moments.random()
        say(f"death {number}: kill -9 of every process, {share:.0%} of the time of all steps after its first")
        done = trial.kill_in_training(KILLED, share)
        say(done or "it had ended; no further death")
        if not done:
            break
    say("resumed to the end")
    trial.finish(KILLED, resume="auto")
    what = {AGAIN: "the same run twice", KILLED: "killed and resumed"}
    return [f"{text}: {difference}" for name, text in what.items() if (difference := trial.difference(name))]
