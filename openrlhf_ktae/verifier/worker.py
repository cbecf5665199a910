"""A worker process that runs symbolic checks under limits. It can be killed at any time and dies with its parent.

Run as `python -m openrlhf_ktae.verifier.worker PARENT_PID MEMORY_MB GRADER`. Requests come on stdin, answers go to the
original stdout, each a line of JSON. The libraries' output goes to /dev/null.
"""

import json
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

from openrlhf_ktae.base.parent_death import signal_on_parent_death

from .graders import GoldReader, Grader
from .verdict import FAILURES, UNKNOWN, WRONG, Reason, Status, Verdict

MAX_RECURSION = 3000  # Python frames; deeper parses end in RecursionError instead of a broken stack
HARD_CPU_MARGIN_S = 0.3  # the kernel kills a process that ignores the soft limit for this long


class CpuLimitError(BaseException):
    """Raised in a check by the CPU timer. A BaseException, so that no `except Exception` catches it."""


def limit_process(memory_mb: int) -> None:
    """Cap the address space, forbid core dumps, and let the CPU timer raise."""
    size = memory_mb << 20
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.setrecursionlimit(MAX_RECURSION)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C belongs to the parent, which then closes the pipe
    signal.signal(signal.SIGVTALRM, _raise_cpu_limit)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)


def _raise_cpu_limit(signum: int, frame: Any) -> None:
    raise CpuLimitError


def set_cpu_timers(seconds: float) -> float:
    """Start the CPU timers of one check: the soft one raises in Python, the hard one kills. 0 stops both.

    Returns the seconds that were left on the soft timer; 0 once it has gone off.
    """
    signal.setitimer(signal.ITIMER_PROF, seconds + HARD_CPU_MARGIN_S if seconds else 0)
    return signal.setitimer(signal.ITIMER_VIRTUAL, seconds)[0]


def limited(cpu_s: float, function: Callable[..., Verdict], *arguments: Any, otherwise: Status) -> Verdict:
    """Call a function under a CPU limit. If a limit or an error ends it, return a verdict with status `otherwise`."""
    try:
        try:
            set_cpu_timers(cpu_s)
            verdict = function(*arguments)
        finally:
            left = set_cpu_timers(0)
        if not left:  # the check swallowed CpuLimitError: Python drops errors raised in a destructor or a callback
            raise CpuLimitError
        return verdict
    except CpuLimitError:
        return Verdict(otherwise, Reason.CPU_LIMIT)
    except MemoryError:
        return Verdict(otherwise, Reason.MEMORY_LIMIT)
    except RecursionError:
        return Verdict(otherwise, Reason.DEPTH_LIMIT)
    except Exception:
        return Verdict(otherwise, Reason.INTERNAL_ERROR, detail=traceback.format_exc(limit=8))


def serve(
    grader: Grader, read_golds: GoldReader | None, request: dict[str, Any], send: Callable[[dict], object]
) -> None:
    """Read the golds, report whether they can be read, then grade. If they can, no answer makes the verdict unknown."""
    gold, cpu_s = request["gold"], request["cpu_s"]
    unread = limited(cpu_s, read_golds, gold, otherwise=UNKNOWN) if read_golds is not None else None
    otherwise = UNKNOWN if unread is None or unread.status == UNKNOWN else WRONG
    send({"began": request["id"], "otherwise": otherwise, "cpu_s": time.process_time()})
    if unread is not None and unread.reason in FAILURES:
        verdict = unread
    else:
        verdict = limited(cpu_s, grader, gold, request["answer"], otherwise=otherwise)
    send({"id": request["id"], "status": verdict.status, "reason": verdict.reason, "detail": verdict.detail})


def main() -> None:
    """Serve checks until the parent closes the pipe."""
    signal_on_parent_death(signal.SIGKILL)
    if os.getppid() != int(sys.argv[1]):  # the parent has died already
        os._exit(0)
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb", buffering=0)

    def send(message: dict[str, Any]) -> None:
        answers.write(json.dumps(message).encode() + b"\n")

    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        from .graders import load_grader

        grader, read_golds = load_grader(sys.argv[3])
        limit_process(int(sys.argv[2]))
    except Exception:
        send({"ready": False, "detail": traceback.format_exc(limit=8)})
        return
    send({"ready": True})
    for line in requests:
        serve(grader, read_golds, json.loads(line), send)


if __name__ == "__main__":
    main()
