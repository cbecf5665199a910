"""Find a free port for processes to meet on.

Binding port 0 and closing it is racy: the kernel may give that port to another connection before the caller listens,
and the run fails with `EADDRINUSE`. The ports here are outside the ephemeral range, from which the kernel chooses.
"""

import random
import socket
from pathlib import Path

FIRST = 20_000  # workers of `ray start` take 10,002 to 19,999
KERNEL = (32_768, 60_999)  # Linux's own default
ENOUGH = 1000
RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_chance = random.SystemRandom()  # does not change the run's random state


def unreserved_ports() -> range:
    """Return the ports between Ray's range and this kernel's ephemeral range, or the ports above the latter.

    If the ephemeral range covers nearly everything, no unreserved ports remain; fall back to Linux's default range.
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
    """Return a port that is free now on all addresses of this machine.

    Raises OSError if a hundred ports drawn at random were all taken.
    """
    ports = unreserved_ports()
    for _ in range(100):
        port = _chance.choice(ports)
        with socket.socket() as sock:
            try:
                sock.bind(("", port))
            except OSError:
                continue
            return port
    raise OSError(f"no port from {ports.start} to {ports.stop - 1} is free")
