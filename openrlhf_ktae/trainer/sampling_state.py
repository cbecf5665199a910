"""What a trainer does beside the host with dynamic sampling: log what it saw, remember it, keep the schedule."""

from __future__ import annotations

from typing import Any

import ray

from openrlhf_ktae.trainer.ppo_utils.pass_rates import PassRates
from openrlhf_ktae.trainer.ppo_utils.rollout_batch import RolloutBatch

SAMPLING_STATE = "sampling"  # our key in the client state of a checkpoint


class SamplingTrainer:
    """Mixin before a host trainer class. Batches that are plain lists (no dynamic sampling) pass through it."""

    args: Any
    actor_model_group: Any
    sampling_state: dict[str, Any] | None = None
    """Read from the checkpoint that the run goes on from; None in a new run."""

    @property
    def pass_rates(self) -> PassRates:
        """The ledger of all prompts judged in this run, in this process."""
        if not hasattr(self, "_pass_rates"):
            self._pass_rates = PassRates()
            self._prompts_seen = 0
        return self._pass_rates

    def init_checkpoint_states(self) -> dict[str, Any]:
        """Return the host's states; the ledger goes on from them."""
        states = super().init_checkpoint_states()  # type: ignore[misc]
        self.sampling_state = states.get(SAMPLING_STATE)
        if self.sampling_state:
            self.pass_rates.load_state_dict(self.sampling_state["pass_rates"])
            self._prompts_seen = self.sampling_state["prompts_seen"]
        return states

    def train_step(self, rollout_samples: list[Any], global_step: int) -> tuple[dict[str, Any], int]:
        """Train as the host does; add what sampling saw to its metrics."""
        if not isinstance(rollout_samples, RolloutBatch):
            return super().train_step(rollout_samples, global_step)  # type: ignore[misc]
        for judged in rollout_samples.judged:
            self.pass_rates.add(judged)
        self._prompts_seen = rollout_samples.seen
        ray.get(self.actor_model_group.async_run_method("follow_schedule", rollout_samples.progress))
        status, step = super().train_step(rollout_samples, global_step)  # type: ignore[misc]
        status.update(rollout_samples.metrics)
        return status, step

    def save_logs_and_checkpoints(self, global_step: int, logs_dict: Any = None, client_states: Any = None) -> None:
        """Save as the host does, with the ledger in the client state."""
        if client_states is not None and len(self.pass_rates):
            client_states[SAMPLING_STATE] = {
                "pass_rates": self.pass_rates.state_dict(),
                "prompts_seen": self._prompts_seen,
            }
        super().save_logs_and_checkpoints(global_step, logs_dict, client_states)  # type: ignore[misc]
