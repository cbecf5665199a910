"""The order to end, from the driver to the trainer: SIGINT (Ctrl-C) and SIGTERM (a cluster's notice of eviction).

Ray cannot interrupt a method of an actor, so the two speak through small files in the run directory, which both can
see: the trainer says that it trains, the driver asks it to end, the trainer answers with what it has saved.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType

FOLDER = ".end"
TRAINING, ASKED, ANSWER = "training", "asked", "answer"
POLL_SECONDS = 0.1
SAME_ORDER_SECONDS = 1.0
"""Signals this close together are one order: `ray job stop` signals a command and its children, and a supervisor
(`--run.restarts`) passes its own on."""


class Interrupted(RuntimeError):
    """The trainer ends because it was asked to; the message says what is saved."""


class GivenUp(RuntimeError):
    """An end was asked for while rollouts were under way, of a step or of an evaluation."""


class EndOrder:
    """The files; every method may be called from any process."""

    def __init__(self, run_directory: str | Path) -> None:
        self.folder = Path(run_directory).absolute() / FOLDER

    def clear(self) -> None:
        """Forget the order of an earlier run."""
        for name in (TRAINING, ASKED, ANSWER):
            for path in (self.folder / name, self._part(name)):
                path.unlink(missing_ok=True)
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()

    def training(self) -> None:
        """Say that steps are being made, so that it is worth waiting for one."""
        self._write(TRAINING, "")

    def ask(self) -> None:
        """Ask for an end at the next moment at which the weights are those of a step.

        Raises:
            OSError: the disk has no room for a file's name.
        """
        self._write(ASKED, "")

    def answer(self, text: str) -> None:
        """Say what was saved; what finds no room is not said, and the driver waits no longer than it may."""
        with suppress(OSError):
            self._write(ANSWER, text)

    @property
    def is_training(self) -> bool:
        """Whether steps are being made."""
        return (self.folder / TRAINING).exists()

    @property
    def asked(self) -> bool:
        """Whether an end is wanted."""
        return (self.folder / ASKED).exists()

    @property
    def answered(self) -> str | None:
        """What was saved; None until then."""
        path = self.folder / ANSWER
        return path.read_text(encoding="utf-8") if path.exists() else None

    def _write(self, name: str, text: str) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        part = self._part(name)
        part.touch()
        with suppress(OSError):  # a full disk has room for names: that there is an answer counts more than its words
            part.write_text(text, encoding="utf-8")
        os.replace(part, self.folder / name)

    def _part(self, name: str) -> Path:
        return self.folder / f"{name}.part"


def wait_for_the_driver(order: EndOrder) -> None:
    """Do nothing more until the driver ends this process; it waits no longer than its user allows."""
    while order.asked:
        time.sleep(POLL_SECONDS)


class CleanEnd:
    """The driver's part: on a signal, ask the trainer, wait at most `grace_seconds`, then raise KeyboardInterrupt.

    A second signal, or one before the first step, ends at once.
    """

    def __init__(self, order: EndOrder, grace_seconds: float, say: Callable[[str], None]) -> None:
        self.order, self._grace, self._say = order, grace_seconds, say
        self.reason = ""
        """Why the run ends, where it was not a signal from outside (a watchdog)."""
        self._waiting: threading.Thread | None = None
        self._asked_at = float("-inf")
        self._over = threading.Event()

    def install(self) -> None:
        """Take both signals from now on."""
        self.order.clear()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)

    def stop_now(self, reason: str) -> None:
        """End without waiting, from any thread."""
        self.reason = reason
        self._interrupt()

    def outcome(self, newest: str) -> str:
        """Say what became of the order, for the last line of the run; `newest` names the newest checkpoint."""
        answer = self.order.answered
        if answer is not None:
            return answer or newest
        trained = self._waiting or self.order.is_training
        return f"no checkpoint was written on the way out; {newest}" if trained else "nothing was trained yet"

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        before, self._asked_at = self._asked_at, time.monotonic()
        if number == signal.SIGTERM and self._asked_at - before < SAME_ORDER_SECONDS:
            return
        if self._waiting is not None or self.reason or not self.order.is_training:
            self._over.set()
            raise KeyboardInterrupt
        try:
            self.order.ask()
        except OSError:  # nobody would hear of it
            self._over.set()
            raise KeyboardInterrupt from None
        self._waiting = threading.Thread(target=self._wait, args=(signal.Signals(number).name,), daemon=True)
        self._waiting.start()

    def _wait(self, name: str) -> None:
        self._say(f"{name}: a checkpoint of the last step, at most {self._grace:g} s; once more ends at once")
        end = time.monotonic() + self._grace
        while time.monotonic() < end and self.order.answered is None:
            if self._over.wait(POLL_SECONDS) or not self.order.asked:
                return  # somebody was less patient, or the run has ended by itself
        self._interrupt()

    @staticmethod
    def _interrupt() -> None:
        """Let the main thread's handler raise: it may sit in a call that only a signal gets it out of."""
        os.kill(os.getpid(), signal.SIGINT)
