"""Shared by tests of faults: a process group."""

from __future__ import annotations

import os

import pytest
import torch

from openrlhf_ktae.run.free_port import free_port


@pytest.fixture(scope="session")
def group(host):
    """A process group of one, which DeepSpeed needs, and keeps for as long as the process lives."""
    names = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_RANK": "0",
    }
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(names)
    import deepspeed

    deepspeed.init_distributed("gloo")
    yield
    torch.distributed.destroy_process_group()
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)
