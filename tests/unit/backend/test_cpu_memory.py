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


def test_a_forgotten_tensor_takes_no_memory_until_written_to():
    tensor = torch.ones(160 * MIB // 4)
    before = resident()
    forget(tensor)
    assert before - resident() > 150 * MIB
    assert tensor[MIB] == 0
    assert torch.equal(tensor.fill_(2.0), torch.full_like(tensor, 2.0))


def test_a_small_tensor_is_kept():
    tensor = torch.ones(16 * MIB)
    forget(tensor)
    assert torch.equal(tensor, torch.ones(16 * MIB))


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
