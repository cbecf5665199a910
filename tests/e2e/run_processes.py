"""The processes of one run of a test, found by a mark in their environment."""

from __future__ import annotations

import time

import psutil


def processes_of(marker: str) -> list[psutil.Process]:
    """Processes that carry `marker` in their environment: those of one run, whatever their parents."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("KTAE_TEST_RUN") == marker and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def wait_until_none(marker: str, seconds: float) -> list[psutil.Process]:
    end = time.monotonic() + seconds
    while processes_of(marker) and time.monotonic() < end:
        time.sleep(0.5)
    return processes_of(marker)
