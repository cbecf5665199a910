"""Dump the stacks of all processes of a run: each writes its own when it gets a signal (`faulthandler`).

This works even if no Python code can run, because a thread that holds the GIL waits in C for a dead rank.
"""

import atexit
import faulthandler
import os
import shutil
import signal
import sys
import tempfile
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import psutil

from openrlhf_ktae.base.secrets import environment_secrets, masked_words
from openrlhf_ktae.processes.marks import marked

VARIABLE = "OPENRLHF_KTAE_STACKS"
FILE = "stacks.txt"
SIGNAL = signal.SIGUSR1
WRITE_SECONDS = 5.0
_files: list[Any] = []  # open as long as the process lives


@cache
def folder() -> str:
    """Return the folder for stacks of this process's runs, created on first use, deleted when the process exits."""
    path = tempfile.mkdtemp(prefix="openrlhf_ktae-stacks-")
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


def register() -> None:
    """Make this process write its stacks on `SIGNAL`; a second call does nothing.

    If that fails (full disk, another user's folder), the process runs on without it.
    """
    folder = os.environ.get(VARIABLE)
    if not folder or _files:
        return
    path = Path(folder) / f"{os.getpid()}.txt"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
        faulthandler.register(SIGNAL, file=file, all_threads=True)
    except Exception as error:
        print(f"this process cannot dump its stacks: {type(error).__name__}: {error}", file=sys.stderr)
        with suppress(OSError):
            path.unlink()  # `dump` signals only processes with a file: without a handler the signal kills
        return
    _files.append(file)


def dump(folder: str, run_mark: str, target: Path) -> int:
    """Write the stacks of this process and all marked ones to `target`; return how many were signalled."""
    processes = [psutil.Process(), *marked(run_mark)]
    ready = [process for process in processes if (Path(folder) / f"{process.pid}.txt").exists()]
    for process in ready:
        try:
            process.send_signal(SIGNAL)  # would kill a process that has not registered
        except psutil.Error:
            continue
    end = time.monotonic() + WRITE_SECONDS
    files = [Path(folder) / f"{process.pid}.txt" for process in ready]
    while time.monotonic() < end and not all(file.stat().st_size for file in files):
        time.sleep(0.1)
    time.sleep(0.3)  # the last one may still be writing
    parts, secrets = [], environment_secrets()
    for process in processes:
        try:
            name = f"{process.pid} {' '.join(masked_words(process.cmdline(), secrets))[:200]}"
        except psutil.Error:
            name = f"{process.pid} (gone)"
        path = Path(folder) / f"{process.pid}.txt"
        stacks = path.read_text(errors="replace") if process in ready else "no Python stacks: not one of ours\n"
        parts.append(f"=== {name}\n{stacks}\n")
    target.write_text("".join(parts), encoding="utf-8")
    return len(ready)
