"""A trainer's part of dynamic sampling: log its metrics, save its state, advance the learning-rate schedule."""

from functools import cached_property
from typing import Any

import ray

from openrlhf_ktae.trainer.ppo_utils.pass_rates import PassRates
from openrlhf_ktae.trainer.ppo_utils.rollout_batch import RolloutBatch

SAMPLING_STATE = "sampling"  # our key in the trainer's part of a checkpoint


class SamplingTrainer:
    """Mixin for a trainer. Without dynamic sampling batches are plain lists, and pass through unchanged."""

    args: Any
    actor_model_group: Any
    _prompts_seen = 0
    sampling_state: dict[str, Any] | None = None
    """State from the checkpoint that the run resumes from; None in a new run."""

    @cached_property
    def pass_rates(self) -> PassRates:
        """This process's ledger of all prompts judged in this run."""
        return PassRates()

    def training_state(self) -> dict[str, Any]:
        """Add the ledger to the checkpoint's state."""
        state = super().training_state()  # type: ignore[misc]
        if len(self.pass_rates):
            state[SAMPLING_STATE] = {"pass_rates": self.pass_rates.state_dict(), "prompts_seen": self._prompts_seen}
        return state

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Restore `training_state`."""
        super().load_training_state(state)  # type: ignore[misc]
        self.sampling_state = state.get(SAMPLING_STATE)
        if self.sampling_state:
            self.pass_rates.load_state_dict(self.sampling_state["pass_rates"])
            self._prompts_seen = self.sampling_state["prompts_seen"]

    def train_step(self, rollout_samples: list[Any], global_step: int) -> tuple[dict[str, Any], int]:
        """Train as the host does; add the metrics of sampling."""
        if not isinstance(rollout_samples, RolloutBatch):
            return super().train_step(rollout_samples, global_step)  # type: ignore[misc]
        for judged in rollout_samples.judged:
            self.pass_rates.add(judged)
        self._prompts_seen = rollout_samples.seen
        ray.get(self.actor_model_group.async_run_method("follow_schedule", rollout_samples.progress))
        status, step = super().train_step(rollout_samples, global_step)  # type: ignore[misc]
        status.update(rollout_samples.metrics)
        return status, step
