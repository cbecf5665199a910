"""Deaths of a run: which of its processes dies, when, and how the processes are found and killed (`kill -9`)."""

from __future__ import annotations

import random
import re
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import psutil

EVERYTHING, DRIVER, RANK, ENGINE, VERIFIER, WRITING = (
    "everything",
    "driver",
    "rank",
    "engine",
    "verifier",
    "writing",
)
VICTIMS = (EVERYTHING, DRIVER, RANK, ENGINE, VERIFIER, WRITING)
AT_ANY_TIME = (EVERYTHING, DRIVER, RANK)
"""These may die before the first step, too; the others are not there yet."""
TITLES = {
    # Of processes: Ray's actors have the name of their class, with the method that runs; vLLM's core has its own.
    RANK: re.compile(r"ray::\w*PolicyModelActor\b"),
    ENGINE: re.compile(r"VLLM::EngineCor|ray::\w*(GuardedEngine|RolloutActor|RolloutRayActor)\b"),
    VERIFIER: re.compile(r".*\bopenrlhf_ktae\.verifier\.worker\b"),
}
DEATH_SECONDS = 10.0  # until the system has taken back what a killed process held
START_SHARE = 1 / 6  # of the deaths, those before the first step
ROOM = 2  # steps after the last death, for a run that goes on by itself to show it


@dataclass(frozen=True)
class Death:
    """One planned death."""

    victim: str
    step: int
    """It happens after this step is recorded, or the first step of a run that went on behind it."""
    share: float
    """How far into the following step, or into the start; for `writing`, of the time that a write may take."""
    at_start: bool = False
    """It happens before the first step of the process that dies."""


def planned(kills: int, victims: Sequence[str], steps: int, seed: int) -> list[Death]:
    """Return deaths in the order of their moments, spread over a run of `steps` steps.

    Victims take turns in random order, so that of `kills` deaths every one has its share.
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
    """Return the name that a process shows: its command line, or what it has put in its place."""
    try:
        return " ".join(process.cmdline()).strip()
    except psutil.Error:
        return ""


def victims_among(processes: Iterable[psutil.Process], victim: str) -> list[psutil.Process]:
    """Return those that are a rank, an engine (its actor, or vLLM's core), or a worker of the verifier."""
    return [process for process in processes if TITLES[victim].match(title(process))]


def family(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """Return a run's command and everything that it started and is its child, or a child's child, still."""
    try:
        root = psutil.Process(process.pid)
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def kill_all(process: subprocess.Popen[bytes]) -> None:
    """Kill a run and everything that it started, as losing a machine would."""
    members = family(process)
    stop(members)
    kill(members)
    process.wait()
    psutil.wait_procs(members, timeout=DEATH_SECONDS)


def stop(processes: Iterable[psutil.Process]) -> None:
    """Stop processes, so that none can react to the death of another."""
    for process in processes:
        try:
            process.suspend()
        except psutil.NoSuchProcess:
            continue


def kill(processes: Iterable[psutil.Process]) -> None:
    """Kill processes, with no chance to react."""
    for process in processes:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
