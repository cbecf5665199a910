"""Departure from the host: token-level credit on top of its rollout-level advantages.

Shapes: `B` rollouts of the batch, `T` positions of the longest one (prompt and response, one less than its tokens).
"""

from __future__ import annotations

import time
from typing import Any

import torch
from openrlhf.trainer.ppo_utils.experience import Experience

from openrlhf_ktae.faults.nonfinite import refuse_nonfinite
from openrlhf_ktae.ktae import KTAEConfig, top_key_tokens, warm_up
from openrlhf_ktae.run.rollout_record import Credit
from openrlhf_ktae.trainer.ppo_utils.credit_metrics import credit_metrics
from openrlhf_ktae.trainer.ppo_utils.excluded_rollouts import advantages_without, excluded_rollouts
from openrlhf_ktae.trainer.ppo_utils.raw_scores import raw_scores
from openrlhf_ktae.trainer.ppo_utils.shaped_experience_maker import ShapedExperienceMaker
from openrlhf_ktae.trainer.ppo_utils.sharded_ktae import key_token_values


class BrokenGroup(RuntimeError):
    """The rollouts that the host takes for a group do not answer the same prompt."""


class KTAEExperienceMaker(ShapedExperienceMaker):
    """The host's experience maker, with our shaping; after its advantages are made, K of each action token is added.

    `metrics` and `key_tokens` describe the last batch; so does `credit`, where `keep_credit` is set.
    """

    keep_credit = False
    credit: Credit | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.ktae = self.args.algo.ktae
        self.config = KTAEConfig(**self.ktae.config)
        if self.ktae.enable:
            warm_up()  # while the models load, not in the first step
        self._random = torch.Generator().manual_seed(self.args.train.seed)
        self.key_tokens: dict[str, list[dict[str, Any]]] = {}

    @torch.no_grad()
    def make_experience_batch(self, rollout_samples: list[Experience]) -> list[Experience]:
        """Do as the host does.

        Raises:
            NonFiniteBatch: a score, a log-probability or an advantage is not a finite number.
        """
        experiences = super().make_experience_batch(rollout_samples)
        refuse_nonfinite(experiences)
        return experiences

    @torch.no_grad()
    def compute_advantages_and_returns(self, experiences: list[Experience]) -> list[Experience]:
        """Let the host compute its advantages, then add K in place (or only log it, in shadow).

        Correctness is read before: the host shapes rewards in place, and a late answer is not a wrong one.

        Raises:
            BrokenGroup: the batch does not consist of whole groups.
        """
        scores_B = torch.cat([credited_scores(experience) for experience in experiences])
        excluded_B = excluded_rollouts(experiences)
        host = super().compute_advantages_and_returns
        if excluded_B.any():
            experiences = advantages_without(excluded_B, experiences, self.args, host)
        else:
            experiences = host(experiences)
        self.credit = None
        if not self.ktae.enable:
            self._keep(experiences, scores_B, None)
            return experiences
        started = time.perf_counter()
        group_ids_B = group_ids(experiences, self.args.rollout.n_samples_per_prompt)
        token_ids_BT = padded([e.sequences[:, 1:] for e in experiences])
        action_mask_BT = padded([e.action_mask for e in experiences]).bool()
        special_ids = tuple(self.tokenizer.all_special_ids)
        labels_B = self._shuffled(scores_B, group_ids_B) if self.ktae.shuffle_labels else scores_B
        batch = (token_ids_BT, action_mask_BT, labels_B, group_ids_B)
        values = key_token_values(*batch, self.config, special_ids, self.ktae.num_workers)
        values_BT = values.values_BT.to(torch.float32)
        advantages_BT = padded([e.advantages for e in experiences])
        if self.config.weight != 0 and not self.ktae.shadow:
            add_in_place(experiences, values_BT)
        self._keep(experiences, scores_B, values_BT)
        self.metrics = credit_metrics(values, values_BT, advantages_BT, action_mask_BT)
        self.key_tokens = {
            side: self._named(top_key_tokens(token_ids_BT, action_mask_BT, values_BT, self.ktae.top_tokens, largest=up))
            for side, up in (("highest", True), ("lowest", False))
        }
        self.metrics["ktae/seconds"] = time.perf_counter() - started
        return experiences

    def _shuffled(self, scores_B: torch.Tensor, group_ids_B: torch.Tensor) -> torch.Tensor:
        """Return scores permuted within each group: a control for which K can mean nothing."""
        shuffled_B = scores_B.clone()
        for group in torch.unique(group_ids_B):
            rows = torch.nonzero(group_ids_B == group).flatten()
            shuffled_B[rows] = scores_B[rows[torch.randperm(len(rows), generator=self._random)]]
        return shuffled_B

    def random_state(self) -> torch.Tensor:
        """Return the state of the generator that shuffles labels."""
        return self._random.get_state()

    def load_random_state(self, state: torch.Tensor) -> None:
        """Set what `random_state` returned."""
        self._random.set_state(state)

    def _keep(self, experiences: list[Experience], scores_B: torch.Tensor, values_BT: torch.Tensor | None) -> None:
        """Keep what the record of rollouts needs, if this batch is to be recorded."""
        if not self.keep_credit:
            return
        advantages_BT = padded([e.advantages for e in experiences]).float()
        none_BT = torch.zeros_like(advantages_BT)
        values_BT = none_BT if values_BT is None else values_BT
        added_BT = none_BT if self.config.weight == 0 or self.ktae.shadow else values_BT
        self.credit = Credit(
            token_ids_BT=padded([e.sequences[:, 1:] for e in experiences]),
            action_mask_BT=padded([e.action_mask for e in experiences]).bool(),
            attention_mask_BT=padded([e.attention_mask[:, 1:] for e in experiences]),
            first_ids_B=torch.cat([e.sequences[:, 0] for e in experiences]),
            scores_B=scores_B,
            rewards_B=torch.cat([e.info["reward"].flatten().float() for e in experiences]),
            groups_B=group_ids(experiences, self.args.rollout.n_samples_per_prompt),
            values_BT=values_BT,
            without_k_BT=advantages_BT - added_BT,
            advantages_BT=advantages_BT,
            prompts=[prompt for e in experiences for prompt in e.prompts],
            labels=[label for e in experiences for label in e.labels],
        )

    def _named(self, tokens: list[tuple[int, float, int]]) -> list[dict[str, Any]]:
        return [
            {"id": int(i), "text": self.tokenizer.decode([int(i)]), "k": round(float(k), 4), "count": int(n)}
            for i, k, n in tokens
        ]


def credited_scores(experience: Experience) -> torch.Tensor:
    """Return the raw scores (B,), NaN for a rollout without an action token: there is nothing to credit."""
    acted_B = experience.action_mask.bool().any(dim=-1)
    return raw_scores(experience).masked_fill(~acted_B, torch.nan)


def group_ids(experiences: list[Experience], samples: int) -> torch.Tensor:
    """Return the group of each rollout (B,): the host numbers rollouts prompt by prompt in `index`.

    Raises:
        BrokenGroup: a group has not `samples` rollouts or more than one prompt; the host would not notice.
    """
    index = [i for experience in experiences for i in experience.index]
    prompts = [prompt for experience in experiences for prompt in experience.prompts]
    members: dict[int, list[str]] = {}
    for i, prompt in zip(index, prompts, strict=True):
        members.setdefault(i // samples, []).append(prompt)
    for group, texts in members.items():
        if len(texts) != samples or len(set(texts)) != 1:
            raise BrokenGroup(
                f"group {group} has {len(texts)} rollouts of {len(set(texts))} prompts instead of {samples} of one. "
                "An agent (--train.agent_func_path) must return exactly --rollout.n_samples_per_prompt samples."
            )
    return torch.tensor([i // samples for i in index])


def padded(parts: list[torch.Tensor]) -> torch.Tensor:
    """Return the rows of all micro-batches as one tensor (B, T), zero to the right of shorter ones."""
    width = max(part.size(1) for part in parts)
    return torch.cat([torch.nn.functional.pad(part, (0, width - part.size(1))) for part in parts])


def add_in_place(experiences: list[Experience], values_BT: torch.Tensor) -> None:
    """Add each rollout's row of `values_BT` to its advantages; prompt and padding positions carry 0."""
    row = 0
    for experience in experiences:
        rows, width = experience.advantages.shape
        experience.advantages = experience.advantages + values_BT[row : row + rows, :width]
        row += rows
