"""Departures from the host: reward shaping by length, masked truncated responses, skipped forward passes."""

from contextlib import nullcontext
from typing import Any

import ray
import torch
from openrlhf.trainer.ppo_utils import experience_maker as host
from openrlhf.trainer.ppo_utils.experience import Experience

from openrlhf_ktae.base.temporarily import temporarily
from openrlhf_ktae.trainer.ppo_utils.columns import NARROW, Tables
from openrlhf_ktae.trainer.ppo_utils.continuations import VALUES
from openrlhf_ktae.trainer.ppo_utils.host_speed import mean_of_zeros
from openrlhf_ktae.trainer.ppo_utils.old_log_probs import left_out, update_computes_log_probs
from openrlhf_ktae.trainer.ppo_utils.response_lengths import (
    NO_PENALTIES,
    apply_length_penalties,
    levelled_rewards,
    mask_truncated,
)
from openrlhf_ktae.trainer.ppo_utils.token_figures import PLACE, apart
from openrlhf_ktae.trainer.ray.restarting_models import RevivingExperienceMaker


class ShapedExperienceMaker(RevivingExperienceMaker):
    """The host's experience maker with the rewards and masks of `response_lengths`.

    `metrics` describe the last batch.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.metrics: dict[str, float] = {}
        self._figures: list[dict[str, torch.Tensor]] = []

    @torch.no_grad()
    def make_experience(self, samples_list: list[Experience]) -> list[Experience]:
        """Do as the host does; attach token figures of the policy's pass, and values of prefixes, to micro-batches.

        Values move out of the host's `values` field, which belongs to a critic.
        """
        self._figures = []
        values = [samples.values for samples in samples_list]
        no_kl = self.initial_model_group is None or self.args.algo.kl.use_loss  # then the host averages zeros, 50 ms
        with temporarily(host, masked_mean=mean_of_zeros) if no_kl else nullcontext():
            experiences = super().make_experience(samples_list)
        figures = self._figures or [{} for _ in experiences]
        for experience, of_pass, of_prefixes in zip(experiences, figures, values, strict=True):
            setattr(experience, PLACE, of_pass if of_prefixes is None else {**of_pass, VALUES: of_prefixes})
        self._figures = []
        return experiences

    def _flatten_results(self, refs: Any, duplicate_factor: int) -> list[Any]:
        results, figures = apart(super()._flatten_results(refs, duplicate_factor))
        self._figures = figures or self._figures
        return results

    @torch.no_grad()
    def make_experience_batch(self, rollout_samples: list[Experience]) -> list[Experience]:
        """Do as the host does, then remove truncated responses from the loss if `--actor.mask_truncated`."""
        experiences = super().make_experience_batch(rollout_samples)
        if self.args.actor.mask_truncated:
            self.metrics = {**self.metrics, "masked_truncated_share": mask_truncated(experiences)}
        return experiences

    def _dispatch_forward(self, group: Any, sync_condition: bool, **kwargs: Any) -> Any:
        """Dispatch as the host does, except a policy pass that the update makes unnecessary (`old_log_probs`)."""
        rollouts = sum(len(sequences) for sequences in kwargs["sequences"])
        has_reference = self.initial_model_group is not None
        if group is self.actor_model_group and update_computes_log_probs(self.args, rollouts, has_reference):
            return [ray.put(left_out(kwargs["action_mask"]))]
        kwargs |= {name: Tables(kwargs[name], name) for name in NARROW.keys() & kwargs.keys()}
        return super()._dispatch_forward(group, sync_condition, **kwargs)

    @torch.no_grad()
    def compute_advantages_and_returns(self, experiences: list[Experience]) -> list[Experience]:
        """Shape rewards by length, then let the host compute its advantages; equal rewards give advantage 0."""
        apply_length_penalties(experiences, self.args)
        divides = self.args.algo.advantage.estimator == "group_norm"
        samples = self.args.rollout.n_samples_per_prompt
        with (
            temporarily(self.args.reward, **NO_PENALTIES),
            levelled_rewards(experiences, samples) if divides else nullcontext(),
        ):
            return super().compute_advantages_and_returns(experiences)
