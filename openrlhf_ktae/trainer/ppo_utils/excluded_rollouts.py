"""Departure from the host: rollouts that say nothing (unknown verdict, no action token) leave the group statistics.

The host's arithmetic stays the host's: while it runs, an excluded rollout carries the mean reward of the others of its
group, which leaves their mean as it is, and no action tokens, which keeps it out of sums over the batch. What this
changes in a standard deviation or in a leave-one-out mean is a known factor, undone afterwards. An excluded rollout
ends with advantage 0.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import torch
from openrlhf.trainer.ppo_utils.experience import Experience

from openrlhf_ktae.trainer.ppo_utils.raw_scores import raw_scores
from openrlhf_ktae.trainer.ppo_utils.response_lengths import PENALTIES, apply_length_penalties, levelled, without

LOGGED = ("score", "reward", "kl", "logprobs_diff")  # the last two are the host's means over tokens: 0 / 0 without one


def excluded_rollouts(experiences: list[Experience]) -> torch.Tensor:
    """Return True (B,) where the score or the reward is NaN or no token was generated."""
    parts = []
    for e in experiences:
        parts.append(raw_scores(e).isnan() | e.rewards.flatten().isnan() | ~e.action_mask.bool().any(dim=1))
    return torch.cat(parts)


def advantages_without(
    excluded_B: torch.Tensor,
    experiences: list[Experience],
    args: SimpleNamespace,
    compute: Callable[[list[Experience]], list[Experience]],
) -> list[Experience]:
    """Let `compute`, the host's method, make the advantages (B, T) as if the excluded rollouts were not there.

    Args:
        excluded_B: True on rollouts to leave out.
        experiences: micro-batches, changed in place as the host does; the figures of `LOGGED` in `info` of an
            excluded rollout become the mean of the others of its group, so that logged means are those of the others.
        args: the run's options; `rollout.n_samples_per_prompt` (G) and `algo.advantage.estimator` are read.
        compute: computes advantages of `experiences` in place and returns them.
    """
    samples, estimator = args.rollout.n_samples_per_prompt, args.algo.advantage.estimator
    sizes = [len(e.index) for e in experiences]
    group_B = torch.tensor([i for e in experiences for i in e.index]) // samples
    apply_length_penalties(experiences, args)
    rewards_B = mean_imputed(
        torch.cat([e.rewards.flatten() for e in experiences]).float(), excluded_B, group_B, estimator
    )
    masks = [e.action_mask for e in experiences]
    excluded = excluded_B.split(sizes)
    for e, rewards, out in zip(experiences, rewards_B.split(sizes), excluded, strict=True):
        e.rewards = rewards
        e.action_mask = e.action_mask * (~out).unsqueeze(1).to(e.action_mask.dtype)
    with without(args.reward, *PENALTIES):  # done above; not a second time
        experiences = compute(experiences)
    kept_B = kept_of_group(excluded_B, group_B)
    index_B = torch.tensor([i for e in experiences for i in e.index])
    rewards_B = levelled(torch.cat([e.rewards for e in experiences]), index_B, samples)
    added = correction(rewards_B, kept_B, group_B, samples, estimator).split(sizes)
    spread = std_correction(kept_B, samples).split(sizes)
    _impute_info(experiences, excluded_B, group_B)
    for e, mask, out, more, std in zip(experiences, masks, excluded, added, spread, strict=True):
        e.action_mask = mask
        e.advantages = (e.advantages + more.unsqueeze(1) * mask).masked_fill(out.unsqueeze(1), 0.0)
        if "group_reward_std" in e.info:
            e.info["group_reward_std"] = e.info["group_reward_std"] * std
    return experiences


def mean_imputed(
    values_B: torch.Tensor, excluded_B: torch.Tensor, group_B: torch.Tensor, estimator: str = ""
) -> torch.Tensor:
    """Return the values with those of excluded rollouts replaced by the mean of the others of their group.

    With `flash_reinforce`, whose baseline is the batch's mean, and in a group without others: the batch's mean, or 0.
    """
    values_B = values_B.clone()
    kept = ~excluded_B
    overall = values_B[kept].mean() if kept.any() else values_B.new_zeros(())
    for group in group_B[excluded_B].unique():
        rows = group_B == group
        others = values_B[rows & kept]
        mean = others.mean() if len(others) and estimator != "flash_reinforce" else overall
        values_B[rows & excluded_B] = mean
    return values_B


def kept_of_group(excluded_B: torch.Tensor, group_B: torch.Tensor) -> torch.Tensor:
    """Return, for each rollout, how many of its group are not excluded (B,)."""
    _, number_B = group_B.unique(return_inverse=True)
    return torch.bincount(number_B, weights=(~excluded_B).float())[number_B].float()


def correction(
    rewards_B: torch.Tensor, kept_B: torch.Tensor, group_B: torch.Tensor, samples: int, estimator: str
) -> torch.Tensor:
    """Return what to add (B,) to an advantage among G rollouts with imputed means to have one among the k others.

    With deviations d from the group's mean: group_norm divides by sqrt(sum d^2 / (G - 1)) where k - 1 is right; rloo
    gives G d / (G - 1) where k d / (k - 1) is right. A single kept rollout deviates by 0, so nothing is added.
    """
    added_B = torch.zeros_like(rewards_B)
    if estimator not in ("group_norm", "rloo") or samples < 2:
        return added_B
    for group in group_B[(kept_B > 1) & (kept_B < samples)].unique():
        rows = group_B == group
        k, rewards = float(kept_B[rows][0]), rewards_B[rows]
        deviations = rewards - rewards.mean()
        if estimator == "group_norm":
            normalised = deviations / (rewards.std() + 1e-9)
            added_B[rows] = normalised * (((k - 1) / (samples - 1)) ** 0.5 - 1)
        else:
            added_B[rows] = deviations * (k / (k - 1) - samples / (samples - 1))
    return added_B


def std_correction(kept_B: torch.Tensor, samples: int) -> torch.Tensor:
    """Return the factor (B,) from the logged standard deviation of G rewards to that of the k others."""
    return torch.where(kept_B > 1, ((samples - 1) / (kept_B - 1).clamp(min=1)).sqrt(), torch.zeros_like(kept_B))


def _impute_info(experiences: list[Experience], excluded_B: torch.Tensor, group_B: torch.Tensor) -> None:
    sizes = [len(e.index) for e in experiences]
    for key in LOGGED:
        if not all(key in e.info for e in experiences):
            continue
        values_B = torch.cat([e.info[key].flatten() for e in experiences]).float()
        filled = mean_imputed(values_B, excluded_B, group_B)
        for e, part in zip(experiences, filled.split(sizes), strict=True):
            e.info[key] = part
