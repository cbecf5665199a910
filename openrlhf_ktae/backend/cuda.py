"""The `cuda` backend: nothing is patched; the classes that are trained, and the engine, are the host's extended.

What a GPU machine lacks is found before anything loads, without a CUDA context in this process: `docs/gpu.md`.
"""

from types import SimpleNamespace
from typing import Any

from openrlhf_ktae.backend import flash_attn_stub
from openrlhf_ktae.backend.base import Backend

FLASH = "flash_attention_2"


class CudaBackend(Backend):
    """NVIDIA GPUs with the host's own pins."""

    name = "cuda"

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
