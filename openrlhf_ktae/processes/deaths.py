"""Processes that are gone: the errors that mean it, rather than that code raised, and waiting for the next one."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Container, Iterator
from typing import Any

START_MINUTES = 20  # for a process to come back, where its node may have gone
POLL_SECONDS = 1.0
DEAD_FOR_GOOD = 3  # answers in a row; a call that was under way as the actor died fails in the same way, once

# By the names of their classes: vLLM's, of a core that died, and this package's, some of which are defined above this
# module. The text of an error proves nothing: an agent's may quote anything.
ENGINE_GONE = ("EngineDeadError", "OutdatedEngine")
GONE = (*ENGINE_GONE, "EnginesLost", "ModelLost")
CREATION = "because of an error raised in its creation task"
ERROR_LINE = re.compile(
    r"^(?:[a-z_]\w*\.)*(?P<name>[A-Z]\w*(?:Error|Exception|Exit|Interrupt|Invalid|Stopped)\b)", re.M
)
PROCESS_ENDED = re.compile(r"worker process has died\. Worker exit type: (?P<how>\w+ Worker exit detail: .*)", re.S)
ACTOR_CLASS = re.compile(r"class_name: (?:.*\.)?(?P<name>\w+)$", re.M)
# By the types of torch: a GPU that no process can use any more, and a store or a peer that does not answer.
GPU_ERROR = "AcceleratorError"
NETWORK_ERRORS = ("DistNetworkError", "DistStoreError")
# Lost peers and broken GPUs that have a general type of torch's, and only a text: gloo's, NCCL's and CUDA's own.
# ProcessGroupNCCL.cpp and NCCLUtils.cpp of torch 2.13, `ncclGetErrorString`, `cudaGetErrorString` of CUDA 13.
SIGNED_ERRORS = ("RuntimeError", "DistBackendError")
SIGNS = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Application timeout caused pair closure",
    "Watchdog caught collective operation timeout",
    "NCCL communicator was aborted",
    "NCCL timeout in communicator initialization",
    "ncclRemoteError",
    "ncclSystemError",
    "ncclUnhandledCudaError",
    "ncclInternalError",
    "NCCL error: remote process exited",
    "NCCL error: unhandled system error",
    "NCCL error: unhandled cuda error",
    "NCCL error: internal error",
    "an illegal memory access was encountered",
    "an illegal instruction was encountered",
    "unspecified launch failure",
    "device-side assert triggered",
    "uncorrectable ECC error encountered",
    "uncorrectable NVLink error",
    "peer GPU memory over nvlink or a hardware error",
    "the launch timed out and was terminated",
    "hardware stack error",
    "misaligned address",
    "invalid program counter",
    "operation not supported on global/shared address space",
    "busy or unavailable",
    "CUDA error: unknown error",
    "CUBLAS_STATUS_EXECUTION_FAILED",
    "CUDNN_STATUS_EXECUTION_FAILED",
)
# A new process would meet the same: a lack of memory, a wrong call, a build for other GPUs.
DEFECTS = (
    "out of memory",
    "invalid argument",
    "invalid device function",
    "no kernel image is available",
    "driver version is insufficient",
)


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and what it comes from: what Ray wraps, whose own type is another one, and `raise ... from`.

    Of several errors of tasks that ran at the same time, it is the first.
    """
    while error is not None:
        yield error
        if isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        else:
            error = getattr(error, "cause", None) if _is_task_error(error) else error.__cause__


def of_type(error: BaseException, names: Container[str]) -> bool:
    """Whether an error, or what it comes from, is of a class with one of the names."""
    return any(kind.__name__ in names for one in causes(error) for kind in type(one).__mro__)


def in_one_line(error: BaseException) -> str:
    """Return what an error says, without the stacks that Ray puts before it on its way through processes."""
    return " ".join(str(next((one for one in causes(error) if not _is_task_error(one)), error)).split())


def innermost(error: BaseException) -> str:
    """Return what began it, on one line: the type and text of the innermost error, or how a process of an actor ended.

    Ray keeps no more than the text of an error in the making of an actor, at the end of a traceback.
    """
    last = list(causes(error))[-1]
    text, kind = str(last), type(last).__name__
    ended = PROCESS_ENDED.search(text)
    if ended:
        who = ACTOR_CLASS.search(text)
        return f"the process of {who['name'] if who else 'an actor'} ended ({' '.join(ended['how'].split())})"
    if _is_task_error(last) or CREATION in text:
        found = list(ERROR_LINE.finditer(text))
        if found:
            return " ".join(text[found[-1].start("name") :].split())
    return " ".join(f"{kind}: {text}".split())


def failed_to_start(error: BaseException) -> bool:
    """Whether an actor raised an error of Python while it was made, which nothing that died has caused."""
    text = str(list(causes(error))[-1])
    return CREATION in text and not PROCESS_ENDED.search(text) and not any(name in text for name in GONE)


def died(error: BaseException) -> bool:
    """Whether an error, of Ray or of a process of the run, comes from a process that is gone."""
    from ray import exceptions

    gone = (
        exceptions.RayActorError,
        exceptions.WorkerCrashedError,
        exceptions.ObjectLostError,
        exceptions.NodeDiedError,
        exceptions.OutOfMemoryError,  # Ray ended a process; the call that failed may be another one's
    )
    return of_type(error, GONE) or any(isinstance(one, gone) or _lost_peer_or_gpu(one) for one in causes(error))


def _lost_peer_or_gpu(error: BaseException) -> bool:
    name, text = type(error).__name__, str(error)
    if name == GPU_ERROR or name in SIGNED_ERRORS:
        lost = name == GPU_ERROR or any(sign in text for sign in SIGNS)
        return lost and not any(defect in text for defect in DEFECTS)
    return name in NETWORK_ERRORS


def _is_task_error(error: BaseException) -> bool:
    return any(kind.__name__ == "RayTaskError" for kind in type(error).__mro__)


def answered(call: Callable[[], Any], minutes: float = START_MINUTES) -> Any:
    """Return what a remote method of an actor returns; where Ray is starting the actor again, once it is there.

    Raises:
        RayActorError: the actor is gone for good, or that takes longer than `minutes`.
        GetTimeoutError: it does not answer in that time.
    """
    import ray
    from ray.exceptions import ActorDiedError, RayActorError

    end, dead = time.monotonic() + 60 * minutes, 0
    while True:
        try:
            return ray.get(call(), timeout=max(end - time.monotonic(), POLL_SECONDS))
        except RayActorError as error:
            dead = dead + 1 if isinstance(error, ActorDiedError) else 0
            if dead >= DEAD_FOR_GOOD or time.monotonic() > end:
                raise
            time.sleep(POLL_SECONDS)
