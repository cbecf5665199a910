"""Process deaths in a run: plan which process dies and when; find and kill processes (`kill -9`)."""

import random
import re
import subprocess
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import psutil

EVERYTHING, DRIVER, RANK = "everything", "driver", "rank"
ENGINE, VERIFIER, WRITING = "engine", "verifier", "writing"
VICTIMS = (EVERYTHING, DRIVER, RANK, ENGINE, VERIFIER, WRITING)
AT_ANY_TIME = (EVERYTHING, DRIVER, RANK)
"""Victims that may also die before the first step; the others do not exist yet."""
TITLES = {
    # Ray's actors set their class and running method as process title; vLLM's core has its own title.
    RANK: re.compile(r"ray::\w*PolicyModelActor\b"),
    ENGINE: re.compile(r"VLLM::EngineCor|ray::\w*(GuardedEngine|RolloutActor|RolloutRayActor)\b"),
    VERIFIER: re.compile(r".*\bopenrlhf_ktae\.verifier\.worker\b"),
}
DEATH_SECONDS = 10.0  # for the system to reclaim a killed process's resources
START_SHARE = 1 / 6  # share of deaths before the first step
ROOM = 2  # steps after the last death, in which a run can show that it recovered


@dataclass(frozen=True)
class Death:
    """One planned death."""

    victim: str
    step: int
    """The death happens after this step, or a later one, is recorded."""
    share: float
    """How far into the next step, the startup, or for `writing` the time of a write; 0 to 1."""
    at_start: bool = False
    """The death happens before the first step of the process."""


def planned(kills: int, victims: Sequence[str], steps: int, seed: int) -> list[Death]:
    """Return deaths in chronological order, spread over a run of `steps` steps.

    Victims take turns in random order, so that deaths are shared evenly among them.
    """
    chance = random.Random(seed)
    order: list[str] = []
    while len(order) < kills:
        order += chance.sample(list(victims), len(victims))
    width = (steps - ROOM) / kills
    deaths = []
    for number, victim in enumerate(order[:kills]):
        step = 1 + int((number + chance.random()) * width)
        early = victim in AT_ANY_TIME and kills > 1 and chance.random() < START_SHARE * len(VICTIMS) / len(AT_ANY_TIME)
        deaths.append(Death(victim, step, chance.random(), early))
    return deaths


def title(process: psutil.Process) -> str:
    """Return a process's command line, or the title it has set."""
    try:
        return " ".join(process.cmdline()).strip()
    except psutil.Error:
        return ""


def victims_among(processes: Iterable[psutil.Process], victim: str) -> list[psutil.Process]:
    """Return the processes of the victim's kind: a rank, an engine (actor or vLLM's core), or a verifier worker."""
    return [process for process in processes if TITLES[victim].match(title(process))]


def family(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """Return a run's command and its living descendants."""
    try:
        root = psutil.Process(process.pid)
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def kill_all(process: subprocess.Popen[bytes]) -> None:
    """Kill a run and everything it started, as if the machine were lost."""
    members = family(process)
    stop(members)
    kill(members)
    process.wait()
    psutil.wait_procs(members, timeout=DEATH_SECONDS)


def stop(processes: Iterable[psutil.Process]) -> None:
    """Suspend processes, so that none reacts to another's death."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.suspend()


def kill(processes: Iterable[psutil.Process]) -> None:
    """Kill processes without giving them a chance to react."""
    for process in processes:
        with suppress(psutil.Error):
            process.kill()
