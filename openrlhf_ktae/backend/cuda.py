"""The `cuda` backend: nothing is patched, and no class of the host is replaced but its policy actor."""

from __future__ import annotations

import importlib.util
from types import SimpleNamespace
from typing import Any

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

    def host_classes(self) -> dict[tuple[str, str], Any]:
        """The policy actor whose update knows Dr. GRPO's normaliser and the schedule of dynamic sampling."""
        import ray

        from openrlhf_ktae.trainer.ray.ppo_actor import KTAEPolicyModelActor

        return {("openrlhf.cli.train_ppo_ray", "PolicyModelActor"): ray.remote(num_gpus=1)(KTAEPolicyModelActor)}
