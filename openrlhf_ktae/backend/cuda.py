"""The `cuda` backend needs no patches: its model actors and engine extend the host's classes.

Problems of a GPU machine are found before anything loads, without a CUDA context in this process (`docs/gpu.md`).
"""

from types import SimpleNamespace
from typing import Any

from openrlhf_ktae.backend import flash_attn_stub
from openrlhf_ktae.backend.base import Backend

FLASH = "flash_attention_2"


class CudaBackend(Backend):
    """NVIDIA GPUs, with the package versions that the host pins."""

    name = "cuda"
    worker_setup_hook = "openrlhf_ktae.backend.flash_attn_stub.provide"  # each node checks for the package itself

    def adapt(self, args: SimpleNamespace) -> list[str]:
        """Change nothing; return a line if the run does not use flash-attention because it is not installed."""
        if flash_attn_stub.is_installed() or FLASH in args.ds.attn_implementation:
            return []
        return [f"flash-attn is not installed: --ds.attn_implementation {args.ds.attn_implementation}, no packing"]

    def environment(self, args: SimpleNamespace) -> dict[str, str]:
        """With full determinism, make vLLM's results for a request independent of the others in its batch."""
        train = getattr(args, "train", None)
        return {"VLLM_BATCH_INVARIANT": "1"} if getattr(train, "full_determinism_enable", False) else {}

    def ray_init_options(self, args: SimpleNamespace) -> dict[str, Any]:
        """Return options of a new cluster, even if Ray's address file names a running one (RAY_ADDRESS joins that)."""
        return {"address": "local", **super().ray_init_options(args)}
