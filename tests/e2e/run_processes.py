"""Find the processes of a test's run by a mark in their environment; options shared by several tests."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from openrlhf_ktae.record.metrics import read_record

MARK = "KTAE_TEST_RUN"
ASYNCHRONOUS = "--train.colocate_all false --train.async_enable"


def mark_of(directory: Path) -> str:
    """Return the value of `MARK` in the environment of a test's processes."""
    return str(directory)


def processes_of(marker: str) -> list[psutil.Process]:
    """Return the live processes with `marker` in their environment, whatever their parents."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == marker and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def steps(directory: Path) -> list[dict[str, Any]]:
    return [row for row in read_record(directory) if row["kind"] == "step"]


def wait_for(
    condition: Callable[[], object], process: subprocess.Popen[str], seconds: float = 150, every: float = 0.2
) -> None:
    """Poll the condition `every` so many seconds until it holds; the run must not end first."""
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end, f"{condition} still false after {seconds} s"
        time.sleep(every)


def wait_until_none(marker: str, seconds: float) -> list[psutil.Process]:
    end = time.monotonic() + seconds
    while processes_of(marker) and time.monotonic() < end:
        time.sleep(0.5)
    return processes_of(marker)


@contextmanager
def killed_when(ready: Callable[[], bool], marker: str, name: str) -> Iterator[list[int]]:
    """As soon as `ready`, kill a run's processes whose command line begins with `name`, once; yield their ids."""
    over, killed = threading.Event(), []

    def watch() -> None:
        while not over.wait(0.05):
            if ready():
                for process in processes_of(marker):
                    if "".join(process.cmdline()).startswith(name):
                        process.kill()
                        killed.append(process.pid)
                return

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield killed
    finally:
        over.set()
        thread.join()
