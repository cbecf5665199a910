"""Processes that start with the libraries already imported: forks of a server (`multiprocessing.forkserver`).

Importing torch, DeepSpeed, transformers and vLLM costs each process six to eight seconds of processor time and 600 MB.
The server imports them once, and its forks share the memory. The driver starts the server, and it ends with the driver.
Ray's workers are forked through `ray_worker.py`, vLLM's cores through `ForkedContext`. Without the server both start
as usual.

Only the standard library is imported here: the script that Ray runs for each worker imports this.
"""

import atexit
import os
import runpy
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing import context, forkserver, process, resource_tracker
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import Any, cast

VARIABLE = "OPENRLHF_KTAE_FORK_SERVER"  # address of the server's socket, which only this user can open
JOB_VARIABLE, FIRST_JOB = "RAY_JOB_ID", "01000000"
RAYLET_VARIABLE = "RAY_RAYLET_PID"
OOM_SCORE = Path("/proc/self/oom_score_adj")  # Ray raises its workers' scores, so that the kernel kills them first
_server: Any = forkserver._forkserver


def start(modules: Sequence[str], variables: Mapping[str, str]) -> None:
    """Start the server with `variables` on top of this process's; it imports `modules` in the background."""
    stop()
    vars(_server).pop("ensure_running", None)
    _server.set_forkserver_preload([*modules])
    usual, tracker = dict(os.environ), cast("Any", resource_tracker._resource_tracker)
    tracked = tracker._fd is not None
    # Ray reads both when imported. A worker ends when the process in `RAYLET_VARIABLE`, here the driver, is gone.
    os.environ |= {**variables, JOB_VARIABLE: FIRST_JOB, RAYLET_VARIABLE: str(os.getpid())}
    with suppress(OSError):  # for example, the temporary folder's name is too long; the run works without the server
        _server.ensure_running()
        usual[VARIABLE] = _server._forkserver_address
    replace_environment(usual)
    if not tracked:
        tracker._stop()  # started with the server


def stop() -> None:
    """End the server, if this process started it. Its forks keep running, but look dead to their starters."""
    if os.environ.pop(VARIABLE, None) and _server._forkserver_pid:
        os.kill(_server._forkserver_pid, signal.SIGKILL)  # a server that is importing would notice other ways too late
        with suppress(OSError):
            _server._stop()


class ForkedProcess(context.ForkServerProcess):
    """A fork of the server, with the environment, output and OOM score of the process that starts it."""

    @staticmethod
    def _Popen(started: Any) -> Any:
        resource_tracker.ensure_running()
        _server._forkserver_address = os.environ[VARIABLE]
        _server._forkserver_alive_fd = _server._forkserver_alive_fd or os.open(os.devnull, os.O_RDONLY)
        _server.ensure_running = lambda: None  # it would start another server: this one is not our child
        try:
            return context.ForkServerProcess._Popen(started)
        except (OSError, EOFError):  # the server has died
            return context.SpawnProcess._Popen(started)

    def __reduce__(self) -> Any:
        """Pickle for the fork, environment first: the classes of the arguments may read it."""
        score = OOM_SCORE.read_text(encoding="utf-8")
        return _fork, (dict(os.environ), score, DupFd(1), DupFd(2)), self.__dict__

    def run(self) -> None:
        """Run the target, then the exit functions, which a fork of the server would skip."""
        try:
            super().run()
        finally:
            atexit._run_exitfuncs()


class ForkedContext(context.ForkServerContext):
    """A `multiprocessing` context whose processes are forks of the server."""

    Process = ForkedProcess


def _fork(environment: Mapping[str, str], score: str, *outputs: Any) -> ForkedProcess:
    with suppress(OSError):  # the score may be lower than this process may set
        OOM_SCORE.write_text(score, encoding="utf-8")
    for number, output in enumerate(outputs, start=1):
        descriptor = output.detach()
        if descriptor != number:  # a spawned process already has it
            os.dup2(descriptor, number)
            os.close(descriptor)
    replace_environment(environment)
    return ForkedProcess.__new__(ForkedProcess)


def replace_environment(environment: Mapping[str, str]) -> None:
    """Replace this process's environment; equal variables keep their place.

    Setting a process title locates and overwrites the first variables in memory, of a fork or of a server started here.
    """
    for name in set(os.environ) - set(environment):
        del os.environ[name]
    os.environ.update({name: value for name, value in environment.items() if os.environ.get(name) != value})


def run_script(words: Sequence[str]) -> None:
    """In a fork, run one of Ray's scripts with its arguments, as the interpreter would."""
    process._parent_process = None  # type: ignore[attr-defined]  # it requested the fork and has ended
    sys.argv[:] = words
    sys.path.insert(0, os.path.dirname(words[0]))
    runpy.run_path(words[0], run_name="__main__")
