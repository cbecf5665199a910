"""What every process of a run does first: the driver, Ray's workers, vLLM's processes.

Ray takes one hook and vLLM one plugin, so all that must reach every process is called here. What a run wants is in the
environment, which its processes inherit.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import threading
from multiprocessing import resource_tracker

from openrlhf_ktae.processes import marks as processes
from openrlhf_ktae.processes.remote_code import close_if_refused
from openrlhf_ktae.processes.stacks import register

WORKER_HOOK = "openrlhf_ktae.processes.setup.in_worker"
BACKEND_VARIABLE = "OPENRLHF_KTAE_BACKEND_HOOK"


def in_every_process() -> None:
    """Do what no process may miss."""
    close_if_refused()
    register()


def below_the_driver() -> None:
    """Set up a process that is not the driver: a terminal's Ctrl-C reaches it too, and only the driver decides."""
    in_every_process()
    leave_interrupts_to_the_driver()


def leave_interrupts_to_the_driver() -> None:
    """Block SIGINT in this thread, and in the threads and processes that it starts from now on; ignore it elsewhere.

    vLLM's core puts its own handler in the place of an ignored signal, and shuts down; a blocked one never arrives.
    Python's resource tracker starts with the first process that multiprocessing spawns, and unblocks SIGINT in the
    thread that spawns, so it is started before.
    """
    if processes.VARIABLE not in os.environ:
        return
    resource_tracker.ensure_running()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def end_with_the_parent() -> None:
    """Die when the process dies that started this one by multiprocessing; elsewhere do nothing.

    vLLM's core outlives an actor that is killed, and holds its memory (on a GPU, what the next engine needs).
    """
    parent = multiprocessing.parent_process()
    if parent is None or processes.VARIABLE not in os.environ:
        return

    def wait() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=wait, name="end with the parent", daemon=True).start()


def in_worker() -> None:
    """Set up a worker of Ray: the above, and what the backend wants (`Backend.worker_setup_hook`)."""
    below_the_driver()
    hook = os.environ.get(BACKEND_VARIABLE)
    if hook:
        module, function = hook.rsplit(".", 1)
        getattr(importlib.import_module(module), function)()
