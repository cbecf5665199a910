"""A run of a trial that is killed repeatedly and checked after each death. It must end like an uninterrupted run."""

import os
import random
import signal
import statistics
import subprocess
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil

from openrlhf_ktae.base.exit_codes import EXIT_FAULT
from openrlhf_ktae.checkpoint.folder import MANIFEST, STAGING, IncompleteCheckpoint, listed, verify
from openrlhf_ktae.processes.marks import end_all, marked
from openrlhf_ktae.record.metrics import read_record
from openrlhf_ktae.selftest.killing import (
    DEATH_SECONDS,
    DRIVER,
    EVERYTHING,
    RANK,
    ROOM,
    WRITING,
    Death,
    family,
    kill,
    kill_all,
    planned,
    stop,
    title,
    victims_among,
)
from openrlhf_ktae.selftest.trial import AGAIN, KILLED, POLL_SECONDS, STRAIGHT, Trial, TrialFailed, holds_within

WRITE_POLL_SECONDS = 0.001
WRITE_SECONDS = 0.1  # about the time to write a small model
LEFT_SECONDS = 30.0  # for the processes of a run to end after its command was killed
END_SECONDS = 2.0  # for the processes of a run to end after its command ended
RECOVERY_SECONDS = 600.0  # for a run to recover or end by itself


@dataclass
class Toll:
    """The costs of a run's deaths."""

    deaths: Counter[str] = field(default_factory=Counter)
    at_start: int = 0
    in_write: int = 0
    """Deaths of all processes during the write of a checkpoint."""
    resumes: int = 0
    from_scratch: int = 0
    """Resumes without a checkpoint."""
    lost: int = 0
    """Largest number of recorded steps lost in one death."""
    left: int = 0
    """Processes that did not end by themselves."""
    checkpoints: int = 0
    """Checkpoints verified."""
    wrong: list[str] = field(default_factory=list)
    """Faults: an incomplete checkpoint, too many lost steps, a resume from the wrong checkpoint."""

    def summary(self) -> str:
        """Return one line."""
        by_victim = ", ".join(f"{victim} {count}" for victim, count in sorted(self.deaths.items()))
        return (
            f"{self.deaths.total()} deaths ({by_victim}; {self.at_start} before a first step, {self.in_write} in a "
            f"write), {self.resumes} resumed ({self.from_scratch} with nothing saved yet), at most {self.lost} "
            f"recorded steps lost, {self.checkpoints} checkpoints verified, {self.left} processes left, "
            f"{len(self.wrong)} faults"
        )


class MortalRun:
    """One run of `trial`: `inject` kills it (and starts it first if it is dead), `finish` lets it end.

    Args:
        trial: its uninterrupted run must exist.
        name: name of the run.
        start_seconds: usual time from the start of a run to its first step.
        seed: for choosing among several possible victims.
    """

    def __init__(self, trial: Trial, name: str, start_seconds: float, seed: int) -> None:
        self.trial, self.name, self.toll = trial, name, Toll()
        self._start_seconds = start_seconds
        times = [row["time"] for row in trial.steps(STRAIGHT)]
        self._step_seconds = statistics.median([b - a for a, b in pairwise(times)] or [0.0])
        self._chance = random.Random(seed)
        self._process: subprocess.Popen[bytes] | None = None
        self._mark = ""
        self._started = self._since = 0.0
        self._log_starts = 0
        self._starts = 0
        self._resumes_from: int | None = None

    @property
    def checkpoints(self) -> Path:
        """The checkpoint folder of the run."""
        return self.trial.folder / self.name / "checkpoints"

    def inject(self, death: Death) -> str | None:
        """Cause a death; return the victim, when it died and the findings, or None if the run ended first.

        Raises TrialFailed if the run failed on its own, or did not recover from the death.
        """
        process = self._process or self._start()
        try:
            early = self._moment_of(death, process)
            what = self._strike(death, process) if process.poll() is None else None
            if what is None:
                self._require_success(process)
                return None
        except BaseException:
            kill_all(process)
            end_all(self._mark, 0)
            raise
        self.toll.deaths[death.victim] += 1
        self.toll.at_start += early
        return f"{death.victim}{' before a first step' if early else ''}: {what}"

    def finish(self) -> None:
        """Let the run end. Raises TrialFailed if it fails."""
        process = self._process or self._start()
        self.trial.wait(self.name, process)
        self._check_where_it_resumed()
        self._count_left(END_SECONDS)
        self._process = None

    def _start(self) -> subprocess.Popen[bytes]:
        log = self.trial.log(self.name)
        self._log_starts = log.stat().st_size if log.exists() else 0
        self._mark, self._started = uuid.uuid4().hex, time.time()
        self._since = self._started
        self._process = self.trial.start(self.name, "auto", self._mark)
        self.toll.resumes += self._starts > 0
        self.toll.from_scratch += self._starts > 0 and self._resumes_from is None
        self._starts += 1
        return self._process

    def _moment_of(self, death: Death, process: subprocess.Popen[bytes]) -> bool:
        """Wait for the moment of the death or the end of the run; return whether the death precedes the first step."""
        if death.at_start and self._since == self._started:
            moment = time.time() + death.share * self._start_seconds
            self._wait(process, lambda: time.time() >= moment or bool(self._steps()))
            if not self._steps():
                return True
        self._wait(process, lambda: any(row["step"] >= death.step for row in self._steps()))
        if death.victim == WRITING:
            self._wait(process, self._writes, seconds=WRITE_POLL_SECONDS)
            time.sleep(death.share * WRITE_SECONDS)
        else:
            time.sleep(death.share * self._step_seconds)
        return False

    def _strike(self, death: Death, process: subprocess.Popen[bytes]) -> str | None:
        """Kill the victim; return the findings, or None if the run had already ended."""
        if death.victim in (EVERYTHING, WRITING):
            members = family(process)
            stop(members)
            writing = self._writes()
            kill([*members, *marked(self._mark)])
            process.wait()
            self._count_left(DEATH_SECONDS)
            self.toll.in_write += writing
            return f"every process{' while a checkpoint was written' if writing else ''}; {self._dead()}"
        if death.victim == DRIVER:
            process.send_signal(signal.SIGKILL)
            process.wait()
            left = self._count_left(LEFT_SECONDS)
            return f"the command, whose processes {f'stayed ({left})' if left else 'ended'}; {self._dead()}"
        victim = self._one(death.victim, process)
        if victim is None:
            return None
        shown, moment = title(victim).partition(" ")[0], time.time()
        named = f"{shown if '::' in shown else 'a worker'} ({victim.pid})"
        kill([victim])
        if death.victim == RANK:
            ended = self._ends_by_itself(process)
            return ended and f"{named}; {ended}"
        self._since = moment
        self._wait(process, lambda: len(self._steps()) >= ROOM, RECOVERY_SECONDS)
        if process.poll() is not None:
            self._require_success(process)
        newest = self._examine(running=True)
        steps = self._steps()
        after = f"continued by itself to step {steps[-1]['step']}" if steps else "ended by itself"
        return f"{named}; the run {after}; newest checkpoint: {newest or 'none'}"

    def _one(self, victim: str, process: subprocess.Popen[bytes]) -> psutil.Process | None:
        """Wait for a process to kill and return it; None if the run ends first."""
        found: list[psutil.Process] = []

        def there() -> bool:
            found[:] = victims_among(marked(self._mark), victim)
            return bool(found)

        self._wait(process, there, RECOVERY_SECONDS)
        return self._chance.choice(found) if found else None

    def _ends_by_itself(self, process: subprocess.Popen[bytes]) -> str | None:
        """Wait for the run to end after a rank's death; return None if it succeeds, no longer needing the rank."""
        try:
            code = process.wait(RECOVERY_SECONDS)
        except subprocess.TimeoutExpired:
            code = None
            self.trial.write_stacks(self.name, self._mark)
        if code == 0:
            return None
        if code != EXIT_FAULT:
            raise TrialFailed(
                self.trial.last_words(
                    self.name, f"ended with exit code {code} instead of {EXIT_FAULT} after a rank's death"
                )
            )
        left = self._count_left(END_SECONDS)
        newest, log = self._newest(), self.trial.log(self.name).read_bytes()
        said = log[self._log_starts :].decode("utf-8", "replace")
        named = f"{newest.path}" if newest else "no checkpoint was written"
        if named not in said:
            self.toll.wrong.append(f"after a rank's death the run did not name its checkpoint ({named}): {said[-300:]}")
        return f"exit code {code}, its checkpoint named, {left} processes left; {self._dead()}"

    def _dead(self) -> str:
        """Check the files of a dead run; the next `inject` or `finish` restarts it."""
        self._check_where_it_resumed()
        self._process = None
        newest = self._newest()
        recorded = max((row["step"] for row in self.trial.steps(self.name)), default=0)
        saved = newest.step if newest else 0
        lost = max(0, recorded - saved)
        self.toll.lost = max(self.toll.lost, lost)
        if lost > self.trial.save_steps:
            self.toll.wrong.append(f"step {recorded} was recorded, but the newest checkpoint is of step {saved}")
        self._resumes_from = saved or None
        name = self._examine(running=False)
        return f"last step {recorded}, newest checkpoint: {name or 'none'}"

    def _examine(self, running: bool) -> str | None:
        """Verify all checkpoints; return the name of the newest."""
        found, bad = listed(self.checkpoints)
        for name, reason in bad.items():
            if not running and (self.checkpoints / name / MANIFEST).exists():
                self.toll.wrong.append(f"checkpoint {name}: {reason}")
        for one in found:
            try:
                verify(one.path)
            except (IncompleteCheckpoint, OSError) as reason:
                if running and not (one.path / MANIFEST).exists():
                    continue  # just rotated out
                self.toll.wrong.append(f"checkpoint {one.path.name}: {reason}")
            self.toll.checkpoints += 1
        return found[0].path.name if found else None

    def _check_where_it_resumed(self) -> None:
        rows = [row for row in self._rows() if row["kind"] == "resume" and row["time"] > self._started]
        if not rows and not self.trial.steps(self.name, self._started):
            return  # the run died before it resumed
        resumed = rows[-1]["step"] if rows else None
        if resumed != self._resumes_from:
            self.toll.wrong.append(
                f"it resumed from step {resumed}; the newest checkpoint was of step {self._resumes_from}"
            )

    def _count_left(self, seconds: float) -> int:
        """Wait for the processes of the run to end; kill and count the remaining ones."""
        psutil.wait_procs(marked(self._mark), timeout=seconds)
        left = marked(self._mark)
        self.toll.left += len(left)
        for process in left:
            self.toll.wrong.append(f"{title(process)[:100]} (process {process.pid}) did not end")
        kill(left)
        psutil.wait_procs(left, timeout=LEFT_SECONDS)
        return len(left)

    def _require_success(self, process: subprocess.Popen[bytes]) -> None:
        if process.returncode:
            raise TrialFailed(self.trial.last_words(self.name, f"ended with exit code {process.returncode} by itself"))

    def _wait(
        self,
        process: subprocess.Popen[bytes],
        condition: Callable[[], bool],
        limit: float = float("inf"),
        seconds: float = POLL_SECONDS,
    ) -> None:
        """Wait until the condition holds or the run has ended.

        Raises TrialFailed if neither happens within `limit` seconds.
        """
        if not holds_within(limit, condition, process, seconds) and process.poll() is None:
            self.trial.write_stacks(self.name, self._mark)
            raise TrialFailed(self.trial.last_words(self.name, f"made no progress for {limit:g} s after a death"))

    def _writes(self) -> bool:
        """Whether a checkpoint is being written; leftovers of an earlier death do not count."""
        try:
            staged = [entry for entry in os.scandir(self.checkpoints) if entry.name.startswith(STAGING)]
            return any(entry.stat().st_mtime > self._started for entry in staged)
        except OSError:
            return False

    def _newest(self) -> Any:
        found = listed(self.checkpoints)[0]
        return found[0] if found else None

    def _rows(self) -> list[dict[str, Any]]:
        return list(read_record(self.trial.folder / self.name))

    def _steps(self) -> list[dict[str, Any]]:
        return self.trial.steps(self.name, self._since)


def try_resume(
    trial: Trial, kills: int, seed: int, say: Callable[[str], None], victims: Sequence[str] = (EVERYTHING,)
) -> list[str]:
    """Run twice without faults, and once with `kills` deaths at random moments; return faults and differences.

    Raises TrialFailed if a run failed on its own.
    """
    say("one uninterrupted run")
    started = time.time()
    trial.finish(STRAIGHT)
    start_seconds = trial.steps(STRAIGHT)[0]["time"] - started
    say("the same again")
    trial.finish(AGAIN)
    mortal = MortalRun(trial, KILLED, start_seconds, seed)
    for number, death in enumerate(planned(kills, victims, len(trial.steps(STRAIGHT)), seed), 1):
        what = mortal.inject(death)
        say(f"death {number}: {what}" if what else "it had ended; no further death")
        if not what:
            break
    mortal.finish()
    say(f"ended; {mortal.toll.summary()}")
    what_for = {AGAIN: "the same run twice", KILLED: "killed and resumed"}
    found = [f"{text}: {difference}" for name, text in what_for.items() if (difference := trial.difference(name))]
    return [*mortal.toll.wrong, *found]
