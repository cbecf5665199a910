"""Setup that every process of a run does first: the driver, Ray's workers, vLLM's processes.

Ray calls one hook and vLLM one plugin, so this module does all setup of processes. It reads the run's settings from the
environment, which processes inherit.
"""

import multiprocessing
import os
import pkgutil
import signal
import threading
from multiprocessing import resource_tracker

from openrlhf_ktae.processes import marks
from openrlhf_ktae.processes.remote_code import close_if_refused
from openrlhf_ktae.processes.stacks import register

WORKER_HOOK = "openrlhf_ktae.processes.setup.in_worker"
BACKEND_VARIABLE = "OPENRLHF_KTAE_BACKEND_HOOK"


def in_every_process() -> None:
    """Do the setup that all processes need."""
    close_if_refused()
    register()


def below_the_driver() -> None:
    """Set up a process other than the driver; it ignores a terminal's Ctrl-C, which the driver handles."""
    in_every_process()
    leave_interrupts_to_the_driver()


def leave_interrupts_to_the_driver() -> None:
    """Block SIGINT in this thread and the threads and processes it starts from now on; ignore it elsewhere.

    vLLM's core would handle an ignored signal by shutting down; a blocked signal never arrives. Python's resource
    tracker starts with the first multiprocessing spawn and unblocks SIGINT in the spawning thread, so it is started
    before blocking.
    """
    if marks.VARIABLE not in os.environ:
        return
    resource_tracker.ensure_running()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def end_with_the_parent() -> None:
    """Exit when the multiprocessing parent of this process dies; without a parent, do nothing.

    vLLM's core would outlive a killed actor and keep its memory (on a GPU, memory that the next engine needs).
    """
    parent = multiprocessing.parent_process()
    if parent is None or marks.VARIABLE not in os.environ:
        return

    def wait() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=wait, name="end with the parent", daemon=True).start()


def in_worker() -> None:
    """Set up a Ray worker; also call the backend's hook (`Backend.worker_setup_hook`)."""
    below_the_driver()
    if hook := os.environ.get(BACKEND_VARIABLE):
        pkgutil.resolve_name(hook)()
