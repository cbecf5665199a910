"""An engine that is started again waits for its share of the GPU; a list stands for what the driver says."""

from __future__ import annotations

import asyncio

import pytest

from openrlhf_ktae.trainer.ray import gpu_memory
from openrlhf_ktae.trainer.ray.gpu_memory import GIB, GpuIsFull, own_gpu_memory, until_free


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(gpu_memory, "POLL_SECONDS", 0.01)


def test_it_goes_on_once_its_share_is_free():
    free = [10, 20, 59, 60, 80]
    asyncio.run(until_free(0.6, lambda: (free.pop(0) * GIB, 100 * GIB)))
    assert free == [80]


def test_it_says_how_much_is_missing_and_what_can_be_done():
    with pytest.raises(GpuIsFull, match=r"--vllm.gpu_memory_utilization 0.95: .* takes 76.0 GiB.* 40.5 of 80.0 GiB"):
        asyncio.run(until_free(0.95, lambda: (int(40.5 * GIB), 80 * GIB), seconds=0.1))


@pytest.mark.parametrize(("share", "memory"), [(None, (0, 1)), (0.9, None)])
def test_it_does_not_wait_for_what_nobody_can_tell(share, memory):
    asyncio.run(until_free(share, lambda: memory))


def test_a_machine_without_a_driver_says_nothing(host):
    assert own_gpu_memory() is None
