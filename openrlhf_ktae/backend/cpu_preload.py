"""The first import of the fork server (`processes/forks.py`): applies the patches and sets up the server.

Anywhere else, importing it does nothing.
"""

import gc
import os
import signal
import sys

from wrapt import register_post_import_hook

from openrlhf_ktae.backend import cpu_patches
from openrlhf_ktae.processes.remote_code import close_if_refused

SERVER = os.getpid()


def _before_fork() -> None:
    if os.getpid() == SERVER:
        gc.freeze()  # a collection in a fork would write to the shared memory


def _in_fork() -> None:
    if os.getppid() != SERVER:
        return  # a fork has forked
    import numpy

    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    gc.enable()
    numpy.random.seed()  # from the system: otherwise all forks would draw the same numbers


def _begin() -> None:
    gc.disable()  # imports make no garbage, and collections would take a quarter of the time
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it goes to the whole process group; the server ends with the driver
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # in forks too: the driver handles a terminal's Ctrl-C
    os.register_at_fork(before=_before_fork, after_in_child=_in_fork)
    for number in (1, 2):  # if an error ends the server, workers start as usual and report it
        os.dup2(os.open(os.devnull, os.O_WRONLY), number)
    close_if_refused()
    cpu_patches.activate()
    cpu_patches.register_for_engines()
    register_post_import_hook(cpu_patches.fork_cores, "vllm.utils.system_utils")


if any("multiprocessing.forkserver" in word for word in sys.orig_argv):
    _begin()
