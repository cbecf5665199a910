"""Recognising errors that mean that a process of the run died."""

from __future__ import annotations

import pytest


def low_on_memory():
    from ray.exceptions import OutOfMemoryError, RayTaskError

    cause = OutOfMemoryError(
        "1 worker(s) were killed due to the node running low on memory. Memory was 22.40GB / 23.54GB"
    )
    return RayTaskError("init_model", f"a stack\nOutOfMemoryError: {cause}", cause).as_instanceof_cause()


def a_shape():
    from ray.exceptions import RayTaskError

    cause = ValueError("shapes do not match")
    return RayTaskError("fit", f"a stack\nValueError: {cause}", cause).as_instanceof_cause()


def wrapped(cause):
    """Return Ray's error in the caller of a process that raised `cause`."""
    from ray.exceptions import RayTaskError

    return RayTaskError("fit", f"a stack\n{type(cause).__name__}: {cause}", cause).as_instanceof_cause()


def a_quotation():
    return wrapped(ValueError("the engine said EngineDeadError, ActorDiedError and Connection closed by peer"))


def a_dead_core():
    from vllm.v1.engine.exceptions import EngineDeadError

    return wrapped(EngineDeadError())


def a_dead_actor_of_another_process():
    from ray.exceptions import ActorDiedError

    return wrapped(ActorDiedError())


def a_dead_raylet():
    from ray.exceptions import LocalRayletDiedError

    return wrapped(LocalRayletDiedError())


def gloo():
    return wrapped(RuntimeError("[pair.cc:553] Connection closed by peer [127.0.0.1]:1234"))


def a_store_that_waits():
    from torch.distributed import DistStoreError

    return wrapped(DistStoreError("Timed out after 601 seconds waiting for clients. 1/2 clients joined."))


def a_server_of_rewards():
    return wrapped(ConnectionResetError("Connection reset by peer"))


def lost_engines():
    from openrlhf_ktae.trainer.engines import EnginesLost

    return wrapped(EnginesLost("an engine does not come back"))


def of_a_dead_core():
    try:
        raise ValueError("no output") from a_dead_core()
    except ValueError as error:
        return error


CUDA_ADVICE = (
    "\nSearch for `cuda%s' in https://docs.nvidia.com/cuda/cuda-runtime-api/group__CUDART__TYPES.html for more "
    "information.\nCUDA kernel errors might be asynchronously reported at some other API call, so the stacktrace below "
    "might be incorrect.\nFor debugging consider passing CUDA_LAUNCH_BLOCKING=1\nCompile with `TORCH_USE_CUDA_DSA` to "
    "enable device-side assertions.\n"
)
NCCL = (
    "NCCL error in: /pytorch/torch/csrc/distributed/c10d/ProcessGroupNCCL.cpp:3699, {}, NCCL version 2.29.3\n{}"
    "\nLast error:\n{}"
)
OF_SYSTEM = (
    "unhandled system error (run with NCCL_DEBUG=INFO for details)",
    "ncclSystemError: System call (e.g. socket, malloc) or external library call failed or device error. ",
)
OF_CUDA = (
    "unhandled cuda error (run with NCCL_DEBUG=INFO for details)",
    "ncclUnhandledCudaError: Call to CUDA function failed.",
)
NO_ID = (
    "[2] is setting up NCCL communicator and retrieving ncclUniqueId from [0] via c10d key-value store by key '0', but "
    "store->get('0') got error: {}"
)
TCP = "[/pytorch/third_party/gloo/gloo/transport/tcp/{}"
# Messages of CUDAException.cpp, ProcessGroupNCCL.cpp and NCCLUtils.cpp of torch 2.13, of cudaGetErrorString and
# ncclGetErrorString, and of vLLM's pynccl_wrapper.py.
OF_GPUS = [
    (
        "AcceleratorError",
        "CUDA error: an illegal memory access was encountered" + CUDA_ADVICE % "ErrorIllegalAddress",
        1,
    ),
    ("AcceleratorError", "CUDA error: unspecified launch failure" + CUDA_ADVICE % "ErrorLaunchFailure", 1),
    ("AcceleratorError", "CUDA error: device-side assert triggered" + CUDA_ADVICE % "ErrorAssert", 1),
    ("AcceleratorError", "CUDA error: uncorrectable ECC error encountered" + CUDA_ADVICE % "ErrorECCUncorrectable", 1),
    ("AcceleratorError", "CUDA error: something that a later CUDA says", 1),
    ("AcceleratorError", "CUDA error: out of memory" + CUDA_ADVICE % "ErrorMemoryAllocation", 0),
    ("AcceleratorError", "CUDA error: no kernel image is available for execution on the device", 0),
    ("OutOfMemoryError", "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79.10 GiB", 0),
    ("RuntimeError", "Triton Error [CUDA]: an illegal memory access was encountered", 1),
    ("RuntimeError", "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx( handle, opa, opb)`", 1),
    ("RuntimeError", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", 0),
    ("RuntimeError", "Expected all tensors to be on the same device, but found at least two devices", 0),
    ("DistBackendError", "NCCL communicator was aborted on rank 1.  Original reason for failure was: x", 1),
    (
        "DistBackendError",
        "[Rank 1] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=12, OpType=_ALLGATHER_BASE, NumelIn=1, "
        "NumelOut=2, Timeout(ms)=3600000) ran for 3600027 milliseconds before timing out.",
        1,
    ),
    (
        "DistBackendError",
        NCCL.format(
            "unhandled system error (run with NCCL_DEBUG=INFO for details)",
            "ncclSystemError: System call (e.g. socket, malloc) or external library call failed or device error. ",
            "socketPollConnect: connect returned Connection refused",
        ),
        1,
    ),
    (
        "DistBackendError",
        NCCL.format(
            "unhandled cuda error (run with NCCL_DEBUG=INFO for details)",
            "ncclUnhandledCudaError: Call to CUDA function failed.",
            "Cuda failure 719 'unspecified launch failure'",
        ),
        1,
    ),
    (
        "DistBackendError",
        NCCL.format(
            "unhandled cuda error (run with NCCL_DEBUG=INFO for details)",
            "ncclUnhandledCudaError: Call to CUDA function failed.",
            "Cuda failure 2 'out of memory'",
        ),
        0,
    ),
    (
        "DistBackendError",
        NCCL.format(
            "remote process exited or there was a network error",
            "ncclRemoteError: A call failed possibly due to a network error or a remote process exiting prematurely.",
            "socketProgress: Connection closed by remote peer",
        ),
        1,
    ),
    (
        "DistBackendError",
        NCCL.format(
            "invalid usage (run with NCCL_DEBUG=WARN for details)",
            "ncclInvalidUsage: This usually reflects invalid usage of NCCL library.",
            "Duplicate GPU detected : rank 0 and rank 1 both on CUDA device 1a000",
        ),
        0,
    ),
    ("RuntimeError", "NCCL error: unhandled system error (run with NCCL_DEBUG=INFO for details)", 1),
    ("RuntimeError", "NCCL error: invalid usage (run with NCCL_DEBUG=WARN for details)", 0),
    ("DistNetworkError", "Connection was likely closed. Did the remote server shutdown or crash?", 1),
    ("DistStoreError", "wait timeout after 300000ms, keys: /broadcast_from/0/0", 1),
    ("ValueError", "CUDA error: an illegal memory access was encountered", 0),
    ("KeyError", "NCCL communicator was aborted on rank 1", 0),
    ("OSError", "Connection reset by peer", 0),
    ("DistBackendError", NCCL.format(*OF_CUDA, "Failed to CUDA calloc async 4194304 bytes"), 0),
    ("DistBackendError", NCCL.format(*OF_CUDA, "Failed to CUDA host alloc 10485760 bytes"), 0),
    ("DistBackendError", NCCL.format(*OF_SYSTEM, "Failed to malloc 65536 bytes"), 0),
    ("DistBackendError", NCCL.format(*OF_SYSTEM, "Call to ibv_reg_mr failed with error Cannot allocate memory"), 0),
    (
        "DistBackendError",
        NCCL.format(*OF_SYSTEM, "Error while creating shared memory segment, error: No space left on device (28)"),
        0,
    ),
    ("DistBackendError", NO_ID.format("Socket Timeout"), 1),
    ("DistBackendError", NO_ID.format("wait timeout after 600000ms, keys: /default_pg/0//cuda//0"), 1),
    ("RuntimeError", "NCCL timeout when waiting for nonblocking call to become successful.", 1),
    ("RuntimeError", "NCCL Error 2: unhandled system error (run with NCCL_DEBUG=INFO for details)", 1),
    ("RuntimeError", "NCCL Error 6: remote process exited or there was a network error", 1),
    ("RuntimeError", "NCCL Error 3: internal error - please report this issue to the NCCL developers", 1),
    ("RuntimeError", "NCCL Error 4: invalid argument (run with NCCL_DEBUG=WARN for details)", 0),
    ("RuntimeError", TCP.format("unbound_buffer.cc:78] Timed out waiting 1800000ms for recv operation to complete"), 1),
    ("RuntimeError", TCP.format("unbound_buffer.cc:81] Timed out waiting 1800000ms for send operation to complete"), 1),
    ("RuntimeError", TCP.format("pair.cc:446] writev [10.0.0.2]:4455: Broken pipe"), 1),
    ("RuntimeError", TCP.format("pair.cc:547] Read error [10.0.0.2]:4455: No route to host"), 1),
    ("RuntimeError", TCP.format("device.cc:276] Connect timeout [10.0.0.2]:2233"), 1),
    ("RuntimeError", "[enforce fail at gloo/transport/tcp/pair.cc:456] op.preamble.length <= op.nbytes. 8 vs 4", 0),
    ("RuntimeError", "[Rank 0]: Ranks 1, 2 failed to pass monitoredBarrier in 600000 ms", 1),
    ("CudaError", "an illegal memory access was encountered (700)", 1),
    ("CudaError", "out of memory (2)", 0),
    ("RuntimeError", "CUDA driver error: unknown error", 1),
    ("RuntimeError", "CUDA driver error: out of memory", 0),
    ("RuntimeError", "CUDA error: CUBLAS_STATUS_INTERNAL_ERROR when calling `cublasSgemm( handle, opa, opb)`", 1),
    ("RuntimeError", "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`", 0),
    ("RuntimeError", "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR", 1),
    ("RuntimeError", "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED", 0),
    ("RuntimeError", "cusolver error: CUSOLVER_STATUS_EXECUTION_FAILED, when calling `cusolverDnSgetrf`", 1),
    ("RuntimeError", "cuFFT error: CUFFT_EXEC_FAILED", 1),
    ("AcceleratorError", "CUDA error: invalid configuration argument", 0),
    ("AcceleratorError", "CUDA error: the provided PTX was compiled with an unsupported toolchain.", 0),
    ("AcceleratorError", "CUDA error: operation not permitted when stream is capturing", 0),
    ("AcceleratorError", "CUDA error: operation not supported on global/shared address space", 1),
]


def made(kind, text):
    """Return an error of the class of torch, torch.distributed, torch.cuda or Python with this name."""
    import builtins

    import torch

    (found,) = {getattr(one, kind, None) for one in (torch, torch.distributed, torch.cuda, builtins)} - {None}
    error = found.__new__(found)  # CudaError's constructor needs CUDA
    Exception.__init__(error, text)
    return error


@pytest.mark.parametrize(("kind", "text", "expected"), OF_GPUS, ids=[f"{k}-{t[-40:]}" for k, t, _ in OF_GPUS])
def test_lost_gpus_and_peers(kind, text, expected, host):
    """The error is raised in a process of the run, as torch's own class."""
    from openrlhf_ktae.processes.deaths import died
    from openrlhf_ktae.trainer.engines import engine_died

    for error in (made(kind, text), wrapped(made(kind, text)), wrapped(wrapped(made(kind, text)))):
        assert died(error) == bool(expected)
        assert not engine_died(error)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (low_on_memory, (True, False)),
        (a_shape, (False, False)),
        (a_quotation, (False, False)),
        (a_dead_core, (True, True)),
        (a_dead_actor_of_another_process, (True, True)),
        (a_dead_raylet, (True, False)),
        (gloo, (True, False)),
        (a_store_that_waits, (True, False)),
        (a_server_of_rewards, (False, False)),
        (lost_engines, (True, False)),
        (of_a_dead_core, (True, True)),
    ],
)
def test_deaths_are_recognised_by_error_type(error, expected, host):
    """If the failing call was another process's, the error is a task's, not an actor's."""
    from openrlhf_ktae.processes.deaths import died
    from openrlhf_ktae.trainer.engines import engine_died

    assert (died(error()), engine_died(error())) == expected


def test_a_death_is_reported_without_stacks_of_waiting_processes(host):
    from openrlhf_ktae.processes.deaths import in_one_line
    from openrlhf_ktae.trainer.engines import EnginesLost

    assert in_one_line(wrapped(wrapped(EnginesLost("an engine\n is lost")))) == "an engine is lost"
    assert in_one_line(a_dead_actor_of_another_process()).startswith("The actor died")
    assert in_one_line(of_a_dead_core()) == "no output"
