"""Real processes: stacks on demand, clean-up, restarts, orderly shutdown."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from openrlhf_ktae.processes import marks as processes
from openrlhf_ktae.processes import stacks
from openrlhf_ktae.processes.ending import CleanEnd, EndOrder
from openrlhf_ktae.processes.supervisor import supervise
from openrlhf_ktae.processes.watchdog import Watchdog
from openrlhf_ktae.record.metrics import RunRecord

STUBBORN = """
import mmap, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
from openrlhf_ktae.processes.setup import in_every_process
in_every_process()
file = open(sys.argv[1], "wb+")
file.truncate(4096)
memory = mmap.mmap(file.fileno(), 4096)
def waits_for_a_rank_that_is_gone():
    print("ready", flush=True)
    time.sleep(60)
waits_for_a_rank_that_is_gone()
"""


@pytest.fixture
def stubborn(tmp_path):
    """Start a marked process that ignores SIGTERM and holds shared memory."""
    value, memory = f"test-{os.getpid()}-{tmp_path.name}", f"/dev/shm/ktae-test-{os.getpid()}"
    folder = str(tmp_path / "stacks")
    process = subprocess.Popen(
        [sys.executable, "-c", STUBBORN, memory],
        env={**os.environ, processes.VARIABLE: value, stacks.VARIABLE: folder},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    yield process, value, memory, folder
    process.kill()
    process.wait()
    Path(memory).unlink(missing_ok=True)


def test_marked_processes_and_their_shared_memory_are_swept(stubborn, monkeypatch):
    process, value, memory, _ = stubborn
    monkeypatch.setattr(processes.end_all, "__defaults__", (0.2,))
    assert [one.pid for one in processes.marked(value)] == [process.pid]
    with processes.swept(value):
        assert Path(memory).exists()
    process.wait(5)
    assert not Path(memory).exists()
    assert psutil.Process().is_running(), "this process is not marked"


ENGINE = """
import multiprocessing, sys, time

def core():
    from openrlhf_ktae.backend.cpu_patches import activate_in_vllm
    activate_in_vllm()
    print(multiprocessing.current_process().pid, flush=True)
    time.sleep(60)

if __name__ == "__main__":
    multiprocessing.get_context("spawn").Process(target=core).start()
    time.sleep(60)
"""


def test_an_engines_core_dies_with_its_actor(tmp_path):
    (tmp_path / "engine.py").write_text(ENGINE)
    environment = {**os.environ, processes.VARIABLE: f"test-{tmp_path.name}"}
    command = [sys.executable, str(tmp_path / "engine.py")]
    actor = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    core = psutil.Process(int(actor.stdout.readline()))
    actor.kill()
    actor.wait()
    gone, left = psutil.wait_procs([core], timeout=10)
    for process in left:
        process.kill()
    assert gone == [core]


def test_stacks_of_all_processes_in_one_file(stubborn, tmp_path):
    _, value, _, folder = stubborn
    assert stacks.dump(folder, value, tmp_path / "stacks.txt") == 1
    assert "waits_for_a_rank_that_is_gone" in (tmp_path / "stacks.txt").read_text()


def test_a_process_starts_even_if_it_cannot_write_stacks(tmp_path, monkeypatch, capsys):
    """The folder may be another user's on another node. With a file but no handler, `SIGNAL` would kill the process."""
    monkeypatch.setattr(stacks, "_files", [])
    (tmp_path / "file").touch()
    monkeypatch.setenv(stacks.VARIABLE, str(tmp_path / "file" / "folder"))
    stacks.register()
    monkeypatch.setenv(stacks.VARIABLE, str(tmp_path))
    monkeypatch.setattr(stacks.faulthandler, "register", lambda *_, **__: 1 / 0)
    stacks.register()
    assert capsys.readouterr().err.count("cannot dump its stacks") == 2
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert not stacks._files


def test_stacks_are_written_without_the_keys_of_command_lines(tmp_path):
    value = f"test-{tmp_path.name}"
    words = [
        sys.executable,
        "-c",
        "import time; print('up', flush=True); time.sleep(60)",
        "--logger.wandb.key",
        "0123key",
    ]
    environment = {**os.environ, processes.VARIABLE: value}
    process = subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "up\n"
        stacks.dump(str(tmp_path), value, tmp_path / "stacks.txt")
        text = (tmp_path / "stacks.txt").read_text()
        assert f"=== {process.pid} " in text
        assert "--logger.wandb.key ***" in text
        assert "0123key" not in text
    finally:
        process.kill()
        process.wait()


def test_a_descriptor_closed_during_the_search_does_not_hide_others(stubborn, monkeypatch):
    process, _, memory, _ = stubborn
    held = f"/dev/shm/ktae-held-{os.getpid()}"
    real, closed = os.readlink, []

    def readlink(link, **more):
        if str(link).endswith("/0") and not closed.append(link):
            raise FileNotFoundError(link)
        return real(link, **more)

    monkeypatch.setattr(os, "readlink", readlink)
    with open(held, "w"):
        assert held in processes.shared_memory(psutil.Process())
    os.unlink(held)
    assert memory in processes.shared_memory(psutil.Process(process.pid))
    assert closed


def test_semaphores_without_users_are_found(tmp_path):
    dead, held, old = (Path(f"/dev/shm/sem.mp-{os.getpid()}{name}") for name in ("dead", "held", "old"))
    try:
        for path in (dead, held, old):
            path.write_text("")
            os.utime(path, (time.time() - 5, time.time() - 5))
        os.utime(old, (time.time() - 500, time.time() - 500))
        with held.open():
            used = processes.shared_memory(psutil.Process())
            found = processes.dead_semaphores(time.time() - 60, used)
        assert str(dead) in found
        assert not {str(held), str(old)} & found
        dead.touch()
        assert str(dead) not in processes.dead_semaphores(time.time() - 60, set()), "a new semaphore may be opened soon"
    finally:
        for path in (dead, held, old):
            path.unlink()


def test_the_watchdog_fires_once_and_only_when_nothing_is_recorded(tmp_path):
    record, reasons = RunRecord(tmp_path), []
    with Watchdog(tmp_path, 1.0 / 60, reasons.append):
        for step in range(1, 16):
            record.step(step, {}, {})
            time.sleep(0.1)
        assert reasons == []
        time.sleep(1.6)
    assert len(reasons) == 1
    assert "--run.watchdog_minutes" in reasons[0]
    with Watchdog(tmp_path, 0, reasons.append):
        assert not any(thread.name == Watchdog.__name__ for thread in threading.enumerate()), "0 turns it off"


CHILD = """
import os, pathlib, signal, sys
log = pathlib.Path(sys.argv[1])
tries = len(log.read_text().splitlines()) if log.exists() else 0
log.open("a").write(" ".join(sys.argv[2:]) + "\\n")
code = [int(text) for text in os.environ["CODES"].split(",")][tries]
if code < 0:
    os.kill(os.getpid(), -code)
sys.exit(code)
"""


@pytest.mark.parametrize(
    ("codes", "restarts", "expected", "runs"),
    [
        ("0", 3, 0, 1),
        ("2", 3, 2, 1),
        ("3", 3, 3, 1),
        ("130", 3, 130, 1),
        ("1", 3, 1, 1),
        ("4,0", 3, 0, 2),
        ("-9,4,0", 3, 0, 3),
        ("4,4", 1, 4, 2),
        ("-9,-9", 1, 4, 2),
    ],
)
def test_a_supervisor_restarts_only_after_faults(codes, restarts, expected, runs, tmp_path, monkeypatch):
    monkeypatch.setenv("CODES", codes)
    monkeypatch.setenv(processes.VARIABLE, f"supervised-{tmp_path.name}")
    monkeypatch.setattr("openrlhf_ktae.processes.supervisor.PAUSE_SECONDS", 0)
    log, said = tmp_path / "log", []
    command = (sys.executable, "-c", CHILD, str(log))
    assert supervise(["--a", "b"], lambda: ["--resume", "auto"], restarts, said.append, command) == expected
    lines = log.read_text().splitlines()
    assert lines[0] == "--a b --run.restarts 0"
    assert lines[1:] == ["--a b --run.restarts 0 --resume auto"] * (runs - 1)
    assert all(f"restart {number} of {restarts}" in text for number, text in enumerate(said[: runs - 1], 1))
    assert len(said) == sum(code == "4" or code.startswith("-") for code in codes.split(",")[:runs])


LEAVES_ONE = """
import subprocess, sys
words = [sys.executable, "-c", "import time; print(1, flush=True); time.sleep(60)"]
subprocess.Popen(words, start_new_session=True, stdout=subprocess.PIPE).stdout.readline()
sys.exit(4)
"""


def test_a_supervisor_kills_leftovers_of_a_dead_run(tmp_path, monkeypatch):
    value, said = f"supervised-{tmp_path.name}", []
    monkeypatch.setenv(processes.VARIABLE, value)
    monkeypatch.setattr(processes.end_all, "__defaults__", (0.2,))
    assert supervise([], tuple, 0, said.append, (sys.executable, "-c", LEAVES_ONE)) == 4
    assert processes.marked(value) == []
    assert "1 leftover processes were killed" in said[0]


HOLDS = "import sys; file = open(sys.argv[1]); print(1, flush=True); sys.stdin.read()"


def test_semaphores_without_users_are_swept(tmp_path):
    made = [Path(f"/dev/shm/sem.mp-ktae-test-{os.getpid()}-{name}") for name in ("dead", "open", "older", "new")]
    dead, held, older, new = made
    try:
        for path in made[:3]:
            path.write_bytes(b"0" * 32)
        os.utime(older, (1, 1))
        time.sleep(1.2)
        new.write_bytes(b"0" * 32)  # its creator may not have opened it yet
        used = {str(held)}
        found = processes.dead_semaphores(psutil.Process().create_time(), used)
        assert {str(path) for path in made} & found == {str(dead)}
        words = [sys.executable, "-c", HOLDS, str(held)]
        with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
            assert holder.stdout.readline()
            with processes.swept(f"nobody-{tmp_path.name}"):
                assert dead.exists()
            holder.stdin.close()
        assert [path.exists() for path in (dead, held, older)] == [False, True, True]
    finally:
        for path in made:
            path.unlink(missing_ok=True)


INTERRUPTED = """
import os, signal, subprocess, sys
from openrlhf_ktae.processes.setup import leave_interrupts_to_the_driver
leave_interrupts_to_the_driver()
own = "import os, signal, sys, time; signal.signal(signal.SIGINT, lambda *_: sys.exit(9)); "
child = subprocess.Popen([sys.executable, "-c", own + "print(1, flush=True); time.sleep(1)"], stdout=subprocess.PIPE)
child.stdout.readline()
os.killpg(0, signal.SIGINT)
sys.exit(child.wait())
"""


@pytest.mark.parametrize("run", [True, False])
def test_a_terminals_interrupt_does_not_reach_the_processes_of_a_run(run, tmp_path):
    """Nor does it reach a child with a handler of its own, such as vLLM's core."""
    mark = {processes.VARIABLE: f"interrupted-{tmp_path.name}"} if run else {processes.VARIABLE: None}
    environment = {name: value for name, value in {**os.environ, **mark}.items() if value is not None}
    words = [sys.executable, "-c", INTERRUPTED]
    ended = subprocess.run(words, env=environment, start_new_session=True, stderr=subprocess.DEVNULL, timeout=60)
    assert (ended.returncode == 0) == run


SPAWNED = """
import multiprocessing, os, signal, sys, threading, time

def child(ready):
    signal.signal(signal.SIGINT, lambda *_: os._exit(9))  # like vLLM's core, which replaces an ignored signal
    ready.set()
    time.sleep(1)

if __name__ == "__main__":
    from openrlhf_ktae.processes.setup import leave_interrupts_to_the_driver
    leave_interrupts_to_the_driver()
    codes = []
    def spawn():
        leave_interrupts_to_the_driver()
        context = multiprocessing.get_context("spawn")
        ready = context.Event()
        process = context.Process(target=child, args=(ready,))
        process.start()
        ready.wait()
        os.killpg(0, signal.SIGINT)
        process.join()
        codes.append(process.exitcode)
    spawning = threading.Thread(target=spawn)
    spawning.start()
    spawning.join()
    blocked = signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    sys.exit(0 if codes == [0] and blocked else 1)
"""


def test_a_process_spawned_by_multiprocessing_does_not_get_the_interrupt(tmp_path):
    """The first spawn starts Python's resource tracker, which unblocks SIGINT in the spawning thread."""
    script = tmp_path / "spawned.py"
    script.write_text(SPAWNED)
    environment = {**os.environ, processes.VARIABLE: f"spawned-{tmp_path.name}"}
    ended = subprocess.run([sys.executable, script], env=environment, start_new_session=True, timeout=60)
    assert ended.returncode == 0


SUPERVISOR = """
import signal, sys
from openrlhf_ktae.processes import supervisor
supervisor.PAUSE_SECONDS = float(sys.argv[1])
sys.exit(supervisor.supervise([], lambda: (), 3, print, (sys.executable, "-c", *sys.argv[2:])))
"""
CHILD_OF_SIGNALS = """
import os, pathlib, signal, sys, time
log = pathlib.Path(sys.argv[1])
def note(text):
    with log.open("a") as file:
        file.write(text + "\\n")
if sys.argv[2] == "waits":
    signal.signal(signal.SIGINT, lambda number, frame: (note("signal"), time.sleep(0.5), sys.exit(4)))
note(f"start {os.getsid(0)}")
if sys.argv[2] == "fails":
    sys.exit(4)
time.sleep(60)
"""


@pytest.mark.parametrize(
    ("child", "number", "seconds"),
    [
        ("sleeps", signal.SIGTERM, 0),  # like a run in its first second, it has no handler, so the signal kills it
        ("waits", signal.SIGINT, 0),  # a terminal's Ctrl-C reaches the whole group; the child must get it once
        ("fails", signal.SIGTERM, 5),  # between two attempts
    ],
)
def test_a_run_ordered_to_end_is_not_restarted(child, number, seconds, tmp_path):
    log = tmp_path / "log"
    words = [sys.executable, "-c", SUPERVISOR, str(seconds), CHILD_OF_SIGNALS, str(log), child]
    environment = {**os.environ, processes.VARIABLE: f"supervised-{tmp_path.name}"}
    run = subprocess.Popen(words, env=environment, start_new_session=True, stdout=subprocess.PIPE)
    end = time.monotonic() + 30
    while not log.exists() and time.monotonic() < end:
        time.sleep(0.05)
    time.sleep(1.0 if child == "fails" else 0.3)
    os.killpg(run.pid, number)
    assert run.wait(30) == 130
    lines = log.read_text().splitlines()
    assert len([line for line in lines if line.startswith("start")]) == 1
    assert lines.count("signal") == (child == "waits")


def test_the_child_of_a_killed_supervisor_gets_sigterm(tmp_path):
    words = [sys.executable, "-c", SUPERVISOR, "0", CHILD_OF_SIGNALS, str(tmp_path / "log"), "sleeps"]
    run = subprocess.Popen(words, env={**os.environ, processes.VARIABLE: f"supervised-{tmp_path.name}"})
    end = time.monotonic() + 30
    while not (tmp_path / "log").exists() and time.monotonic() < end:
        time.sleep(0.05)
    (child,) = psutil.Process(run.pid).children()
    run.kill()
    run.wait()
    assert psutil.wait_procs([child], timeout=10)[0] == [child]


def ended_by(tmp_path, grace, answer_after=None, training=True, number=signal.SIGTERM, again_after=None):
    """Send a signal to this process; return the seconds until KeyboardInterrupt, the outcome and the order."""
    order = EndOrder(tmp_path)
    end = CleanEnd(order, grace, lambda text: None)
    end.install()
    if training:
        order.training()

    def trainer():
        while not order.asked:
            time.sleep(0.01)
        if answer_after is not None:
            time.sleep(answer_after)
            order.answer("checkpoint of step 3")
        if again_after is not None:
            time.sleep(again_after)
            os.kill(os.getpid(), number)

    threading.Thread(target=trainer, daemon=True).start()
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), number)
        time.sleep(20)
    return time.monotonic() - started, end.outcome("the newest checkpoint is older"), order


def test_a_signal_waits_for_the_checkpoint(tmp_path):
    seconds, outcome, order = ended_by(tmp_path, 10, answer_after=0.5)
    assert 0.5 <= seconds < 5
    assert outcome == "checkpoint of step 3"
    order.clear()
    assert not (tmp_path / ".end").exists()


def test_the_wait_for_the_checkpoint_is_limited(tmp_path):
    seconds, outcome, _ = ended_by(tmp_path, 0.5)
    assert 0.5 <= seconds < 5
    assert outcome == "no checkpoint was written during shutdown; the newest checkpoint is older"


def test_a_lost_answer_on_a_full_disk_names_the_newest_checkpoint(files_up_to, tmp_path):
    """The driver then waits until its limit, and the newest checkpoint shows what was saved."""
    order = EndOrder(tmp_path)
    with files_up_to(0):
        order.ask()
        order.answer("checkpoint of step 3")
    assert order.asked
    assert order.answered == ""
    end = CleanEnd(order, 1.0, lambda text: None)
    assert end.outcome("the newest checkpoint is global_step3") == "the newest checkpoint is global_step3"


def test_an_order_that_cannot_be_written_ends_the_run_at_once(monkeypatch, tmp_path):
    order = EndOrder(tmp_path)
    end = CleanEnd(order, 15.0, lambda text: None)
    end.install()
    order.training()
    monkeypatch.setattr(Path, "touch", no_room)
    order.answer("nobody hears of it")
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    assert not order.asked
    assert end.outcome("the newest is x") == "no checkpoint was written during shutdown; the newest is x"


def no_room(*_, **__):
    raise OSError(28, "No space left on device")


def test_a_run_that_ends_by_itself_is_not_interrupted(tmp_path):
    """The signal arrives while the model is saved, after the last step."""
    order, said = EndOrder(tmp_path), []
    end = CleanEnd(order, 1.0, said.append)
    end.install()
    order.training()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.2)
    assert len(said) == 1
    order.clear()
    time.sleep(1.3)  # must not raise KeyboardInterrupt


def test_a_signal_delivered_twice_at_once_is_one_order(tmp_path):
    """With `ray job stop` and a supervisor the child gets it twice: directly, and forwarded."""
    seconds, outcome, _ = ended_by(tmp_path, 3, again_after=0.1)
    assert seconds > 2.5, outcome


def test_a_second_signal_ends_at_once(tmp_path):
    seconds, _, _ = ended_by(tmp_path, 15, number=signal.SIGINT, again_after=0.3)
    assert seconds < 5


def test_before_the_first_step_it_ends_at_once(tmp_path):
    seconds, outcome, _ = ended_by(tmp_path, 15, training=False)
    assert seconds < 2
    assert outcome == "nothing was trained yet"


def test_the_folder_of_stacks_is_deleted_when_the_process_exits():
    code = "from openrlhf_ktae.processes import stacks; print(stacks.folder(), stacks.folder())"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert shown[0] == shown[1]
    assert not Path(shown[0]).exists()
