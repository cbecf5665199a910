"""The public interface: check responses against golds from any thread, event loop or actor."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, InvalidStateError

from .config import VerifierConfig
from .extract import Extraction, extract_answer
from .golds import gold_forms
from .pool import Job, WorkerPool
from .quick import quick_verdict
from .verdict import CORRECT, FAILURES, UNKNOWN, WRONG, Reason, Verdict

Gold = str | int | float | Sequence
Key = tuple[tuple[str, ...], str]
MAX_ANSWER = 4000  # characters; a longer answer is compared as text only,
GOLD_FACTOR = 2  # unless it is at most this many times as long as the gold


class Verifier:
    """Checks answers in killable processes. It is a context manager; `verify` may be called from any thread."""

    def __init__(self, config: VerifierConfig | None = None, **options: object) -> None:
        """`options` are fields of VerifierConfig, for example `workers=2, timeout_s=5.0, memory_mb=2048`."""
        base = config or VerifierConfig()
        self.config = dataclasses.replace(base, **options) if options else base  # type: ignore[arg-type]
        self.pool = WorkerPool(self.config.workers, self.config.memory_mb, self.config.recycle_after)
        self._cache: OrderedDict[Key, Verdict] = OrderedDict()
        self._reset()

    def __enter__(self) -> Verifier:
        self.pool.start()
        if not self.pool.wait_ready():
            failure = self.pool.start_failure or "no answer in time"
            self.close()
            raise RuntimeError(f"the verifier's workers do not start; is mpmath installed?\n{failure}")
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Start the workers in the background and return at once."""
        self.pool.start()

    def close(self) -> None:
        """Kill the workers; waiting checks get the verdict unknown."""
        self.pool.close()

    def verify(self, gold: Gold, response: str) -> Verdict:
        """Check one model output. Waits for a free worker, then at most `timeout_s` per try."""
        return self._begin(gold, response).result()

    def verify_many(self, pairs: Iterable[tuple[Gold, str]]) -> list[Verdict]:
        """Check (gold, response) pairs on all workers; return the verdicts in the same order."""
        return [future.result() for future in [self._begin(gold, response) for gold, response in pairs]]

    async def averify(self, gold: Gold, response: str) -> Verdict:
        """Like `verify`, without blocking the event loop."""
        return await asyncio.wrap_future(self._begin(gold, response))

    def _begin(self, gold: Gold, response: str) -> Future:
        """Return a future of the verdict, already resolved if no worker is needed."""
        begun = time.monotonic()
        golds = gold_forms(gold)
        found = extract_answer(response, self.config.answer_format, gold)
        result: Future = Future()

        def finish(verdict: Verdict, seconds: float) -> Future:
            full = dataclasses.replace(verdict, extracted=found.answer, gold=" | ".join(golds), seconds=seconds)
            with contextlib.suppress(InvalidStateError):  # the caller has cancelled
                result.set_result(full)
            return result

        settled = self._settle(golds, found)
        if settled is not None:
            return finish(settled, time.monotonic() - begun)
        check = self._check(golds, found.answer or "")
        check.add_done_callback(lambda done: finish(done.result(), done.result().seconds or time.monotonic() - begun))
        return result

    @staticmethod
    def _settle(golds: tuple[str, ...], found: Extraction) -> Verdict | None:
        """Return the verdict for no gold, no answer, equal texts, plain numbers or an overlong answer, else None."""
        if not golds:
            return Verdict(UNKNOWN, Reason.NO_GOLD)
        if found.answer is None:
            return Verdict(WRONG, found.reason)
        verdicts = [quick_verdict(gold, found.answer) for gold in golds]
        for verdict in verdicts:
            if verdict is not None and verdict.status == CORRECT:
                return verdict
        if all(verdict is not None for verdict in verdicts):
            return verdicts[0]
        if len(found.answer) > max(MAX_ANSWER, GOLD_FACTOR * max(map(len, golds))):
            return Verdict(WRONG, Reason.ANSWER_TOO_LONG)
        return None

    def _reset(self) -> None:
        """Forget checks in progress, for which a forked child would wait forever."""
        self._owner = os.getpid()
        self._lock = threading.Lock()
        self._inflight: dict[Key, Future] = {}

    def _check(self, golds: tuple[str, ...], answer: str) -> Future:
        """Return a future of the verdict, which equal checks in progress share; the verdict is then cached."""
        key = (golds, answer)
        if self._owner != os.getpid():
            self._reset()
        with self._lock:
            if key in self._cache:
                self._cache.move_to_end(key)
                done: Future = Future()
                done.set_result(self._cache[key])
                return done
            if key in self._inflight:
                return self._inflight[key]
            outer = self._inflight[key] = Future()
        self._submit(key, outer, scale=1.0)
        return outer

    def _submit(self, key: Key, outer: Future, scale: float) -> None:
        job = Job(key[0], key[1], self.config.timeout_s * scale, self.config.cpu_s * scale)

        def done(future: Future) -> None:
            verdict: Verdict = future.result()
            failed = verdict.status == UNKNOWN and verdict.reason in FAILURES
            if failed and self.config.unknown == "retry" and scale == 1.0:
                self._submit(key, outer, scale=2.0)
                return
            self._remember(key, None if failed else dataclasses.replace(verdict, seconds=0.0))
            outer.set_result(verdict)

        job.future.add_done_callback(done)
        self.pool.submit(job)

    def _remember(self, key: Key, verdict: Verdict | None) -> None:
        """End a check in progress; cache its verdict unless it is None (a failure, which depends on the machine)."""
        with self._lock:
            self._inflight.pop(key, None)
            if verdict is None or not self.config.cache_size:
                return
            self._cache[key] = verdict
            while len(self._cache) > self.config.cache_size:
                self._cache.popitem(last=False)
