"""Memory is returned to the system."""

from __future__ import annotations

import psutil
import torch

from openrlhf_ktae.backend.cpu_memory import forget, trim

MIB = 2**20


def resident():
    return psutil.Process().memory_info().rss


def test_a_forgotten_tensor_takes_no_memory_until_written_to():
    tensor = torch.ones(64 * MIB // 4)
    before = resident()
    forget(tensor)
    assert before - resident() > 60 * MIB
    assert tensor[MIB] == 0
    assert torch.equal(tensor.fill_(2.0), torch.full_like(tensor, 2.0))


def test_a_tensor_smaller_than_a_page_is_unchanged():
    tensor = torch.ones(3)
    forget(tensor)
    assert torch.equal(tensor, torch.ones(3))


def test_freed_tensors_of_the_heap_are_returned():
    blocks = [torch.ones(MIB // 64) for _ in range(4000)]  # 64 KiB each, below glibc's mmap threshold
    kept = blocks[-1].clone()  # at the end of the heap, so that it cannot shrink by itself
    before = resident()
    del blocks
    trim()
    assert before - resident() > 200 * MIB
    assert kept[0] == 1
