"""Whether GPUs have enough free memory to restart an engine next to the trainer."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from openrlhf_ktae.base.gpu_machine import GIB, gpu_memory

FREE_SECONDS = 60.0  # for the memory of a dead engine to be freed; the trainer's is already offloaded
POLL_SECONDS = 1.0
LOOK_SECONDS = 30.0  # for a process on each GPU to read its free memory
SLIVER = 0.01  # share of a GPU that such a process requests from Ray
Memory = tuple[int, int]
"""Free and total bytes of a GPU."""


class GpuFull(RuntimeError):
    """The GPU lacks free memory for an engine."""


def own_gpu_memory() -> Memory | None:
    """Return free and total bytes of the first GPU that Ray has given this process; None if none can be read."""
    import ray

    given = ray.get_gpu_ids() if ray.is_initialized() else []
    return gpu_memory(str(given[0])) if given else None


async def engine_memory(bundles: Sequence[int] | None) -> list[Memory]:
    """Return the memory of an engine's GPUs, as far as it can be read; called in the engine's actor.

    Args:
        bundles: for an engine on several GPUs, the bundle of each worker in the actor's placement group. The actor
            then has no GPU, and the workers may be on other nodes.
    """
    import ray
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    group = ray.util.get_current_placement_group() if bundles and ray.is_initialized() else None
    if group is None:
        own = own_gpu_memory()
        return [own] if own else []
    looks = []
    for bundle in bundles or ():
        there = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=bundle)
        look = ray.remote(num_cpus=0, num_gpus=SLIVER, max_retries=0)(own_gpu_memory)
        looks.append(look.options(scheduling_strategy=there).remote())
    try:
        found = await asyncio.wait_for(asyncio.gather(*looks), LOOK_SECONDS)
    except Exception:  # a node is gone or busy; vLLM checks the memory itself
        return []
    return [memory for memory in found if memory]


async def until_free(
    share: float | None, read: Callable[[], Awaitable[list[Memory]]], seconds: float = FREE_SECONDS
) -> None:
    """Wait until `share` of each GPU's memory is free: vLLM refuses to start with less.

    Args:
        share: `--vllm.gpu_memory_utilization`.
        read: returns the memory of each GPU.
        seconds: longest wait.

    Raises:
        GpuFull: the memory did not become free in that time.
    """
    clock = asyncio.get_running_loop()
    end = clock.time() + seconds
    while share and (memory := await read()):
        free, total = min(memory, key=lambda one: one[0] - share * one[1])
        if free >= share * total:
            return
        if clock.time() >= end:
            raise GpuFull(
                f"--vllm.gpu_memory_utilization {share:g}: a restarted engine needs "
                f"{share * total / GIB:.1f} GiB, but next to the trainer {free / GIB:.1f} of {total / GIB:.1f} GiB are "
                f"free. Lower it, or move the other models off the GPU (--ds.enable_sleep, --ref.offload)"
            )
        await asyncio.sleep(POLL_SECONDS)
