"""Whether a GPU has enough free memory to restart an engine next to the trainer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

FREE_SECONDS = 60.0  # for a dead engine's memory to be freed; the trainer is already offloaded
POLL_SECONDS = 1.0
GIB = 2**30


class GpuIsFull(RuntimeError):
    """The GPU lacks free memory for an engine."""


def own_gpu_memory() -> tuple[int, int] | None:
    """Return free and total bytes of this actor's first GPU, from the driver, since torch would create a CUDA context.

    Returns: None if Ray assigned it no GPU (in a multi-GPU engine the workers have them), or memory cannot be read.
    """
    import ray

    if not ray.is_initialized():
        return None
    try:
        import pynvml

        number = str(ray.get_gpu_ids()[0])
        pynvml.nvmlInit()
        by_number, by_name = pynvml.nvmlDeviceGetHandleByIndex, pynvml.nvmlDeviceGetHandleByUUID
        memory = pynvml.nvmlDeviceGetMemoryInfo(by_number(int(number)) if number.isdigit() else by_name(number))
    except Exception:  # no driver, library or GPU, or a MIG slice: vLLM checks by itself
        return None
    return int(memory.free), int(memory.total)


async def until_free(
    share: float | None, read: Callable[[], tuple[int, int] | None], seconds: float = FREE_SECONDS
) -> None:
    """Wait until `share` of a GPU's memory is free: vLLM refuses to start with less.

    Args:
        share: `--vllm.gpu_memory_utilization`.
        read: returns free and total bytes.
        seconds: longest wait.

    Raises:
        GpuIsFull: the memory is not free in that time.
    """
    clock = asyncio.get_running_loop()
    end = clock.time() + seconds
    while share and (memory := read()):
        free, total = memory
        if free >= share * total:
            return
        if clock.time() >= end:
            raise GpuIsFull(
                f"--vllm.gpu_memory_utilization {share:g}: a restarted engine needs "
                f"{share * total / GIB:.1f} GiB, but next to the trainer {free / GIB:.1f} of {total / GIB:.1f} GiB are "
                f"free. Lower it, or let the other models leave the GPU (--ds.enable_sleep, --ref.offload)"
            )
        await asyncio.sleep(POLL_SECONDS)
