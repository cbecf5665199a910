"""Memory is returned to the system."""

from __future__ import annotations

import subprocess
import sys

import psutil
import pytest
import torch

from openrlhf_ktae.backend.cpu_memory import forget

MIB = 2**20


def resident():
    return psutil.Process().memory_info().rss


def test_forgotten_tensors_take_no_memory_until_written_to():
    """Their sum decides: keys and values are one tensor per layer."""
    tensors = [torch.ones(80 * MIB // 4), torch.ones(3), torch.ones(80 * MIB // 4)]
    before = resident()
    forget(*tensors)
    assert before - resident() > 150 * MIB
    assert torch.equal(tensors[1], torch.ones(3)), "smaller than a page"
    assert tensors[2][MIB] == 0
    assert torch.equal(tensors[0].fill_(2.0), torch.full_like(tensors[0], 2.0))


def test_small_tensors_are_kept():
    tensors = [torch.ones(MIB), torch.ones(3)]
    forget(*tensors)
    assert all(torch.equal(tensor, torch.ones_like(tensor)) for tensor in tensors)


@pytest.mark.parametrize(("blocks", "returned"), [(4000, True), (1000, False)])
def test_freed_tensors_are_returned_if_they_are_many(blocks, returned):
    """In a process of its own: other tests leave free memory on the heap."""
    code = f"""
import psutil, torch
from openrlhf_ktae.backend.cpu_memory import trim
trim()
blocks = [torch.ones({MIB} // 64) for _ in range({blocks})]  # 64 KiB each, below glibc's mmap threshold
kept = blocks[-1].clone()  # at the end of the heap, so that it cannot shrink by itself
before = psutil.Process().memory_info().rss
del blocks
trim()
print(before - psutil.Process().memory_info().rss)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=True)
    assert (int(done.stdout) > blocks * MIB // 17) == returned
