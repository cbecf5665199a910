"""Killable worker processes behind one dispatcher thread.

The dispatcher sleeps in `select` until a job, an answer or a deadline arrives. A worker that exceeds its deadline is
killed, and a warm spare replaces it. Other workers are not affected. Callers get a `concurrent.futures.Future`, which
threads, asyncio and Ray actors can all wait for.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .graders import OWN
from .verdict import UNKNOWN, Reason, Status, Verdict

logger = logging.getLogger(__name__)

SPARES = 1  # warm workers beyond `workers`, so that after a kill no check waits for a start-up (about 1 s)
START_LIMIT_S = 60.0  # a worker that is not ready by then is killed
MAX_DEATHS = 2  # of workers during one check; then its verdict is unknown
MAX_DISPATCHES = 8  # of one check, if its workers are killed before they begin it
MAX_START_FAILURES = 3  # in a row; then waiting checks become unknown, with the worker's traceback
START_BACKOFF_S = 5.0  # pause after MAX_START_FAILURES before workers are started again
REAP_INTERVAL_S = 0.05  # between attempts to reap a killed process
CLOSED = Verdict(UNKNOWN, Reason.CLOSED)
RECYCLE_REASONS = frozenset({Reason.MEMORY_LIMIT, Reason.CPU_LIMIT, Reason.DEPTH_LIMIT})
OWN_FAULT = frozenset({signal.SIGPROF, signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL})
PACKAGE_ROOT = Path(__file__).resolve().parents[2]


@dataclass(eq=False)
class Job:
    """One check that waits for a worker or runs on one."""

    gold: Any
    answer: str
    timeout_s: float
    cpu_s: float
    future: Future = field(default_factory=Future)
    deaths: int = 0  # workers that died or hung during this check
    otherwise: Status = UNKNOWN  # status if the check kills its worker; wrong once the gold has been read
    dispatches: int = 0
    dispatched_at: float = 0.0

    def resolve(self, verdict: Verdict) -> None:
        """Set the verdict and its time, unless the caller has cancelled."""
        seconds = time.monotonic() - self.dispatched_at if self.dispatches else 0.0
        with contextlib.suppress(Exception):
            self.future.set_result(replace(verdict, seconds=seconds))


@dataclass(eq=False)
class _Worker:
    process: subprocess.Popen
    deadline: float
    ready: bool = False
    job: Job | None = None
    began: bool = False
    cpu_s: float = 0.0  # CPU time it had used when it began the current check
    checks: int = 0
    buffer: bytes = b""  # the beginning of its next message


def worker_environment() -> dict[str, str]:
    """Return the parent's environment with this package importable, one thread, a fixed hash seed and no GPU.

    Only absolute folders of PYTHONPATH are kept, because an empty one means the current directory.
    """
    folders = filter(os.path.isabs, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    fixed = {
        "PYTHONPATH": os.pathsep.join([str(PACKAGE_ROOT), *folders]),
        "PYTHONHASHSEED": "0",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    return {**os.environ, **fixed}


def _cpu_seconds(pid: int) -> float:
    """Return the CPU seconds that a live process has used; 0 if the system does not report them."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return 0.0


_POOLS: weakref.WeakSet[WorkerPool] = weakref.WeakSet()


def _reset_after_fork() -> None:
    for pool in list(_POOLS):
        pool._reset()


os.register_at_fork(after_in_child=_reset_after_fork)


class WorkerPool:
    """Runs jobs on `workers` processes. Starts nothing until `start` or the first `submit`."""

    def __init__(self, workers: int, memory_mb: int, recycle_after: int, grader: str = OWN) -> None:
        """`grader` is a name that `load_grader` knows."""
        self._grader = grader
        self._workers_wanted = workers
        self._memory_mb = memory_mb
        self._recycle_after = recycle_after
        self._reset()
        _POOLS.add(self)

    def _reset(self) -> None:
        """Set the state of a pool without dispatcher and workers, which a forked child does not inherit."""
        self._lock = threading.Lock()
        self._waiting: deque[Job] = deque()
        self._workers: list[_Worker] = []
        self._dying: list[subprocess.Popen] = []
        self._start_failures = 0
        self._start_after = 0.0
        self.start_failure = ""
        self._thread: threading.Thread | None = None
        self._wake_write = -1
        self._closing = False
        self._ready = threading.Event()
        self.counts = {"killed": 0, "died": 0, "recycled": 0}

    def start(self) -> None:
        """Start the dispatcher, which starts the workers; returns at once."""
        with self._lock:
            if self._thread is not None or self._closing:
                return
            wake_read, self._wake_write = os.pipe()
            os.set_blocking(wake_read, False)
            os.set_blocking(self._wake_write, False)
            self._thread = threading.Thread(target=self._run, args=(wake_read,), name="verifier", daemon=True)
            self._thread.start()

    def wait_ready(self, timeout_s: float = START_LIMIT_S) -> bool:
        """Wait for all workers but the spare. False if they fail (`start_failure` has the reason) or take longer."""
        return self._ready.wait(timeout_s) and not self.start_failure

    def submit(self, job: Job) -> Future:
        """Queue one job and return its future, whose verdict has no `extracted` and `gold`."""
        with self._lock:
            if not self._closing:
                self._waiting.append(job)
        if self._closing:
            job.resolve(CLOSED)
            return job.future
        self.start()
        self._wake()
        return job.future

    def close(self) -> None:
        """Kill and reap the workers; waiting jobs get the verdict unknown."""
        with self._lock:
            self._closing = True
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            self._wake()
            thread.join()

    def _wake(self) -> None:
        with contextlib.suppress(OSError):  # a full pipe wakes the dispatcher, too
            os.write(self._wake_write, b"x")

    # --- everything below runs in the dispatcher thread ---

    def _run(self, wake_read: int) -> None:
        self._selector = selectors.DefaultSelector()
        self._selector.register(wake_read, selectors.EVENT_READ, None)
        try:
            while not self._closing:
                self._step(wake_read)
        except Exception:
            logger.exception("the verifier's dispatcher failed; all further verdicts are unknown")
        finally:
            with self._lock:
                self._closing = True
            self._shut_down(wake_read)

    def _step(self, wake_read: int) -> None:
        self._start_missing()
        self._assign()
        for key, _ in self._selector.select(self._sleep_time()):
            if key.data is None:
                with contextlib.suppress(BlockingIOError):
                    os.read(wake_read, 4096)
            else:
                self._read(key.data)
        now = time.monotonic()
        for worker in [w for w in self._workers if w.deadline < now]:
            self._expire(worker)
        self._dying = [process for process in self._dying if process.poll() is None]

    def _sleep_time(self) -> float | None:
        now = time.monotonic()
        times = [worker.deadline - now for worker in self._workers if worker.deadline != float("inf")]
        if self._dying:
            times.append(REAP_INTERVAL_S)
        if self._waiting and self._start_after > now:
            times.append(self._start_after - now)
        return max(0.0, min(times)) + 0.001 if times else None

    def _start_missing(self) -> None:
        if time.monotonic() < self._start_after:
            return
        arguments = str(os.getpid()), str(self._memory_mb), self._grader
        while len(self._workers) < self._workers_wanted + SPARES:
            try:
                process = subprocess.Popen(  # -P keeps the current directory out of the import path
                    [sys.executable, "-P", "-m", "openrlhf_ktae.verifier.worker", *arguments],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    env=worker_environment(),
                    start_new_session=True,
                    bufsize=0,
                )
            except OSError as error:
                self._start_failed(f"cannot start {sys.executable}: {error}")
                return
            worker = _Worker(process, time.monotonic() + START_LIMIT_S)
            self._workers.append(worker)
            assert process.stdout is not None
            self._selector.register(process.stdout, selectors.EVENT_READ, worker)

    def _start_failed(self, detail: str) -> None:
        self._start_failures += 1
        if self._start_failures >= MAX_START_FAILURES:
            self._start_failures = 0
            self._start_after = time.monotonic() + START_BACKOFF_S
            self.start_failure = detail
            self._ready.set()

    def _assign(self) -> None:
        if not self._workers and self.start_failure:
            while self._waiting:
                self._waiting.popleft().resolve(Verdict(UNKNOWN, Reason.NO_WORKER, detail=self.start_failure))
        idle = [worker for worker in self._workers if worker.ready and worker.job is None]
        busy = sum(worker.job is not None for worker in self._workers)
        while self._waiting and idle and busy < self._workers_wanted:
            worker, job = idle.pop(), self._waiting.popleft()
            job.dispatched_at = time.monotonic()
            worker.job, worker.deadline = job, job.dispatched_at + job.timeout_s
            worker.began = False
            worker.checks += 1
            job.dispatches += 1
            busy += 1
            self._send(worker, job)

    def _send(self, worker: _Worker, job: Job) -> None:
        request = {"id": worker.checks, "gold": job.gold, "answer": job.answer, "cpu_s": job.cpu_s}
        try:
            assert worker.process.stdin is not None
            worker.process.stdin.write(json.dumps(request).encode() + b"\n")
        except OSError:  # the worker has died
            self._lost(worker)

    def _read(self, worker: _Worker) -> None:
        if worker not in self._workers:
            return
        assert worker.process.stdout is not None
        try:
            data = os.read(worker.process.stdout.fileno(), 65536)
            *lines, worker.buffer = (worker.buffer + data).split(b"\n")
            for line in lines:
                if worker in self._workers:
                    self._answered(worker, json.loads(line))
        except (OSError, ValueError, TypeError, LookupError):  # what it wrote is no message
            data = b""
        if not data:
            self._lost(worker)

    def _answered(self, worker: _Worker, message: dict[str, Any]) -> None:
        if "began" in message:
            worker.began, worker.cpu_s = True, message["cpu_s"]
            if worker.job is not None:
                worker.job.otherwise = Status(message["otherwise"])
            return
        worker.deadline = float("inf")
        if "ready" in message:
            self._started(worker, message)
            return
        verdict = Verdict(Status(message["status"]), Reason(message["reason"]), detail=message["detail"])
        if worker.job is not None and message["id"] == worker.checks:
            worker.job.resolve(verdict)
        worker.job = None
        if worker.checks >= self._recycle_after or verdict.reason in RECYCLE_REASONS:
            self.counts["recycled"] += 1
            self._remove(worker)

    def _started(self, worker: _Worker, message: dict[str, Any]) -> None:
        if not message["ready"]:
            self._remove(worker)
            self._start_failed(message.get("detail", ""))
            return
        worker.ready = True
        self._start_failures, self.start_failure = 0, ""
        if sum(w.ready for w in self._workers) >= self._workers_wanted:
            self._ready.set()

    def _expire(self, worker: _Worker) -> None:
        """Kill a worker past its deadline. A check that used half its CPU limit is at fault, any other is retried."""
        self.counts["killed"] += 1
        job = worker.job
        used = _cpu_seconds(worker.process.pid) - worker.cpu_s if worker.began else 0.0
        self._remove(worker)
        if job is None:
            self._start_failed("a worker was not ready in time")
        elif used > job.cpu_s / 2:
            job.resolve(Verdict(job.otherwise, Reason.WALL_LIMIT))
        else:
            self._again(job, Verdict(UNKNOWN, Reason.WALL_LIMIT))

    def _again(self, job: Job, otherwise: Verdict) -> None:
        """Try a check on another worker if the last one was lost through no fault of the answer."""
        job.deaths += 1
        if job.deaths < MAX_DEATHS and job.dispatches < MAX_DISPATCHES:
            self._waiting.appendleft(job)
        else:
            job.resolve(otherwise)

    def _lost(self, worker: _Worker) -> None:
        """Handle a worker that ended unexpectedly: by its own limits, or killed from outside."""
        if worker not in self._workers:
            return
        self.counts["died"] += 1
        job, started, began = worker.job, worker.ready, worker.began
        code = None
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = worker.process.wait(0.1)
        self._remove(worker)
        if job is None:
            if not started:
                self._start_failed(f"a worker ended with code {code} while starting")
            return
        if code is not None and -code in OWN_FAULT and (began or code == -signal.SIGPROF):
            reason = Reason.CPU_LIMIT if code == -signal.SIGPROF else Reason.WORKER_DIED
            job.resolve(Verdict(job.otherwise, reason, detail=f"signal {-code}"))
            return
        job.deaths -= not began
        detail = f"{job.dispatches} times, the last time with code {code}"
        self._again(job, Verdict(UNKNOWN, Reason.WORKER_DIED, detail=detail))

    def _remove(self, worker: _Worker) -> None:
        """Kill and remove one worker; the process is reaped in a later step."""
        process = worker.process
        self._workers.remove(worker)
        assert process.stdin is not None and process.stdout is not None
        self._selector.unregister(process.stdout)
        with contextlib.suppress(OSError):
            process.stdin.close()
        process.stdout.close()
        process.kill()
        self._dying.append(process)

    def _shut_down(self, wake_read: int) -> None:
        for worker in list(self._workers):
            if worker.job is not None:
                worker.job.resolve(CLOSED)
            self._remove(worker)
        for process in self._dying:
            process.wait()
        self._selector.close()
        os.close(wake_read)
        os.close(self._wake_write)
        for job in self._waiting:
            job.resolve(CLOSED)
