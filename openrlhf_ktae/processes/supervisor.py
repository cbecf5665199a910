"""`--run.restarts N`: run the command in a child process, and restart it from its last checkpoint after a fault."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from types import FrameType

from openrlhf_ktae.base.exit_codes import EXIT_FAULT, EXIT_INTERRUPTED
from openrlhf_ktae.processes.marks import end_all, end_with_parent, mark

PAUSE_SECONDS = 2.0
COMMAND = (sys.executable, "-m", "openrlhf_ktae.cli.train_ppo_ray")


def supervise(
    argv: Sequence[str],
    resume: Callable[[], Sequence[str]],
    restarts: int,
    say: Callable[[str], None],
    command: Sequence[str] = COMMAND,
) -> int:
    """Run the command until it ends without a fault or its `restarts` are used up; return an exit code.

    SIGINT and SIGTERM are forwarded. After one of them the run is not restarted, and a fault gives EXIT_INTERRUPTED.

    Args:
        argv: the user's arguments.
        resume: called before a restart; returns arguments to resume with. They come last, so they override others.
        restarts: maximum number of restarts.
        say: called with a line for each restart.
        command: the command to run.
    """
    run_mark = mark()  # children inherit it; finds the processes that a killed child leaves behind
    with _Signals() as signals:
        for attempt in range(restarts + 1):
            code = signals.run([*command, *argv, "--run.restarts", "0", *(resume() if attempt else ())])
            fault = code == EXIT_FAULT or code < 0
            if not fault:
                return code
            killed = end_all(run_mark)
            if signals.asked:
                return EXIT_INTERRUPTED
            ended = f"by signal {-code}" if code < 0 else "after a fault"
            left = restarts - attempt
            then = f"restart {attempt + 1} of {restarts}, from the last checkpoint"
            then = then if left else "no restarts are left (--run.restarts)"
            say(f"the run ended {ended}; {killed} leftover processes were killed; {then}")
            if left:
                time.sleep(PAUSE_SECONDS)
            if signals.asked:
                return EXIT_INTERRUPTED
    return EXIT_FAULT


class _Signals:
    """Forward SIGINT and SIGTERM to the child, and remember that one arrived.

    The child runs in a new session, so a terminal's Ctrl-C reaches only this process.
    """

    def __init__(self) -> None:
        self.asked = False
        self._child: subprocess.Popen[bytes] | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> _Signals:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._pass_on)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def run(self, words: Sequence[str]) -> int:
        """Return the exit code of the child, negative for a signal."""
        self._child = subprocess.Popen(words, start_new_session=True, preexec_fn=end_with_parent)
        if self.asked:  # while there was no child
            self._child.terminate()
        try:
            return self._child.wait()
        finally:
            self._child = None

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        if self._child is not None:
            self._child.send_signal(number)
