"""Workers are killed, suspended, starved and abandoned; callers must get a verdict in time, and nothing may leak."""

from __future__ import annotations

import ast
import asyncio
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from marks import SLOW

from openrlhf_ktae.verifier import CORRECT, UNKNOWN, WRONG, Verdict, Verifier
from openrlhf_ktae.verifier.pool import Job

ROOT = Path(__file__).parents[3]
SLACK_S = 1.0


def hard(n: int) -> tuple[str, str]:
    """Return a check that needs a worker, different for every n."""
    return rf"\frac{{{n}}}{{7}}", rf"\boxed{{\frac{{{2 * n}}}{{14}}}}"


def pids(verifier: Verifier) -> list[int]:
    return [worker.process.pid for worker in verifier.pool._workers]


def busy(verifier: Verifier) -> list:
    return [worker for worker in verifier.pool._workers if worker.job is not None]


def wait_until(condition, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"still false after {seconds} s"
        time.sleep(0.005)


def stopped(verifier: Verifier) -> None:
    """Suspend every worker, including the spare, so that their next checks hang."""
    wait_until(lambda: sum(worker.ready for worker in verifier.pool._workers) > verifier.config.workers)
    for pid in pids(verifier):
        os.kill(pid, signal.SIGSTOP)


def children() -> dict[int, str]:
    """Return the state of each child process; `Z` is a zombie."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = path.read_text().rsplit(")", 1)[1].split()[:2]
        except OSError:
            continue
        if int(parent) == os.getpid():
            found[int(path.parent.name)] = state
    return found


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def run_python(code: str, *arguments: str, **options) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **options.pop("env", {})}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment,
        **options,
    )


def test_a_stuck_check_takes_its_limit_and_delays_no_other():
    with Verifier(workers=2, timeout_s=1.5) as verifier:
        os.kill(pids(verifier)[0], signal.SIGSTOP)
        with ThreadPoolExecutor(40) as threads:
            begun = time.monotonic()
            verdicts = list(threads.map(lambda n: (verifier.verify(*hard(n)), time.monotonic() - begun), range(1, 41)))
        assert all(verdict.status == CORRECT for verdict, _ in verdicts)  # the stuck check succeeded on another worker
        stuck = [seconds for _, seconds in verdicts if seconds >= 1.0]
        assert len(stuck) <= 1 and all(seconds < 1.5 + SLACK_S for seconds in stuck)


def test_checks_work_after_every_worker_was_stuck():
    with Verifier(workers=2, timeout_s=0.7) as verifier:
        stopped(verifier)
        begun = time.monotonic()
        first, second = verifier.verify_many([hard(1), hard(2)])
        assert time.monotonic() - begun < 60
        assert "wall time limit" in (first.reason, second.reason)  # one is retried on the third worker, also suspended
        assert verifier.pool.counts["killed"] == 3
        wait_until(lambda: verifier.verify(*hard(3)).status == CORRECT)


def test_seconds_exclude_the_wait_in_the_queue():
    with Verifier(workers=1, timeout_s=0.5) as verifier:
        stopped(verifier)
        first, *others = verifier.verify_many([hard(n) for n in range(1, 10)])  # stuck in both workers
        assert 0.5 <= first.seconds < 0.5 + SLACK_S
        assert all(verdict.seconds < 0.5 + SLACK_S for verdict in others)
        assert others[-1].status == CORRECT and others[-1].seconds < 0.5


def test_worker_killed_from_outside_costs_one_retry():
    with Verifier(workers=1) as verifier, ThreadPoolExecutor(1) as thread:
        stopped(verifier)
        pending = thread.submit(verifier.verify, *hard(1))
        wait_until(lambda: busy(verifier))
        victim = busy(verifier)[0].process.pid
        for pid in pids(verifier):
            os.kill(pid, signal.SIGKILL if pid == victim else signal.SIGCONT)
        assert pending.result(60).status == CORRECT
        assert verifier.pool.counts["died"] == 1


@SLOW
def test_worker_killed_twice_in_the_same_check_is_unknown():
    long = [rf"\frac{{{n}}}{{7}}" for n in range(1, 25000)]
    with Verifier(workers=1) as verifier:
        pending = verifier.pool.submit(Job(long, r"\sqrt{2}", 60.0, 60.0))
        for _ in range(2):
            wait_until(lambda: any(worker.began for worker in busy(verifier)))
            victim = busy(verifier)[0].process.pid
            os.kill(victim, signal.SIGKILL)
            wait_until(lambda victim=victim: victim not in pids(verifier))
        verdict = pending.result(60)
        assert (verdict.status, verdict.reason) == (UNKNOWN, "worker died")
        assert "-9" in verdict.detail
        wait_until(lambda: verifier.verify(*hard(2)).status == CORRECT)


def test_killed_idle_workers_do_not_affect_checks():
    with Verifier(workers=2) as verifier:
        for pid in pids(verifier):
            os.kill(pid, signal.SIGKILL)
        assert verifier.verify(*hard(1)).status == CORRECT


def test_an_answer_over_the_cpu_limit_is_wrong_and_the_worker_is_replaced():
    with Verifier(workers=1, cpu_s=0.02) as verifier:
        verdict = verifier.verify(r"\sin x", r"\boxed{\prod_{k=1}^{2000} \sin(k x)}")
        assert (verdict.status, verdict.reason) == (WRONG, "cpu time limit")
        assert verifier.pool.counts["recycled"] == 1


def test_a_gold_over_the_cpu_limit_is_unknown():
    many = ",".join([r"\sqrt{2}"] * 900)
    with Verifier(workers=1, cpu_s=0.004) as verifier:
        assert verifier.verify(many, r"\boxed{\sqrt{5}}").status == UNKNOWN


@pytest.mark.parametrize("ending", [signal.SIGSEGV, signal.SIGABRT])
def test_an_answer_that_crashes_its_worker_is_wrong_once_the_gold_is_read(ending):
    """As when a library aborts on lack of memory, or the stack overflows."""
    long = r"x+1=" * 300 + "x"
    with Verifier(workers=1) as verifier:
        pending = verifier.pool.submit(Job([r"\frac{1}{2}"], ",".join([rf"\sin({long})"] * 40), 60.0, 60.0))
        wait_until(lambda: any(worker.began for worker in busy(verifier)) or pending.done())
        for worker in busy(verifier):
            os.kill(worker.process.pid, ending)
        assert pending.result(60).status == WRONG


@pytest.mark.parametrize(
    ("check", "outcome"),
    [
        ("lambda g, a: bytearray(1 << 34)", "memory limit"),
        ("lambda g, a: [0] * (1 << 33)", "memory limit"),
        ("lambda g, a: exec('while True: pass')", "cpu time limit"),
        ("lambda g, a: type('', (), dict(__del__=lambda s: exec('while True: pass')))() and None", "cpu time limit"),
        ("lambda g, a: 1 / 0", "internal error"),
        ("lambda g, a: (lambda f: f(f))(lambda f: f(f))", "nested too deeply"),
    ],
)
def test_limits_inside_a_worker(check, outcome):
    alone = check.replace("g, a:", "g:")
    code = f"""
from openrlhf_ktae.verifier import UNKNOWN, WRONG, Verdict, worker
worker.limit_process(1024)
sent = []
for reader in (lambda g: Verdict(UNKNOWN, "gold unreadable"), lambda g: Verdict(WRONG, "gold read"), None, {alone}):
    worker.serve({check}, reader, dict(id=1, gold="", answer="", cpu_s=0.2), sent.append)
print([(str(answer["status"]), str(answer["reason"])) for answer in sent[1::2]])
"""
    done = run_python(code)
    statuses = [
        "unknown",
        "wrong",
        "unknown",
        "unknown",
    ]  # the gold: unreadable, read, another grader's, itself too much
    assert ast.literal_eval(done.stdout) == [(status, outcome) for status in statuses], done.stderr


def test_a_check_stuck_in_c_is_killed_by_the_kernel_at_its_cpu_limit():
    code = """
from openrlhf_ktae.verifier import worker
worker.limit_process(1024)
worker.serve(lambda g, a: sum(range(10 ** 11)), None, dict(id=1, gold="", answer="", cpu_s=0.1), lambda m: None)
"""
    begun = time.monotonic()
    assert run_python(code).returncode == -signal.SIGPROF
    assert time.monotonic() - begun < 10


def test_unknown_retry_checks_once_more():
    with Verifier(workers=1, timeout_s=0.5, unknown="retry") as verifier:
        stopped(verifier)
        killed = verifier.pool.counts
        with ThreadPoolExecutor(1) as thread:
            pending = thread.submit(verifier.verify, *hard(1))
            wait_until(lambda: killed["killed"] == 1)
            for pid in pids(verifier):
                os.kill(pid, signal.SIGCONT)
            assert pending.result(60).status == CORRECT


@pytest.mark.parametrize("line", ["1", "{}", "[]", "a text"])
def test_a_worker_that_writes_something_else_is_replaced(line, tmp_path, monkeypatch):
    once = (
        f"import os; os.close(os.open({str(tmp_path / 'once')!r}, os.O_CREAT | os.O_EXCL)); print({line!r}, flush=True)"
    )
    (tmp_path / "sitecustomize.py").write_text(f"try:\n    {once}\nexcept FileExistsError:\n    pass\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with Verifier(workers=1) as verifier:
        assert verifier.verify(*hard(1)).status == CORRECT
        assert verifier.pool.counts["died"] == 1


def test_timeouts_are_not_cached():
    with Verifier(workers=1, timeout_s=0.3) as verifier:
        stopped(verifier)
        assert verifier.verify(*hard(1)).status == UNKNOWN
        wait_until(lambda: verifier.verify(*hard(1)).status == CORRECT)


def test_recycled_workers_leave_no_zombies_or_open_files(nothing_kept):
    others = children()
    with Verifier(workers=1, recycle_after=4, cache_size=0) as verifier:
        wait_until(lambda: all(worker.ready for worker in verifier.pool._workers))
        files = open_files()
        assert all(verdict.status == CORRECT for verdict in verifier.verify_many(hard(n) for n in range(1, 25)))
        assert verifier.pool.counts["recycled"] >= 5
        wait_until(lambda: len(alive := children()) == len(others) + 2 and "Z" not in alive.values())
        wait_until(lambda: open_files() <= files)


def test_nothing_is_left_after_close(nothing_kept):
    before, files, threads = set(children()), open_files(), threading.active_count()
    for _ in range(3):
        with Verifier(workers=2) as verifier:
            verifier.verify(*hard(1))
    assert set(children()) == before
    assert open_files() == files
    assert threading.active_count() == threads


def test_2000_checks_leak_nothing(verifier):
    def resident_mb() -> float:
        gc.collect()
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20

    verifier.verify_many(hard(n) for n in range(1, 200))
    files, memory = open_files(), resident_mb()
    verdicts = verifier.verify_many(hard(n) for n in range(200, 2200))
    assert all(verdict.status == CORRECT for verdict in verdicts)
    assert open_files() <= files + 2
    assert resident_mb() - memory < 20


def test_works_from_many_threads(verifier):
    with ThreadPoolExecutor(32) as threads:
        verdicts = list(threads.map(lambda n: verifier.verify(*hard(n)), range(5000, 5200)))
    assert all(verdict.status == CORRECT for verdict in verdicts)


def test_verification_does_not_block_an_event_loop():
    async def scenario(verifier: Verifier) -> tuple[list[Verdict], float]:
        worst, running = 0.0, True

        async def heartbeat() -> None:
            nonlocal worst
            while running:
                begun = time.monotonic()
                await asyncio.sleep(0.01)
                worst = max(worst, time.monotonic() - begun)

        beat = asyncio.create_task(heartbeat())
        checks = [verifier.averify("5", rf"\boxed{{9^{{9^{{9^{{{n}}}}}}}}}") for n in range(50)]
        checks += [verifier.averify(*hard(n)) for n in range(6000, 6050)]
        verdicts = await asyncio.gather(*checks)
        cancelled = asyncio.create_task(verifier.averify(*hard(7000)))
        await asyncio.sleep(0)
        cancelled.cancel()
        running = False
        await asyncio.gather(beat, cancelled, return_exceptions=True)
        return verdicts, worst

    with Verifier(workers=2) as verifier:
        verdicts, worst = asyncio.run(scenario(verifier))
        assert [verdict.status == CORRECT for verdict in verdicts] == [False] * 50 + [True] * 50
        assert worst < 0.5
        assert verifier.verify(*hard(7000)).status == CORRECT


def test_works_in_a_forked_child_and_its_parent():
    with Verifier(workers=1) as verifier:
        assert verifier.verify(*hard(1)).status == CORRECT
        child = os.fork()
        if child == 0:
            verdicts = verifier.verify_many([hard(2), hard(3)])
            verifier.close()
            os._exit(0 if all(verdict.status == CORRECT for verdict in verdicts) else 1)
        assert verifier.verify_many([hard(4), hard(5)])[1].status == CORRECT
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert verifier.verify(*hard(6)).status == CORRECT


@SLOW
def test_works_in_synchronous_and_asynchronous_ray_actors():
    code = """
import ray
from openrlhf_ktae.verifier import Verifier

class Plain:
    def __init__(self):
        self.verifier = Verifier(workers=1)
        self.verifier.start()
    def check(self, n):
        return self.verifier.verify(rf"\\\\frac{{{n}}}{{7}}", rf"\\\\boxed{{\\\\frac{{{2*n}}}{{14}}}}").status

class Asynchronous(Plain):
    async def check(self, n):
        return (await self.verifier.averify(rf"\\\\frac{{{n}}}{{7}}", rf"\\\\boxed{{\\\\frac{{{2*n}}}{{14}}}}")).status

ray.init(address="local", num_cpus=1, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
made = [ray.remote(num_cpus=0, max_concurrency=4)(kind) for kind in (Plain, Asynchronous)]
actors = [kind.remote() for kind in made]
print([str(status) for status in ray.get([actor.check.remote(n) for actor in actors for n in range(1, 9)])])
ray.shutdown()
"""
    done = run_python(code)
    assert done.stdout.strip() == str(["correct"] * 16), done.stderr


def test_workers_die_with_a_killed_parent():
    code = """
import sys, time
from openrlhf_ktae.verifier import Verifier
verifier = Verifier(workers=2)
verifier.__enter__()
print(*(worker.process.pid for worker in verifier.pool._workers), flush=True)
time.sleep(60)
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment)
    assert parent.stdout is not None
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(pids) >= 2
    parent.kill()
    parent.wait()
    parent.stdout.close()
    wait_until(lambda: not any(Path(f"/proc/{pid}/cmdline").exists() and _running(pid) for pid in pids))


def _running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def test_close_resolves_waiting_checks():
    verifier = Verifier(workers=1)
    with verifier, ThreadPoolExecutor(5) as threads:
        stopped(verifier)
        pending = [threads.submit(verifier.verify, *hard(n)) for n in range(1, 6)]
        wait_until(lambda: busy(verifier))
        time.sleep(0.1)
        verifier.close()
        assert {future.result(5).reason for future in pending} == {"verifier closed"}
    assert verifier.verify(*hard(9)).reason == "verifier closed"
    verifier.close()


def test_equal_checks_run_once():
    with Verifier(workers=1) as verifier:
        stopped(verifier)
        with ThreadPoolExecutor(8) as threads:
            pending = [threads.submit(verifier.verify, *hard(1)) for _ in range(8)]
            wait_until(lambda: busy(verifier))
            for pid in pids(verifier):
                os.kill(pid, signal.SIGCONT)
            assert {future.result(60).status for future in pending} == {CORRECT}
        verifier.verify(hard(1)[0], "other words, " + hard(1)[1])
        assert sum(worker.checks for worker in verifier.pool._workers) == 1


def test_the_cache_is_bounded():
    with Verifier(workers=1, cache_size=3) as verifier:
        verifier.verify_many(hard(n) for n in range(1, 9))
        assert len(verifier._cache) == 3
        verifier.verify(*hard(8))
        assert sum(worker.checks for worker in verifier.pool._workers) == 8


def test_a_worker_that_cannot_start_gives_the_reason(tmp_path, monkeypatch):
    (tmp_path / "mpmath.py").write_text("raise ImportError('no grammar here')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(RuntimeError, match="no grammar here"), Verifier(workers=1):
        pass
    verifier = Verifier(workers=1)
    verdict = verifier.verify(*hard(1))
    verifier.close()
    assert (verdict.status, verdict.reason) == (UNKNOWN, "no worker could start")
    assert "no grammar here" in verdict.detail


def test_importing_the_package_loads_neither_the_judge_nor_the_host():
    code = "import sys, openrlhf_ktae.verifier; print(*sys.modules)"
    loaded = set(run_python(code).stdout.split())
    assert "openrlhf_ktae.verifier" in loaded
    assert not loaded & {"sympy", "mpmath", "math_verify", "torch", "numpy", "ray", "vllm", "openrlhf", "deepspeed"}


@pytest.mark.parametrize("search_path", [None, "/nowhere:", "."])
def test_worker_ignores_modules_of_the_current_directory(tmp_path, monkeypatch, search_path):
    if search_path is not None:
        monkeypatch.setenv("PYTHONPATH", search_path)
    for name in ("json", "math_verify", "fractions"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('taken from the current directory')")
    monkeypatch.chdir(tmp_path)
    with Verifier(workers=1) as verifier:
        assert verifier.verify(*hard(1)).status == CORRECT
