"""On rank 0 of the trainer: engines that die while weights are sent to them.

Every rank gathers one parameter after another. If rank 0 raised in the middle, the others would wait for it in the next
gather or barrier until the collective times out, after 60 minutes with NCCL. So the first error is kept, nothing more
is sent, all ranks gather to the end, and only then the error is raised.

A broadcast to a dead engine can block rank 0, in the call or later on its stream. A thread therefore watches the
engines and aborts the group (`ncclCommAbort`), which unblocks both. If that does not help, it ends the process.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import ray
import torch

from openrlhf_ktae.trainer.engines import engine_died

POLL_SECONDS = 1.0
REASON_SECONDS = 5.0  # for Ray to notice an engine's death, if the broadcast fails first
STUCK_SECONDS = 10.0  # for the other engines to leave the same broadcast
LEAVING_SECONDS = 30.0  # without progress after an engine died
BROADCASTS = "update_weight"  # the host's call that returns only after a broadcast; other calls need none


class Sending:
    """A context that watches the engines while weights are sent, or while the group for sending them is created.

    Args:
        engines: the actors.
        watched: the pending `until_dead` call of each engine, from the previous sending; renewed in place.
        leave: leaves the group of rank 0 and the engines; called in any thread.
    """

    def __init__(
        self, engines: Sequence[Any], watched: dict[Any, Any], leave: Callable[[], None] = lambda: None
    ) -> None:
        self._engines, self._watched, self._leave = list(engines), watched, leave
        self.lost: Exception | None = None
        """The first error; nothing is sent after it."""
        self._refs: list[Any] = []
        self._moved = time.monotonic()
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._watch, name=Sending.__name__, daemon=True)

    def __enter__(self) -> Sending:
        for engine in self._engines:
            ref = self._watched.get(engine._actor_id)
            if ref is None or ray.wait([ref], timeout=0)[0]:
                self._watched[engine._actor_id] = engine.until_dead.remote()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:  # the thread has no effect from here on, and ends within `POLL_SECONDS`
            self._over.set()

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Keep an error raised in the block, and leave the group."""
        self._moved = time.monotonic()
        try:
            yield
        except Exception as error:  # Ray's, gloo's or NCCL's, whichever notices first
            self._lose(self._reason(error))
        self._moved = time.monotonic()

    def tell(self, method: str, *args: Any, **kwargs: Any) -> None:
        """Call a method of every engine, unless one is lost."""
        with self.guarded():
            self._refs = [] if self.lost else [getattr(one, method).remote(*args, **kwargs) for one in self._engines]

    def received(self) -> None:
        """Wait until every engine has answered; after a death, engines that do not answer are restarted."""
        if self.lost is None:
            with self.guarded():
                ray.get(self._refs)
        if self.lost is not None and self._refs:
            _, stuck = ray.wait(self._refs, num_returns=len(self._refs), timeout=STUCK_SECONDS)
            for ref in stuck:
                ray.kill(self._engines[self._refs.index(ref)], no_restart=False)
        self._refs = []

    def meet(self, join: Callable[[Sequence[Any]], None]) -> None:
        """Let `join` form a group with the engines it is given; it waits for all of them.

        It runs in a thread that is abandoned if an engine dies, since nothing can interrupt it. Engines stuck in the
        same call are restarted. Raises Ray's or vLLM's error about the dead engine, or the error that `join` raised.
        """
        joined, failure = threading.Event(), []
        device = torch.cuda.current_device() if torch.cuda.is_available() else None

        def run() -> None:
            try:
                if device is not None:
                    torch.cuda.set_device(device)  # a new thread starts on the first GPU
                join([CallRecorder(engine, self._refs) for engine in self._engines])
            except Exception as error:
                failure.append(error)
            joined.set()

        threading.Thread(target=run, name="meeting", daemon=True).start()
        while self.lost is None and not joined.wait(POLL_SECONDS):
            pass
        if failure:
            self._lose(self._reason(failure[0]))
        if self.lost is not None:
            self.received()
            raise self.lost
        self._refs = []

    def _lose(self, error: Exception) -> None:
        with self._lock:
            if self.lost is not None or self._over.is_set():
                return
            self.lost = error
        self._leave()

    def _reason(self, error: Exception) -> Exception:
        """Return the cause of an engine's death if it made a broadcast fail, else `error`."""
        if self.lost is None and not engine_died(error):
            return self._death(REASON_SECONDS) or error
        return error

    def _death(self, seconds: float) -> Exception | None:
        ready, _ = ray.wait(list(self._watched.values()), timeout=seconds)
        try:
            ray.get(ready)
        except Exception as error:  # whatever ended it
            return error
        return None

    def _watch(self) -> None:
        while self.lost is None and not self._over.is_set():
            death = self._death(POLL_SECONDS)
            if death is not None:
                self._moved = time.monotonic()
                self._lose(death)
        while not self._over.wait(POLL_SECONDS):
            if time.monotonic() - self._moved > LEAVING_SECONDS:
                print(
                    f"rank 0 is still stuck sending weights {LEAVING_SECONDS:.0f} s after an engine died "
                    f"({self.lost}); ending it, and with it the run",
                    file=sys.stderr,
                    flush=True,
                )
                os._exit(1)


class CallRecorder:
    """Proxy for an engine; appends a reference to each call to `refs`, in the order of the engines."""

    def __init__(self, engine: Any, refs: list[Any]) -> None:
        self._engine, self._refs = engine, refs

    def __getattr__(self, method: str) -> Any:
        def remote(*args: Any, **kwargs: Any) -> Any:
            self._refs.append(getattr(self._engine, method).remote(*args, **kwargs))
            return self._refs[-1]

        return SimpleNamespace(remote=remote)


class EveryEngine:
    """Proxy for all engines in the host's loop. Calls return when all have answered; `BROADCASTS` returns at once."""

    def __init__(self, sending: Sending) -> None:
        self._sending, self._nothing = sending, ray.put(None)

    def __getattr__(self, method: str) -> Any:
        def remote(*args: Any, **kwargs: Any) -> Any:
            self._sending.tell(method, *args, **kwargs)
            if method != BROADCASTS:
                self._sending.received()
            return self._nothing

        return SimpleNamespace(remote=remote)


class GuardedGroup:
    """Proxy for the group of rank 0 and the engines in the host's loop."""

    def __init__(self, sending: Sending, group: Any) -> None:
        self._sending, self._group = sending, group

    def broadcast(self, tensor: Any, **where: Any) -> None:
        """Send as the host does, and wait for the engines; skip if one is lost."""
        if self._sending.lost is None:
            with self._sending.guarded():
                self._group.broadcast(tensor, **where)
        self._sending.received()

    def destroy(self) -> None:
        """Leave the group; with CUDA IPC there is none."""
        if self._group is not None:
            self._group.destroy()
