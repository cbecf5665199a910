"""The `cuda` backend: nothing is patched; the classes that are trained, and the engine, are the host's extended."""

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
        """Model actors whose checkpoints are whole, an engine that knows seeds, and a strategy that knows adapters."""
        import ray

        from openrlhf_ktae.trainer.lora import KTAEDeepspeedStrategy
        from openrlhf_ktae.trainer.ray.ppo_actor import KTAEPolicyModelActor
        from openrlhf_ktae.trainer.ray.ppo_critic import KTAECriticModelActor
        from openrlhf_ktae.trainer.ray.vllm_engine import KTAERolloutActor

        return {
            ("openrlhf.utils.deepspeed", "DeepspeedStrategy"): KTAEDeepspeedStrategy,
            ("openrlhf.trainer.ray.vllm_engine", "RolloutRayActor"): ray.remote(KTAERolloutActor),
            ("openrlhf.cli.train_ppo_ray", "PolicyModelActor"): ray.remote(num_gpus=1)(KTAEPolicyModelActor),
            ("openrlhf.cli.train_ppo_ray", "CriticModelActor"): ray.remote(num_gpus=1)(KTAECriticModelActor),
        }
