"""Memory of known devices and of this machine."""

import os
from contextlib import suppress
from pathlib import Path

from openrlhf_ktae.base.gpu_machine import GIB, gpus

# As reported by the driver, which is less than the nominal size.
GPUS = {
    "a10-24g": 22.0 * GIB,
    "l40s-48g": 44.4 * GIB,
    "a100-40g": 39.4 * GIB,
    "a100-80g": 79.3 * GIB,
    "h100-80g": 79.1 * GIB,
    "h200-141g": 139.8 * GIB,
    "b200-180g": 178.3 * GIB,
}
CPU = "cpu"


def memory_of(name: str, ranks_here: int) -> float | None:
    """Return the bytes of one device; on a CPU, its share of the machine's memory. None for `auto` without a GPU.

    Args:
        name: a name in `GPUS`, `cpu`, or `auto` for the first GPU of this machine.
        ranks_here: number of the run's devices on this machine, which share its memory on a CPU.
    """
    if name == CPU:
        return _physical() / max(1, ranks_here)
    if name == "auto":
        return next((float(gpu.total) for gpu in gpus() if gpu.total), None)
    return GPUS[name]


def host_memory(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> float:
    """Return the bytes of host memory that this process may use, within the limits of a container or Slurm job."""
    limits = [_physical()]
    with suppress(OSError, IndexError):
        inside = root / own.read_text().split("0::", 1)[1].split("\n", 1)[0].lstrip("/")
        for folder in (inside, *inside.parents):
            with suppress(OSError, ValueError):  # the root has no such file; `max` means no limit
                limits.append(float(int((folder / "memory.max").read_text())))
    return min(limits)


def _physical() -> float:
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
