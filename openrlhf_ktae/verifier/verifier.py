"""The public interface: check responses against golds from any thread, event loop or actor."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from types import TracebackType

from .config import VerifierConfig
from .extract import extract_answer
from .pool import Job, WorkerPool
from .quick import quick_verdict
from .verdict import CORRECT, RETRYABLE, UNKNOWN, WRONG, Verdict

Gold = str | int | float | Sequence
MAX_ANSWER = 4000  # characters; a longer answer is compared as text only


class Verifier:
    """Checks answers in killable processes. A context manager; `verify` may be called from any thread."""

    def __init__(self, config: VerifierConfig | None = None, **options: object) -> None:
        """`options` are fields of VerifierConfig, for example `workers=2, timeout_s=5.0, memory_mb=2048`."""
        base = config or VerifierConfig()
        self.config = dataclasses.replace(base, **options) if options else base  # type: ignore[arg-type]
        self.pool = WorkerPool(self.config.workers, self.config.memory_mb, self.config.recycle_after)
        self._lock = threading.Lock()
        self._cache: OrderedDict[tuple, tuple[str, str, str]] = OrderedDict()
        self._inflight: dict[tuple, Future] = {}

    def __enter__(self) -> Verifier:
        self.pool.start()
        self.pool.wait_ready()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        """Start the workers in the background and return at once."""
        self.pool.start()

    def close(self) -> None:
        """Kill the workers; checks still waiting are answered `unknown`."""
        self.pool.close()

    def verify(self, gold: Gold, response: str) -> Verdict:
        """Check one whole model output. Waits for a free worker, then at most `timeout_s`."""
        return self._begin(gold, response).result()

    def verify_many(self, pairs: Iterable[tuple[Gold, str]]) -> list[Verdict]:
        """Check many (gold, response) pairs on all workers; verdicts in the order of the pairs."""
        return [future.result() for future in [self._begin(gold, response) for gold, response in pairs]]

    async def averify(self, gold: Gold, response: str) -> Verdict:
        """Like `verify`, without blocking the event loop."""
        return await asyncio.wrap_future(self._begin(gold, response))

    def _begin(self, gold: Gold, response: str) -> Future:
        """A future of the Verdict: done at once where no worker is needed."""
        begun = time.monotonic()
        gold_text = "" if gold is None else str(gold).strip()
        result: Future = Future()
        found = extract_answer(response)

        def finish(status: str, reason: str, detail: str = "") -> Future:
            seconds = time.monotonic() - begun
            with contextlib.suppress(Exception):  # the caller has cancelled
                result.set_result(Verdict(status, reason, found.answer, gold_text, seconds, detail))
            return result

        if not gold_text:
            return finish(UNKNOWN, "gold empty")
        if found.answer is None:
            return finish(WRONG, found.reason)
        settled = quick_verdict(gold_text, found.answer)
        if settled is None and len(found.answer) > MAX_ANSWER:
            settled = WRONG, "answer too long"
        if settled is not None:
            return finish(*settled)
        check = self._check(gold_text, found.answer)
        check.add_done_callback(lambda done: finish(*done.result()))
        return result

    def _check(self, gold: str, answer: str) -> Future:
        """A future of (status, reason, detail), shared by equal checks under way and remembered afterwards."""
        key = (gold, answer)
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

    def _submit(self, key: tuple[str, str], outer: Future, scale: float) -> None:
        job = Job(key[0], key[1], self.config.timeout_s * scale, self.config.cpu_s * scale)

        def done(future: Future) -> None:
            status, reason, detail = future.result()
            if status == UNKNOWN and reason in RETRYABLE and self.config.unknown == "retry" and scale == 1.0:
                self._submit(key, outer, scale=2.0)
                return
            with self._lock:
                self._inflight.pop(key, None)
                if status in (CORRECT, WRONG) and self.config.cache_size:
                    self._cache[key] = (status, reason, detail)
                    while len(self._cache) > self.config.cache_size:
                        self._cache.popitem(last=False)
            outer.set_result((status, reason, detail))

        job.future.add_done_callback(done)
        self.pool.submit(job)
