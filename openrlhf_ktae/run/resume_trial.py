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

from openrlhf_ktae.checkpoint.folder import listed
from openrlhf_ktae.run.record import read_record
from openrlhf_ktae.run.same import first_difference, first_different_weight

TRAIN = "openrlhf_ktae.cli.train_ppo_ray"
LOG = "train.log"
POLL_SECONDS = 0.05
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

    def kill_at(self, name: str, share: float) -> str:
        """Start a run and kill all its processes at once; return what it had done.

        Args:
            name: of the run.
            share: of the time between the first checkpoint and the end, as the straight run took.

        Raises:
            TrialFailed: it ended before.
        """
        process = self.start(name)
        checkpoints = self.folder / name / "checkpoints"
        try:
            while process.poll() is None and not listed(checkpoints)[0]:
                time.sleep(POLL_SECONDS)
            time.sleep(share * self.seconds_after_first_checkpoint())
            ended = process.poll() is not None
        finally:
            kill_all(process)
        if ended:
            raise TrialFailed(self.last_words(name, "ended before it was killed"))
        steps = [row["step"] for row in read_record(self.folder / name) if row["kind"] == "step"]
        newest = listed(checkpoints)[0][0].path.name
        return f"killed after step {steps[-1] if steps else 0}; newest checkpoint {newest}"

    def seconds_after_first_checkpoint(self) -> float:
        """Return how long the straight run trained after its first checkpoint."""
        times = [row["time"] for row in read_record(self.folder / STRAIGHT) if row["kind"] == "step"]
        return times[-1] - times[min(self.save_steps, len(times)) - 1] if times else 0.0

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


def try_resume(trial: Trial, kills: int, seed: int, say: Callable[[str], None]) -> list[str]:
    """Run straight, run again, and kill and resume `kills` times at random moments; return the differences found.

    Raises:
        TrialFailed: a run ended on its own where it should not have.
    """
    say("one run without a break")
    trial.finish(STRAIGHT)
    say("the same again")
    trial.finish(AGAIN)
    found = [f"the same run twice: {trial.difference(AGAIN)}"] if trial.difference(AGAIN) else []
    moments = random.Random(seed)
    for number in range(1, kills + 1):
        name = f"{KILLED}-{number}"
        share = moments.random() * 0.9
        say(f"kill -9 of every process {share:.0%} of the way from the first checkpoint to the end")
        say(trial.kill_at(name, share))
        trial.finish(name, resume="auto")
        difference = trial.difference(name)
        if difference:
            found.append(f"killed and resumed: {difference}")
    return found
