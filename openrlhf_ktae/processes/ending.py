"""Graceful shutdown of the trainer by the driver, on SIGINT (Ctrl-C) or SIGTERM (a cluster's eviction notice).

Ray cannot interrupt an actor method, so driver and trainer communicate through small files in the run directory. The
trainer reports that it trains, the driver asks it to stop, and the trainer answers with what it saved.
"""

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
"""SIGTERMs within this time count as one: `ray job stop` signals a command and its children, and a supervisor
(`--run.restarts`) forwards the signal that it got."""


class Interrupted(RuntimeError):
    """The trainer stopped on request; the message says what was saved."""


class GivenUp(RuntimeError):
    """A stop was requested while rollouts of a step or an evaluation were running."""


class EndOrder:
    """The files of the shutdown protocol; every method may be called from any process."""

    def __init__(self, run_directory: str | Path) -> None:
        self.folder = Path(run_directory).absolute() / FOLDER

    def clear(self) -> None:
        """Remove the files of an earlier run."""
        for name in (TRAINING, ASKED, ANSWER):
            for path in (self.folder / name, self._part(name)):
                path.unlink(missing_ok=True)
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()

    def training(self) -> None:
        """Report that training has started: from now on a stop waits for the end of a step."""
        self._write(TRAINING, "")

    def ask(self) -> None:
        """Request a stop at the next step boundary. Raises OSError if the disk is too full to create a file."""
        self._write(ASKED, "")

    def answer(self, text: str) -> None:
        """Report what was saved. If that cannot be written, the driver waits until its grace period ends."""
        with suppress(OSError):
            self._write(ANSWER, text)

    @property
    def is_training(self) -> bool:
        """Whether training steps have started."""
        return (self.folder / TRAINING).exists()

    @property
    def asked(self) -> bool:
        """Whether a stop was requested."""
        return (self.folder / ASKED).exists()

    @property
    def answered(self) -> str | None:
        """What was saved; None until the trainer answers."""
        path = self.folder / ANSWER
        return path.read_text(encoding="utf-8") if path.exists() else None

    def _write(self, name: str, text: str) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        part = self._part(name)
        part.touch()
        with suppress(OSError):  # a full disk may still create files: an empty answer is better than none
            part.write_text(text, encoding="utf-8")
        os.replace(part, self.folder / name)

    def _part(self, name: str) -> Path:
        return self.folder / f"{name}.part"


def wait_for_the_driver(order: EndOrder) -> None:
    """Wait until the driver ends this process, which it does within the user's grace period."""
    while order.asked:
        time.sleep(POLL_SECONDS)


class CleanEnd:
    """The driver's side: on a signal, ask the trainer to stop, wait at most `grace_seconds`, raise KeyboardInterrupt.

    A second signal, or one before training has started, stops the run at once.
    """

    def __init__(self, order: EndOrder, grace_seconds: float, say: Callable[[str], None]) -> None:
        self.order, self._grace, self._say = order, grace_seconds, say
        self.reason = ""
        """Why the run stops, if not because of a signal from outside; set for example by a watchdog."""
        self._waiting: threading.Thread | None = None
        self._asked_at = float("-inf")
        self._over = threading.Event()

    def install(self) -> None:
        """Handle both signals from now on, even if the parent process blocked them."""
        self.order.clear()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})

    def stop_now(self, reason: str) -> None:
        """Stop without waiting; may be called from any thread."""
        self.reason = reason
        self._interrupt()

    def outcome(self, newest: str) -> str:
        """Return the outcome of the request, for the last line of the run; `newest` names the newest checkpoint."""
        answer = self.order.answered
        if answer is not None:
            return answer or newest
        trained = self._waiting or self.order.is_training
        return f"no checkpoint was written during shutdown; {newest}" if trained else "nothing was trained yet"

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        before, self._asked_at = self._asked_at, time.monotonic()
        if number == signal.SIGTERM and self._asked_at - before < SAME_ORDER_SECONDS:
            return
        if self._waiting is not None or self.reason or not self.order.is_training:
            self._over.set()
            raise KeyboardInterrupt
        try:
            self.order.ask()
        except OSError:  # the trainer would not see the request
            self._over.set()
            raise KeyboardInterrupt from None
        self._waiting = threading.Thread(target=self._wait, args=(signal.Signals(number).name,), daemon=True)
        self._waiting.start()

    def _wait(self, name: str) -> None:
        self._say(f"{name}: saving a checkpoint of the last step, at most {self._grace:g} s; signal again to stop now")
        end = time.monotonic() + self._grace
        while time.monotonic() < end and self.order.answered is None:
            if self._over.wait(POLL_SECONDS) or not self.order.asked:
                return  # a second signal came, or the run ended by itself
        self._interrupt()

    @staticmethod
    def _interrupt() -> None:
        """Signal this process, so that the main thread's handler raises: only a signal interrupts some calls."""
        os.kill(os.getpid(), signal.SIGINT)
