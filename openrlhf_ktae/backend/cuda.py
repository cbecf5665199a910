"""The `cuda` backend: the host as it is. Nothing is patched and nothing is replaced."""

from __future__ import annotations

import importlib.util
from types import SimpleNamespace

from openrlhf_ktae.backend.base import Backend


class CudaBackend(Backend):
    """NVIDIA GPUs with the host's own pins."""

    name = "cuda"

    def problems(self, args: SimpleNamespace) -> list[str]:
        """Flash-attention is not optional here: the host imports it at the top of its models."""
        if importlib.util.find_spec("flash_attn") is not None:
            return []
        return [
            "--backend cuda: the package flash_attn is not installed, and OpenRLHF imports it on a GPU. "
            "Install it with `pip install .[gpu]` (flash-attn==2.8.3), or choose --backend cpu."
        ]
