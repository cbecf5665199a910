"""A trainer's part of dynamic sampling: log its metrics, advance the learning-rate schedule."""

from typing import Any

import ray

from openrlhf_ktae.trainer.ppo_utils.rollout_batch import RolloutBatch


class SamplingTrainer:
    """Mixin for a trainer. Without dynamic sampling batches are plain lists, and pass through unchanged."""

    actor_model_group: Any

    def train_step(self, rollout_samples: list[Any], global_step: int) -> tuple[dict[str, Any], int]:
        """Train as the host does; add the metrics of sampling."""
        if not isinstance(rollout_samples, RolloutBatch):
            return super().train_step(rollout_samples, global_step)  # type: ignore[misc]
        ray.get(self.actor_model_group.async_run_method("follow_schedule", rollout_samples.progress))
        status, step = super().train_step(rollout_samples, global_step)  # type: ignore[misc]
        status.update(rollout_samples.metrics)
        return status, step
