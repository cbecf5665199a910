"""Departures from the host: token-level credit (`credit/`) on top of its rollout-level advantages.

Rewards are shaped by length, truncated responses may be masked, and unnecessary forward passes are skipped.

Shapes: `B` rollouts of the batch, `N` positions of all micro-batches end to end (prompt and response, one less than the
tokens of a row; see `ragged`).
"""

import time
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import ray
import torch
from openrlhf.trainer.ppo_utils import experience_maker as host
from openrlhf.trainer.ppo_utils.experience import Experience
from torch.nn.functional import pad

from openrlhf_ktae.base.temporarily import temporarily
from openrlhf_ktae.credit import (
    CUSTOM,
    CreditBatch,
    chosen_estimator,
    options_from,
    sample_batch,
    tokens_in_prompt,
)
from openrlhf_ktae.ktae import CreditSums, credit_sums, discounted_returns, warm_up
from openrlhf_ktae.record.rollouts import Credit
from openrlhf_ktae.trainer.nonfinite import refuse_nonfinite
from openrlhf_ktae.trainer.ppo_utils import host_speed
from openrlhf_ktae.trainer.ppo_utils.columns import NARROW, Experiences, Tables, micro_batches
from openrlhf_ktae.trainer.ppo_utils.continuations import VALUES
from openrlhf_ktae.trainer.ppo_utils.credit_metrics import credit_metrics
from openrlhf_ktae.trainer.ppo_utils.excluded_rollouts import advantages_without
from openrlhf_ktae.trainer.ppo_utils.old_log_probs import left_out, update_computes_log_probs
from openrlhf_ktae.trainer.ppo_utils.ragged import Memory, Pieces, back_to_tables, end_to_end, row_edges
from openrlhf_ktae.trainer.ppo_utils.raw_scores import raw_scores
from openrlhf_ktae.trainer.ppo_utils.response_lengths import (
    NO_PENALTIES,
    apply_length_penalties,
    levelled_rewards,
    mask_truncated,
)
from openrlhf_ktae.trainer.ppo_utils.token_figures import PLACE, Figures, apart, taken
from openrlhf_ktae.trainer.ray.restarting_models import RevivingExperienceMaker
from openrlhf_ktae.trainer.ray.tensors import send_tensors_plainly


class BrokenGroup(RuntimeError):
    """The rollouts that the host treats as a group do not answer the same prompt."""


class KTAEExperienceMaker(RevivingExperienceMaker):
    """The host's experience maker with the rewards and masks of `response_lengths`; credit is added to its advantages.

    `metrics` and `key_tokens` describe the last batch, and so does `credit` if `keep_credit` is set.
    """

    keep_credit = False
    credit: Credit | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        host_speed.install()
        self.options = self.args.algo.credit
        self.estimator = chosen_estimator(self.options.name, self.options.file)
        self.config = self.options.config
        if self.options.name == CUSTOM and self.estimator is not None:
            self.config = options_from(self.estimator, self.options.options)
        self._ids = torch.int64 if self.options.name == CUSTOM else torch.int32
        """Our estimators read int32 ids. A user's file gets int64, because torch requires it for some indices."""
        if self.estimator is not None:  # while the models load, not in the first step
            warm_up(self._ids)
            sample = sample_batch()
            self.estimator(replace(sample, token_ids_N=sample.token_ids_N.to(self._ids)), self.config)
        if ray.is_initialized():
            send_tensors_plainly()
        self.metrics: dict[str, float] = {}
        self._figures: list[dict[str, torch.Tensor]] = []
        self._memory = Memory()
        self._returns: Pieces | None = None
        self.shuffle = torch.Generator().manual_seed(self.args.train.seed)
        """Random generator that shuffles labels; its state is in a checkpoint."""
        self.key_tokens: dict[str, list[dict[str, Any]]] = {}

    @torch.no_grad()
    def make_experience_batch(self, rollout_samples: list[Experience]) -> list[Experience]:
        """Do as the host does, then remove truncated responses from the loss if `--actor.mask_truncated`.

        Raises NonFiniteBatch if a score is infinite, or an action token's log-probability or advantage is not finite.
        """
        experiences = super().make_experience_batch(rollout_samples)
        if self.args.actor.mask_truncated:
            self.metrics = {**self.metrics, "masked_truncated_share": mask_truncated(experiences)}
        refuse_nonfinite(experiences)
        return Experiences(experiences)

    def split_rollout_samples(self, rollout_samples: list[Experience]) -> list[Experience]:
        """Return the host's micro-batches; the host divides the rollouts, and `micro_batches` merges them."""
        with temporarily(host, Experience=SimpleNamespace(concat_experiences=lambda part, _: part)):
            parts: Any = super().split_rollout_samples(rollout_samples)
        return micro_batches(parts, self.tokenizer.pad_token_id, self._memory)

    @torch.no_grad()
    def make_experience(self, samples_list: list[Experience]) -> list[Experience]:
        """Do as the host does; attach token figures of the policy's pass, and values of prefixes, to micro-batches.

        Values move out of the host's `values` field, which belongs to a critic.
        """
        self._figures = []
        values = [samples.values for samples in samples_list]
        no_kl = self.initial_model_group is None or self.args.algo.kl.use_loss  # then the host averages zeros, 50 ms
        with temporarily(host, masked_mean=host_speed.mean_of_zeros) if no_kl else nullcontext():
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
        """Let the host compute its advantages, then add credit in place (or only log it, in shadow).

        Scores are read before rewards are shaped in place: a long answer is not a wrong one. Raises BrokenGroup
        if the batch does not consist of whole groups.
        """
        scores_B = torch.cat([credited_scores(experience) for experience in experiences])
        rewards_B = torch.cat([experience.rewards.flatten() for experience in experiences])
        excluded_B = scores_B.isnan() | rewards_B.isnan()
        apply_length_penalties(experiences, self.args)
        returns = self._returns = Pieces(self._memory, sum(e.action_mask.numel() for e in experiences))
        with temporarily(self.args.reward, **NO_PENALTIES):
            if excluded_B.any():
                experiences = advantages_without(excluded_B, experiences, self.args, self._hosts_advantages)
            else:
                experiences = self._hosts_advantages(experiences)
        self._returns = None
        if self.critic_model_group is None:
            for experience in experiences:
                experience.returns = None  # only a critic reads them
        self.credit = None
        figures = taken(experiences)
        if self.estimator is None:
            self._keep(experiences, scores_B, rewards_B, None)
            return experiences
        started = time.perf_counter()
        if "in_prompt" in self.options.needs:
            tables = [tokens_in_prompt(e.sequences, pad(e.action_mask, (1, 0)))[:, 1:] for e in experiences]
            figures = {**figures, "in_prompt": tables}
        batch = self._batch(experiences, scores_B, returns.whole_N, figures)
        credit = self.estimator(batch, self.config)
        added_N = credit.added_N if self.options.weight == 1 else credit.added_N * self.options.weight
        sums = credit_sums(batch.token_ids_N, batch.mask_N, added_N, batch.base_N, batch.edges_B)
        self.metrics = credit_metrics(batch, credit, sums, self.estimator.metrics_prefix)
        del batch, credit, returns
        if not self.silent:
            add_in_place(experiences, added_N)
        self._keep(experiences, scores_B, rewards_B, added_N, figures)
        self.key_tokens = self._named(sums)
        self.metrics[f"{self.estimator.metrics_prefix}/seconds"] = time.perf_counter() - started
        return experiences

    def _hosts_advantages(self, experiences: list[Experience]) -> list[Experience]:
        """Return the experiences with the host's advantages; equal rewards of a group give advantage 0."""
        divides = self.args.algo.advantage.estimator == "group_norm"
        samples = self.args.rollout.n_samples_per_prompt
        with levelled_rewards(experiences, samples) if divides else nullcontext():
            return super().compute_advantages_and_returns(experiences)

    @property
    def silent(self) -> bool:
        """Whether credit is only logged; the advantages then equal the base estimator's bit for bit."""
        own = getattr(self.config, "weight", 1.0)
        return bool(self.options.shadow or self.options.weight == 0 or own == 0)

    def _batch(
        self, experiences: list[Experience], scores_B: torch.Tensor, returns_N: torch.Tensor, figures: Figures
    ) -> CreditBatch:
        """Return the estimator's input; `figures` hold a value per token, one table for each micro-batch.

        Advantages are `returns_N`, without a copy, unless the host normalised them over the batch.
        """
        assert self.estimator is not None
        group_ids_B = group_ids(experiences, self.args.rollout.n_samples_per_prompt)
        masks = [e.action_mask for e in experiences]
        labels_B = self._shuffled(scores_B, group_ids_B) if self.options.shuffle_labels else scores_B
        needed = {name: figures[name] for name in self.estimator.needs if name in figures}
        advantages = [e.advantages for e in experiences]
        unchanged = all(map(torch.equal, back_to_tables(returns_N, advantages), advantages))
        return CreditBatch(
            token_ids_N=end_to_end([e.sequences[:, 1:] for e in experiences], self._ids, self._memory),
            mask_N=end_to_end(masks, torch.bool, self._memory),
            edges_B=row_edges(masks),
            scores_B=labels_B,
            groups_B=group_ids_B,
            base_N=returns_N if unchanged else end_to_end(advantages, torch.float32, self._memory),
            special_ids=tuple(self.tokenizer.all_special_ids),
            correct_threshold=self.args.algo.ktae.config.correct_threshold,
            **{f"{name}_N": end_to_end(tables, torch.float32) for name, tables in needed.items()},
        )

    @torch.no_grad()
    def get_cumulative_returns(self, rewards: torch.Tensor, action_mask: torch.Tensor, gamma: float) -> torch.Tensor:
        """Return the same (rows, T) as the host's loop over positions, bit for bit, from a compiled loop."""
        if rewards.dtype != torch.float32 or rewards.device.type != "cpu":
            return super().get_cumulative_returns(rewards, action_mask, gamma)
        rewards = rewards if action_mask is None else action_mask * rewards
        return discounted_returns(rewards, gamma, self._returns.next(rewards.shape) if self._returns else None)

    def _shuffled(self, scores_B: torch.Tensor, group_ids_B: torch.Tensor) -> torch.Tensor:
        """Return scores permuted within each group, a control experiment in which K carries no information."""
        shuffled_B = scores_B.clone()
        order_B = torch.argsort(group_ids_B, stable=True)
        _, sizes_Q = torch.unique_consecutive(group_ids_B[order_B], return_counts=True)
        for rows in order_B.split(sizes_Q.tolist()):
            shuffled_B[rows] = scores_B[rows[torch.randperm(len(rows), generator=self.shuffle)]]
        return shuffled_B

    def _keep(
        self,
        experiences: list[Experience],
        scores_B: torch.Tensor,
        rewards_B: torch.Tensor,
        values_N: torch.Tensor | None,
        figures: Figures | None = None,
    ) -> None:
        """Keep the tensors to record in `credit`, if this batch is to be recorded."""
        if not self.keep_credit:
            return
        tables = [e.action_mask for e in experiences]
        if values_N is None:
            values_N = torch.zeros(sum(table.numel() for table in tables))
        none = torch.zeros(())
        self.credit = Credit(
            micro_batches=experiences,
            scores_B=scores_B,
            rewards_B=rewards_B,
            groups_B=group_ids(experiences, self.args.rollout.n_samples_per_prompt),
            values=back_to_tables(values_N, tables),
            added=[none] * len(tables) if self.silent else back_to_tables(values_N, tables),
            figures={name: (figures or {})[name] for name in self.options.needs if name in (figures or {})},
        )

    def _named(self, sums: CreditSums) -> dict[str, list[dict[str, Any]]]:
        return {
            side: [
                {"id": i, "text": self.tokenizer.decode([i]), "k": round(k, 4), "count": count}
                for i, k, count in sums.top(self.options.top_tokens, largest)
            ]
            for side, largest in (("highest", True), ("lowest", False))
        }


def credited_scores(experience: Experience) -> torch.Tensor:
    """Return the raw scores (B,); NaN for a rollout without action tokens, which cannot get credit."""
    acted_B = experience.action_mask.any(dim=-1)
    return raw_scores(experience).masked_fill(~acted_B, torch.nan)


def group_ids(experiences: list[Experience], samples: int) -> torch.Tensor:
    """Return the group of each rollout (B,): the host numbers rollouts prompt by prompt in `index`.

    Raises BrokenGroup if a group does not have exactly `samples` rollouts of one prompt; the host would not notice.
    """
    index = [i for experience in experiences for i in experience.index]
    prompts = [prompt for experience in experiences for prompt in experience.prompts]
    groups = [i // samples for i in index]
    prompt_of = dict(zip(groups, prompts, strict=True))
    sizes = Counter(groups)
    wrong = [g for g, prompt in zip(groups, prompts, strict=True) if sizes[g] != samples or prompt != prompt_of[g]]
    if wrong:
        texts = {prompt for group, prompt in zip(groups, prompts, strict=True) if group == wrong[0]}
        raise BrokenGroup(
            f"group {wrong[0]} has {sizes[wrong[0]]} rollouts of {len(texts)} prompts instead of {samples} of one. "
            "An agent (--train.agent_func_path) must return exactly --rollout.n_samples_per_prompt samples."
        )
    return torch.tensor(groups)


def add_in_place(experiences: list[Experience], values_N: torch.Tensor) -> None:
    """Add each rollout's part of `values_N` to its advantages; prompt and padding positions carry 0."""
    for e, values in zip(experiences, back_to_tables(values_N, [e.advantages for e in experiences]), strict=True):
        e.advantages += values
