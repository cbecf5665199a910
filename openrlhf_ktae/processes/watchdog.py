"""Watchdog: report when nothing has been recorded for too long."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

from openrlhf_ktae.record.metrics import METRICS_FILE

CHECKS = 20  # within the limit
START_MINUTES = 30  # limit until the first new line of the record, after models are loaded; or the user's, if longer


class Watchdog:
    """Context manager around a run; `on_stall` is called once, in a thread, with the reason."""

    def __init__(self, run_directory: str | Path, minutes: float, on_stall: Callable[[str], None]) -> None:
        self._record = Path(run_directory) / METRICS_FILE
        self._limit, self._on_stall = 60 * minutes, on_stall
        self._minutes = minutes
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name=Watchdog.__name__, daemon=True)

    def __enter__(self) -> Watchdog:
        if self._limit:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._limit and threading.current_thread() is not self._thread:
            self._thread.join()

    def _watch(self) -> None:
        last, since, limit = self._size(), time.monotonic(), max(self._limit, 60.0 * START_MINUTES)
        while not self._over.wait(self._limit / CHECKS):
            size = self._size()
            if size != last:
                last, since, limit = size, time.monotonic(), self._limit
            elif time.monotonic() - since > limit:
                self._on_stall(f"--run.watchdog_minutes {self._minutes:g}: no step or evaluation finished in that time")
                return

    def _size(self) -> tuple[int, int]:
        """Return the record's size and mtime; on a full disk the record is touched, as it cannot grow."""
        try:
            state = self._record.stat()
        except OSError:  # does not exist yet
            return 0, 0
        return state.st_size, state.st_mtime_ns
