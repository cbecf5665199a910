"""A restarted engine waits for its share of the GPU; the driver's readings are given as a list."""

from __future__ import annotations

import asyncio
import os
import sys

import pytest
from marks import SLOW

from openrlhf_ktae.trainer.ray import gpu_memory
from openrlhf_ktae.trainer.ray.gpu_memory import GIB, GpuFull, engine_memory, own_gpu_memory, until_free


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(gpu_memory, "POLL_SECONDS", 0.01)


def said(*readings):
    """Return a function that gives the readings in turn and repeats the last."""
    left = list(readings)

    async def read():
        read.times += 1
        return left.pop(0) if len(left) > 1 else left[0]

    read.times = 0
    return read


def test_wait_ends_once_the_share_is_free():
    read = said(*([(free * GIB, 100 * GIB)] for free in (10, 20, 59, 60, 80)))
    asyncio.run(until_free(0.6, read))
    assert read.times == 4


def test_an_engine_on_several_gpus_waits_for_each():
    small, large = (30 * GIB, 40 * GIB), (30 * GIB, 100 * GIB)
    read = said([small, large], [large, small], [small, small])
    asyncio.run(until_free(0.6, read))
    assert read.times == 3
    with pytest.raises(GpuFull, match=r"needs 60.0 GiB, but next to the trainer 30.0 of 100.0 GiB"):
        asyncio.run(until_free(0.6, said([small, large]), seconds=0.1))


def test_timeout_reports_the_missing_memory_and_the_fixes():
    with pytest.raises(GpuFull, match=r"--vllm.gpu_memory_utilization 0.95: .* needs 76.0 GiB.* 40.5 of 80.0 GiB"):
        asyncio.run(until_free(0.95, said([(int(40.5 * GIB), 80 * GIB)]), seconds=0.1))


@pytest.mark.parametrize(("share", "memory"), [(None, [(0, 1)]), (0.9, [])])
def test_unknown_memory_is_not_waited_for(share, memory):
    asyncio.run(until_free(share, said(memory)))


def test_a_machine_without_a_driver_reports_no_memory(host):
    assert own_gpu_memory() is None
    assert asyncio.run(engine_memory(None)) == []


class Engine:
    """An actor without a GPU whose workers have the GPUs of bundles 1 and 2 of its placement group."""

    async def look(self, bundles):
        gpu_memory.own_gpu_memory = lambda: (__import__("ray").get_gpu_ids()[0], 7)
        return await engine_memory(bundles)


@SLOW
def test_gpu_memory_is_read_on_the_nodes_of_an_engines_workers(root, nothing_kept):
    import ray
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    paths = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
    ray.init("local", num_cpus=1, num_gpus=3, log_to_driver=False, runtime_env={"env_vars": {"PYTHONPATH": paths}})
    try:
        group = ray.util.placement_group([{"GPU": 1}] * 3)
        there = PlacementGroupSchedulingStrategy(group, 0, placement_group_capture_child_tasks=True)
        engine = ray.remote(num_cpus=0)(Engine).options(scheduling_strategy=there).remote()
        found = ray.get(engine.look.remote([1, 2]), timeout=120)
        (alone,) = ray.get(engine.look.remote([0]), timeout=60)
        assert sorted(gpu for gpu, _ in [alone, *found]) == [0, 1, 2]
    finally:
        ray.shutdown()
