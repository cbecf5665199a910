"""The port where processes meet is one that no connection of another process can be given in between."""

from __future__ import annotations

import random
import socket
from pathlib import Path

import pytest

from openrlhf_ktae.run import free_port as module
from openrlhf_ktae.run.free_port import free_port, ports_of_nobody


def test_it_lies_outside_what_the_kernel_gives_away():
    low, high = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    assert not set(ports_of_nobody()) & (set(range(low, high + 1)) | set(range(10_002, 20_000)))
    assert {free_port() for _ in range(20)} <= set(ports_of_nobody())


def test_a_port_in_use_is_passed_over(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setattr(module, "ports_of_nobody", lambda: range(port, port + 1))
        with pytest.raises(OSError, match=f"no port from {port} to {port} is free"):
            free_port()
    assert free_port() == port


def test_the_random_state_of_a_run_is_not_touched():
    before = random.getstate()
    free_port()
    assert random.getstate() == before


def test_the_ranks_of_every_model_meet_there(host):
    from openrlhf_ktae.faults.models import RestartableModel
    from openrlhf_ktae.trainer.ray.checkpointing import CheckpointedActor

    assert CheckpointedActor._get_free_port is RestartableModel._get_free_port is free_port
