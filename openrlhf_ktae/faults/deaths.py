"""Processes that are gone: the errors that mean it, rather than that code raised, and waiting for the next one."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

START_MINUTES = 20  # for a process to come back, where its node may have gone
POLL_SECONDS = 1.0
DEAD_FOR_GOOD = 3  # answers in a row; a call that was under way as the actor died fails in the same way, once

# What the ranks that are left say, and vLLM's actor of its own core; then what this package says.
SIGNS = (
    *("Connection closed by peer", "Connection reset by peer", "ncclRemoteError", "EngineDeadError", "ActorDiedError"),
    *("OutdatedEngine", "EnginesLost", "ModelLost"),
    "killed due to the node running low on memory",  # Ray's own, where the call that failed was another process's
)


def died(error: BaseException) -> bool:
    """Whether an error, of Ray or of a process of the run, comes from a process that is gone."""
    from ray import exceptions

    gone = (exceptions.RayActorError, exceptions.WorkerCrashedError, exceptions.ObjectLostError)
    return isinstance(error, gone) or any(sign in f"{type(error).__name__} {error}" for sign in SIGNS)


def answered(call: Callable[[], Any], minutes: float = START_MINUTES) -> Any:
    """Return what a remote method of an actor returns; where Ray is starting the actor again, once it is there.

    Raises:
        RayActorError: the actor is gone for good, or that takes longer than `minutes`.
        GetTimeoutError: it does not answer in that time.
    """
    import ray
    from ray.exceptions import ActorDiedError, RayActorError

    end, dead = time.monotonic() + 60 * minutes, 0
    while True:
        try:
            return ray.get(call(), timeout=max(end - time.monotonic(), POLL_SECONDS))
        except RayActorError as error:
            dead = dead + 1 if isinstance(error, ActorDiedError) else 0
            if dead >= DEAD_FOR_GOOD or time.monotonic() > end:
                raise
            time.sleep(POLL_SECONDS)
