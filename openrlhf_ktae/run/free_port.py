"""A port for processes that meet.

The usual way, to bind port 0 and let go, returns one that the kernel may give to any connection of any process until
the caller listens: a run then ends with `EADDRINUSE`. Ports below the kernel's range are given to nobody.
"""

from __future__ import annotations

import random
import socket
from pathlib import Path

FIRST = 20_000  # Ray's workers take 10,002 to 19,999
KERNEL = 32_768  # Linux's own default
_chance = random.SystemRandom()  # the seeds of a run are not touched


def ports_of_nobody() -> range:
    """Return the ports between those of Ray's workers and those that this kernel gives to connections."""
    try:
        first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        first = KERNEL
    return range(FIRST, first) if first > FIRST + 1000 else range(FIRST, KERNEL)


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
