"""Dead processes: distinguish their errors from exceptions raised by code, and wait for a replacement."""

import re
import time
from collections.abc import Callable, Container, Iterator
from typing import Any

START_MINUTES = 20  # for a process to come back, perhaps on another node
POLL_SECONDS = 1.0
DEAD_FOR_GOOD = 3  # consecutive errors; a call in flight when the actor dies fails the same way once

# Class names, because higher layers of this package define some of the classes. The first is vLLM's error for a dead
# core. The text of an error proves nothing: an agent's error may quote anything.
ENGINE_GONE = ("EngineDeadError", "OutdatedEngine")
GONE = (*ENGINE_GONE, "EnginesLost", "ModelLost")
CREATION = "because of an error raised in its creation task"
ERROR_LINE = re.compile(
    r"^(?:[a-z_]\w*\.)*(?P<name>[A-Z]\w*(?:Error|Exception|Exit|Interrupt|Invalid|Stopped)\b)", re.M
)
PROCESS_ENDED = re.compile(r"worker process has died\. Worker exit type: (?P<how>\w+ Worker exit detail: .*)", re.S)
ACTOR_CLASS = re.compile(r"class_name: (?:.*\.)?(?P<name>\w+)$", re.M)
# Error types of torch: a GPU in an unusable state, and a store or peer that does not answer.
GPU_ERROR = "AcceleratorError"
NETWORK_ERRORS = ("DistNetworkError", "DistStoreError")
# Lost peers and broken GPUs raise general types, so only the text tells. The texts are from gloo's transport/tcp,
# ProcessGroupNCCL.cpp and NCCLUtils.cpp of torch 2.13, `ncclGetErrorString`, `cudaGetErrorString` of CUDA 13, and the
# status codes of CUDA's libraries. The last three types are from torch.cuda and cupy.
SIGNED_ERRORS = ("RuntimeError", "DistBackendError", "CudaError", "NcclError", "CUDARuntimeError")
SIGNS = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Application timeout caused pair closure",
    "ms for recv operation to complete",
    "ms for send operation to complete",
    "Read error [",
    "writev [",
    "Connect timeout [",
    "connectFullMesh failed",
    "failed to pass monitoredBarrier",
    "Watchdog caught collective operation timeout",
    "NCCL communicator was aborted",
    "NCCL timeout",
    "retrieving ncclUniqueId from",
    "ncclRemoteError",
    "ncclSystemError",
    "ncclUnhandledCudaError",
    "ncclInternalError",
    "remote process exited or there was a network error",
    "unhandled system error",
    "unhandled cuda error",
    "internal error - please report this issue to the NCCL developers",
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
    "CUDA driver error: unknown error",
    "_STATUS_EXECUTION_FAILED",
    "_STATUS_INTERNAL_ERROR",
    "_STATUS_MAPPING_ERROR",
    "CUFFT_EXEC_FAILED",
    "CUFFT_INTERNAL_ERROR",
)
# Errors that a new process would repeat: no memory (NCCL reports which allocation failed, not why), a wrong call, a
# build for other GPUs.
DEFECTS = (
    "out of memory",
    "Failed to CUDA ",
    "Failed to malloc",
    "Cannot allocate memory",
    "No space left on device",
    "_ALLOCATION_FAILED",
    "invalid argument",
    "invalid configuration argument",
    "invalid device ordinal",
    "invalid resource handle",
    "too many resources requested",
    "when stream is capturing",
    "invalid device function",
    "device kernel image is invalid",
    "no kernel image is available",
    "unsupported toolchain",
    "driver version is insufficient",
    "CUDA driver is a stub library",
)


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and its causes: errors that Ray wrapped in another type, and causes given by `raise ... from`.

    Of the errors of concurrent tasks, only the first is followed.
    """
    while error is not None:
        yield error
        if isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        else:
            error = getattr(error, "cause", None) if _is_task_error(error) else error.__cause__


def of_type(error: BaseException, names: Container[str]) -> bool:
    """Return whether an error or one of its causes is of a class with one of the names."""
    return any(kind.__name__ in names for one in causes(error) for kind in type(one).__mro__)


def in_one_line(error: BaseException) -> str:
    """Return the message of an error, without the tracebacks that Ray prepends."""
    return " ".join(str(next((one for one in causes(error) if not _is_task_error(one)), error)).split())


def innermost(error: BaseException) -> str:
    """Return the root cause on one line: type and text of the innermost error, or how an actor's process ended.

    For an error in an actor's constructor, Ray keeps only the text, at the end of a traceback.
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
    """Return whether an actor's constructor raised a Python error that was not caused by a death."""
    text = str(list(causes(error))[-1])
    return CREATION in text and not PROCESS_ENDED.search(text) and not any(name in text for name in GONE)


def died(error: BaseException) -> bool:
    """Return whether an error, from Ray or from a process of the run, was caused by a dead process."""
    from ray import exceptions

    gone = (
        exceptions.RayActorError,
        exceptions.WorkerCrashedError,
        exceptions.ObjectLostError,
        exceptions.NodeDiedError,
        exceptions.LocalRayletDiedError,
        exceptions.OutOfMemoryError,  # Ray killed a process; the failed call may belong to another
    )
    return of_type(error, GONE) or any(
        isinstance(one, gone) or lost_peer_or_gpu(type(one).__name__, str(one)) for one in causes(error)
    )


def lost_peer_or_gpu(name: str, text: str) -> bool:
    """Return whether an error, given by the name of its type and its text, means a lost peer or a broken GPU."""
    if name == GPU_ERROR or name in SIGNED_ERRORS:
        lost = name == GPU_ERROR or any(sign in text for sign in SIGNS)
        return lost and not any(defect in text for defect in DEFECTS)
    return name in NETWORK_ERRORS


def _is_task_error(error: BaseException) -> bool:
    return any(kind.__name__ == "RayTaskError" for kind in type(error).__mro__)


def answered(call: Callable[[], Any]) -> Any:
    """Return the result of a remote method; if Ray is restarting the actor, wait and call it again.

    Raises:
        RayActorError: the actor is dead and not restarted, or its restart takes longer than `START_MINUTES`.
        GetTimeoutError: it does not answer within `START_MINUTES`.
    """
    import ray
    from ray.exceptions import ActorDiedError, RayActorError

    end, dead = time.monotonic() + 60 * START_MINUTES, 0
    while True:
        try:
            return ray.get(call(), timeout=max(end - time.monotonic(), POLL_SECONDS))
        except RayActorError as error:
            dead = dead + 1 if isinstance(error, ActorDiedError) else 0
            if dead >= DEAD_FOR_GOOD or time.monotonic() > end:
                raise
            time.sleep(POLL_SECONDS)
