"""The `cuda` backend: nothing is patched; the classes that are trained, and the engine, are the host's extended.

What a GPU machine lacks is found before anything loads, without a CUDA context in this process: `docs/gpu.md`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

from openrlhf_ktae.backend import flash_attn_stub
from openrlhf_ktae.backend.base import Backend
from openrlhf_ktae.base.gpu_machine import CPU_OPERATOR, GPU_OPERATOR, gpus, this_machine

FLASH = "flash_attention_2"
WAY_OUT = (
    "install it (docs/gpu.md says how), or give --ds.attn_implementation sdpa --ds.packing_samples false "
    "--train.dynamic_batch_enable false"
)


class CudaBackend(Backend):
    """NVIDIA GPUs with the host's own pins."""

    name = "cuda"

    def problems(self, args: SimpleNamespace) -> list[str]:
        """What needs flash-attention or cupy and lacks it, and what this machine lacks if it has GPUs.

        A machine without one only leads the run: those of its cluster cannot be seen from here.
        """
        found = [*_attention_problems(args)]
        if args.vllm.sync_with_ray and importlib.util.find_spec("cupy") is None:
            found.append(
                "--vllm.sync_with_ray true: Ray's collectives need cupy, which is not installed. Leave it out (weights "
                "then go by vLLM's own NCCL), or install cupy-cuda13x."
            )
        return [*found, *self.machine_problems(args)]

    def machine_problems(self, args: SimpleNamespace) -> list[str]:
        """What the machine of this process, one with GPUs, lacks: a driver for torch's CUDA, a compiler."""
        return this_machine().problems(CPU_OPERATOR if args.ds.adam_offload else GPU_OPERATOR) if gpus() else []

    def adapt(self, args: SimpleNamespace) -> list[str]:
        """Change nothing; say it where the run goes without flash-attention."""
        if flash_attn_stub.is_installed() or FLASH in args.ds.attn_implementation:
            return []
        return [f"flash-attn is not installed: --ds.attn_implementation {args.ds.attn_implementation}, no packing"]

    def environment(self, args: SimpleNamespace) -> dict[str, str]:
        """With full determinism vLLM's kernels must give a row the same numbers whatever else is in its batch."""
        train = getattr(args, "train", None)
        return {"VLLM_BATCH_INVARIANT": "1"} if getattr(train, "full_determinism_enable", False) else {}

    def prepare_driver(self) -> None:
        """Let the host import what it takes from flash-attention."""
        flash_attn_stub.provide()

    def worker_setup_hook(self) -> str:
        """The same in every Ray worker: each node answers for itself whether the package is there."""
        return "openrlhf_ktae.backend.flash_attn_stub.provide"

    def ray_init_options(self, args: SimpleNamespace) -> dict[str, Any]:
        """A cluster of its own, with a token, even where Ray's file names one that runs here; RAY_ADDRESS joins it."""
        return {"address": "local", **super().ray_init_options(args)}


def _attention_problems(args: SimpleNamespace) -> Iterator[str]:
    """Yield what cannot work without flash-attention, where that is missing."""
    if flash_attn_stub.is_installed():
        return
    if args.ds.ring_attn_size > 1:
        yield (
            f"--ds.ring_attn_size {args.ds.ring_attn_size}: ring attention needs flash-attn, which is not installed; "
            f"{WAY_OUT} --ds.ring_attn_size 1"
        )
    elif args.ds.attn_implementation == FLASH:
        asked = f"--ds.attn_implementation {FLASH}"
        if args.train.dynamic_batch_enable:
            asked = "--train.dynamic_batch_enable true (it packs samples)"
        elif args.ds.packing_samples:
            asked = "--ds.packing_samples true"
        yield f"{asked}: needs flash-attn, which is not installed; {WAY_OUT}"
