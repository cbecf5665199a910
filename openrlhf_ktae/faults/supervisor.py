"""`--run.restarts N`: the command runs in a child process, and again from its last checkpoint when a fault ends it."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from types import FrameType

from openrlhf_ktae.faults.processes import end_all, mark

EXIT_FAULT = 4
PAUSE_SECONDS = 2.0
COMMAND = (sys.executable, "-m", "openrlhf_ktae.cli.train_ppo_ray")


def supervise(
    argv: Sequence[str],
    resume: Sequence[str],
    restarts: int,
    say: Callable[[str], None],
    command: Sequence[str] = COMMAND,
) -> int:
    """Run the command until it ends by itself or has been restarted `restarts` times; return its exit code.

    Args:
        argv: the user's words.
        resume: words that let it go on from its newest checkpoint; they come last and win.
        restarts: how often it may be started again.
        say: gets a line for each restart.
        command: what runs.
    """
    run_mark = mark()  # inherited, so that what a killed child leaves behind is found
    for attempt in range(restarts + 1):
        words = [*command, *argv, "--run.restarts", "0", *(resume if attempt else ())]
        code = _run(words)
        if code != EXIT_FAULT and code >= 0:
            return code
        killed = end_all(run_mark)
        ended = f"by signal {-code}" if code < 0 else "after a fault"
        left = restarts - attempt
        say(
            f"the run ended {ended}; {killed} processes were left and killed; "
            + (
                f"restart {attempt + 1} of {restarts}, from the last checkpoint"
                if left
                else "no restart is left (--run.restarts)"
            )
        )
        if left:
            time.sleep(PAUSE_SECONDS)
    return code if code >= 0 else EXIT_FAULT


def _run(words: Sequence[str]) -> int:
    child = subprocess.Popen(words)

    def forward(number: int, frame: FrameType | None) -> None:
        child.send_signal(number)

    before = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        return child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
