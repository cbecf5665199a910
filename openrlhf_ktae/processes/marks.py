"""Find the processes of one run on this machine by a mark in their environment, whatever their parents.

Ray ends its own workers, but not their children (an engine's core), and none after a crash of Ray itself.
"""

import os
import re
import signal
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from openrlhf_ktae.base.parent_death import signal_on_parent_death

VARIABLE = "OPENRLHF_KTAE_RUN"
SHARED_MEMORY = "/dev/shm/"
PATIENCE_SECONDS = 10.0  # for processes that are already exiting


def mark() -> str:
    """Return the mark of this run: inherited from a supervisor, or created on first use."""
    return os.environ.setdefault(VARIABLE, uuid.uuid4().hex)


def marked(value: str, variable: str = VARIABLE) -> list[psutil.Process]:
    """Return the running processes with the mark, except this one and its ancestors."""
    own = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    found = []
    for process in psutil.process_iter():
        try:
            ours = process.pid not in own and process.environ().get(variable) == value
            if ours and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def shared_memory(process: psutil.Process) -> set[str]:
    """Return the shared-memory files that the process has mapped or open."""
    folder, maps, links = Path(f"/proc/{process.pid}"), "", []
    with suppress(OSError):  # it is gone or belongs to another user
        maps = (folder / "maps").read_text(errors="replace")
    with suppress(OSError):
        for link in list((folder / "fd").iterdir()):
            with suppress(OSError):  # closed in the meantime
                links.append(os.readlink(link))
    return {path for path in (*re.findall(r"/dev/shm/\S+", maps), *links) if path.startswith(SHARED_MEMORY)}


def dead_semaphores(since: float, used: set[str]) -> set[str]:
    """Return multiprocessing semaphores created after `since` (time.time) and not in `used`, which are open.

    A process leaves them behind if it or its resource tracker is killed.
    """
    found = set()
    for path in Path(SHARED_MEMORY).glob("sem.mp-*"):
        try:
            state = path.stat()
        except OSError:
            continue
        if state.st_uid == os.getuid() and since <= state.st_mtime < time.time() - 1 and str(path) not in used:
            found.add(str(path))
    return found


@contextmanager
def swept(value: str) -> Iterator[None]:
    """On exit, wait for all marked processes, kill those that remain, and delete their unused shared memory."""
    processes = marked(value)
    files = set().union(*map(shared_memory, processes), shared_memory(psutil.Process()))
    try:
        yield
    finally:
        end_all(value)
        used = set().union(*(shared_memory(process) for process in psutil.process_iter()))
        for path in (files - used) | dead_semaphores(psutil.Process().create_time(), used):
            Path(path).unlink(missing_ok=True)


def end_with_parent() -> None:
    """Make the kernel send SIGTERM to this process when its parent dies; for `preexec_fn`."""
    signal_on_parent_death(signal.SIGTERM)


def end_all(value: str, patience: float = PATIENCE_SECONDS) -> int:
    """Wait for the marked processes, then kill the remaining ones; return how many were killed."""
    psutil.wait_procs(marked(value), timeout=patience)
    stubborn = marked(value)
    for process in stubborn:
        try:
            process.send_signal(signal.SIGKILL)
        except psutil.Error:
            continue
    psutil.wait_procs(stubborn, timeout=5)
    return len(stubborn)
