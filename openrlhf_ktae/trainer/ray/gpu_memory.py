"""Whether a GPU has room for an engine that is started again beside the trainer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

FREE_SECONDS = 60.0  # for a dead engine's memory to be given back; the trainer has offloaded before it asks
POLL_SECONDS = 1.0
GIB = 2**30


class GpuIsFull(RuntimeError):
    """The memory that an engine takes is not free."""


def own_gpu_memory() -> tuple[int, int] | None:
    """Return free and total bytes of this actor's first GPU, from the driver: torch would make a CUDA context.

    Returns: None where Ray has given it no GPU (an engine of several, whose workers have them), or none can be read.
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
    except Exception:  # no driver, no library, no GPU, a part of one: vLLM looks for itself
        return None
    return int(memory.free), int(memory.total)


async def until_free(
    share: float | None, read: Callable[[], tuple[int, int] | None], seconds: float = FREE_SECONDS
) -> None:
    """Wait until `share` of a GPU's memory is free: vLLM refuses to start with less.

    Args:
        share: `--vllm.gpu_memory_utilization`.
        read: returns free and total bytes.
        seconds: to wait at most.

    Raises:
        GpuIsFull: it does not get free in that time.
    """
    clock = asyncio.get_running_loop()
    end = clock.time() + seconds
    while share and (memory := read()):
        free, total = memory
        if free >= share * total:
            return
        if clock.time() >= end:
            raise GpuIsFull(
                f"--vllm.gpu_memory_utilization {share:g}: an engine that was started again takes "
                f"{share * total / GIB:.1f} GiB, and beside the trainer {free / GIB:.1f} of {total / GIB:.1f} GiB are "
                f"free. Lower it, or let the other models leave the GPU (--ds.enable_sleep, --ref.offload)"
            )
        await asyncio.sleep(POLL_SECONDS)
