"""A port for processes that meet.

The usual way, to bind port 0 and let go, returns one that the kernel may give to any connection of any process until
the caller listens: a run then ends with `EADDRINUSE`. Ports beside the kernel's range are given to nobody.
"""

from __future__ import annotations

import random
import socket
from pathlib import Path

FIRST = 20_000  # workers of `ray start` take 10,002 to 19,999
KERNEL = (32_768, 60_999)  # Linux's own default
ENOUGH = 1000
RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_chance = random.SystemRandom()  # the seeds of a run are not touched


def ports_of_nobody() -> range:
    """Return the ports between Ray's and those that this kernel gives to connections, or above these.

    Where it gives nearly all of them away, there are none of nobody: it returns those of the usual kernel.
    """
    try:
        first, last = map(int, RANGE.read_text().split())
    except (OSError, ValueError):
        first, last = KERNEL
    for ports in (range(FIRST, first), range(max(FIRST, last + 1), 65_536)):
        if len(ports) >= ENOUGH:
            return ports
    return range(FIRST, KERNEL[0])


def free_port() -> int:
    """Return one on which nothing listens now, on any address of this machine.

    Raises:
        OSError: a hundred drawn at random were all taken.
    """
    ports = ports_of_nobody()
    for _ in range(100):
        port = _chance.choice(ports)
        with socket.socket() as sock:
            try:
                sock.bind(("", port))
            except OSError:
                continue
            return port
    raise OSError(f"no port from {ports.start} to {ports.stop - 1} is free")
