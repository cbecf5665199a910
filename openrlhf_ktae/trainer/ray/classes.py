"""Our replacements of the host's classes, for each backend."""

from typing import Any

Places = dict[tuple[str, str], Any]
"""`(module, attribute)` of the host -> its replacement where the host's `train` runs."""

CPU_MODULES = (
    "openrlhf.cli.train_ppo_ray",
    "openrlhf_ktae.trainer.ppo_trainer",
    "openrlhf_ktae.trainer.ray.cpu_actors",
    "openrlhf_ktae.trainer.ray.cpu_engine",
    "vllm.v1.engine.async_llm",
    "vllm.v1.worker.cpu_worker",
)
"""Modules that the processes of a run on a CPU import; the fork server imports them in advance."""


def host_classes(backend: str) -> Places:
    """Return our strategy, engine and model actors for a backend (`cuda` or `cpu`)."""
    import ray  # these imports take seconds

    from openrlhf_ktae.trainer.ray.ppo_critic import KTAECriticModelActor

    if backend == "cpu":
        from openrlhf_ktae.trainer.ray.cpu_actors import CpuDeepspeedStrategy as Strategy
        from openrlhf_ktae.trainer.ray.cpu_actors import CpuPolicyModelActor as Policy
        from openrlhf_ktae.trainer.ray.cpu_engine import CpuRolloutActor as Engine
    else:
        from openrlhf_ktae.trainer.lora import KTAEDeepspeedStrategy as Strategy
        from openrlhf_ktae.trainer.ray.ppo_actor import KTAEPolicyModelActor as Policy
        from openrlhf_ktae.trainer.ray.vllm_engine import KTAERolloutActor as Engine
    return {
        ("openrlhf.utils.deepspeed", "DeepspeedStrategy"): Strategy,
        ("openrlhf.trainer.ray.vllm_engine", "RolloutRayActor"): ray.remote(Engine),
        ("openrlhf.cli.train_ppo_ray", "PolicyModelActor"): ray.remote(num_gpus=1)(Policy),
        ("openrlhf.cli.train_ppo_ray", "CriticModelActor"): ray.remote(num_gpus=1)(KTAECriticModelActor),
    }
