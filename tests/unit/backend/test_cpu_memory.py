"""Memory that goes back to the system."""

from __future__ import annotations

import psutil
import torch

from openrlhf_ktae.backend.cpu_memory import forget, trim

MIB = 2**20


def resident():
    return psutil.Process().memory_info().rss


def test_a_forgotten_tensor_has_no_memory_until_it_is_written_to():
    tensor = torch.ones(64 * MIB // 4)
    before = resident()
    forget(tensor)
    assert before - resident() > 60 * MIB
    assert tensor[MIB] == 0
    assert torch.equal(tensor.fill_(2.0), torch.full_like(tensor, 2.0))


def test_a_tensor_smaller_than_a_page_is_left_as_it_is():
    tensor = torch.ones(3)
    forget(tensor)
    assert torch.equal(tensor, torch.ones(3))


def test_freed_tensors_of_the_heap_are_returned():
    blocks = [torch.ones(MIB // 64) for _ in range(4000)]  # 64 KiB each, below the threshold of a mapping
    kept = blocks[-1].clone()  # at the heap's end, so that it does not shrink by itself
    before = resident()
    del blocks
    trim()
    assert before - resident() > 200 * MIB
    assert kept[0] == 1
