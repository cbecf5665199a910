"""Devices that a plan can be made for, and what this machine has."""

from __future__ import annotations

import os

GIB = 2**30
# Memory that the driver reports, which is less than the name says.
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
        name: of `GPUS`, `cpu`, or `auto` for the first GPU of this machine.
        ranks_here: devices of a run on this machine, which share its memory on a CPU.
    """
    if name == CPU:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / max(1, ranks_here)
    if name == "auto":
        return _first_gpu()
    return GPUS[name]


def _first_gpu() -> float | None:
    """Ask the driver, not torch, so that no CUDA context is made in this process."""
    try:
        import pynvml

        pynvml.nvmlInit()
        return float(pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(0)).total)
    except Exception:  # no driver, no library: the ways to have no GPU differ by machine
        return None
