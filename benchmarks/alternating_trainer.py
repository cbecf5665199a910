"""The trainer of `benchmarks/ktae_step_cost.py`, in its own module so that Ray's workers can import it."""

from __future__ import annotations

from typing import Any

from openrlhf_ktae.trainer.ppo_trainer import KTAEPPOTrainer


class AlternatingTrainer(KTAEPPOTrainer):
    """Uses KTAE in even steps and only the base in odd ones."""

    def train_step(self, rollout_samples: list[Any], global_step: int) -> tuple[dict[str, Any], int]:
        """Train one step; only steps with KTAE have its metrics."""
        if not hasattr(self, "_estimator"):
            self._estimator = self.experience_maker.estimator
        self.experience_maker.estimator = self._estimator if global_step % 2 == 0 else None
        self.experience_maker.metrics, self.experience_maker.key_tokens = {}, {}
        result: tuple[dict[str, Any], int] = super().train_step(rollout_samples, global_step)
        return result
