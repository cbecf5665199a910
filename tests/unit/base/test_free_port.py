"""Rendezvous ports lie outside the kernel's ephemeral range, so no other process can be given them."""

from __future__ import annotations

import random
import socket

import pytest

from openrlhf_ktae.base import free_port as module
from openrlhf_ktae.base.free_port import free_port, unreserved_ports


def test_port_is_outside_the_ephemeral_range():
    low, high = map(int, module.RANGE.read_text().split())
    if (low, high) == (1024, 65_535):
        pytest.skip("this kernel gives all ports away")
    assert not set(unreserved_ports()) & (set(range(low, high + 1)) | set(range(10_002, 20_000)))
    assert {free_port() for _ in range(20)} <= set(unreserved_ports())


@pytest.mark.parametrize(
    ("text", "ports"),
    [
        ("32768\t60999\n", range(20_000, 32_768)),
        ("10000\t60999\n", range(61_000, 65_536)),
        ("1024\t15000\n", range(20_000, 65_536)),
        ("1024\t65535\n", range(20_000, 32_768)),
        ("no numbers", range(20_000, 32_768)),
    ],
)
def test_ranges_next_to_the_ephemeral_range(text, ports, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "RANGE", tmp_path / "range")
    (tmp_path / "range").write_text(text)
    assert unreserved_ports() == ports


def test_a_port_in_use_is_skipped(monkeypatch):
    port = free_port()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        monkeypatch.setattr(module, "unreserved_ports", lambda: range(port, port + 1))
        with pytest.raises(OSError, match=f"no port from {port} to {port} is free"):
            free_port()
    assert free_port() == port


def test_random_states_are_not_changed():
    before = random.getstate()
    free_port()
    assert random.getstate() == before
