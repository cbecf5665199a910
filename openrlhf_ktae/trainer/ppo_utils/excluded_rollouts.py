"""Departure from the host: rollouts without information (unknown verdict, no action token) leave group statistics.

The host's arithmetic is unchanged. While it runs, an excluded rollout has the mean reward of the other rollouts of its
group, which keeps the group's mean, and no action tokens, which keeps it out of sums over the batch. This mean
changes standard deviations and leave-one-out means by a known factor, which is undone afterwards. An excluded rollout
gets advantage 0.
"""

from collections.abc import Callable
from types import SimpleNamespace

import torch
from openrlhf.trainer.ppo_utils.experience import Experience

from openrlhf_ktae.trainer.ppo_utils.response_lengths import levelled

LOGGED = ("score", "reward", "kl", "logprobs_diff")  # the last two are means over tokens: 0 / 0 without any


def advantages_without(
    excluded_B: torch.Tensor,
    experiences: list[Experience],
    args: SimpleNamespace,
    compute: Callable[[list[Experience]], list[Experience]],
) -> list[Experience]:
    """Let `compute`, the host's method, compute advantages (B, T) as if the excluded rollouts did not exist.

    Args:
        excluded_B: True on rollouts to leave out.
        experiences: micro-batches, changed in place as the host does; the `LOGGED` entries in `info` of an excluded
            rollout become the mean of the other rollouts of its group, so that logged means exclude it.
        args: the run's options; `rollout.n_samples_per_prompt` (G) and `algo.advantage.estimator` are read.
        compute: computes advantages of `experiences` in place and returns them.
    """
    samples, estimator = args.rollout.n_samples_per_prompt, args.algo.advantage.estimator
    sizes = [len(e.index) for e in experiences]
    group_B = torch.tensor([i for e in experiences for i in e.index]) // samples
    rewards_B = mean_imputed(
        torch.cat([e.rewards.flatten() for e in experiences]).float(), excluded_B, group_B, estimator
    )
    masks = [e.action_mask for e in experiences]
    excluded = excluded_B.split(sizes)
    for e, rewards, out in zip(experiences, rewards_B.split(sizes), excluded, strict=True):
        e.rewards = rewards
        e.action_mask = e.action_mask * (~out).unsqueeze(1).to(e.action_mask.dtype)
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
    """Return the values; excluded rollouts get the mean of the other rollouts of their group.

    With `flash_reinforce`, whose baseline is the batch mean, and in fully excluded groups they get the mean of all
    rollouts that are not excluded, or 0 if there are none.
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
    """Return for each rollout (B,) how many rollouts of its group are not excluded."""
    _, number_B = group_B.unique(return_inverse=True)
    return torch.bincount(number_B, weights=(~excluded_B).float())[number_B].float()


def correction(
    rewards_B: torch.Tensor, kept_B: torch.Tensor, group_B: torch.Tensor, samples: int, estimator: str
) -> torch.Tensor:
    """Return the term (B,) to add to advantages over G rollouts, some imputed, to get those over the k kept ones.

    With deviations d from the group's mean, group_norm divides by sqrt(sum d^2 / (G - 1)) instead of
    sqrt(sum d^2 / (k - 1)). rloo gives G d / (G - 1) instead of k d / (k - 1). A single kept rollout has d = 0.
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
    """Return the factor (B,) from the logged standard deviation of G rewards to that of the k kept ones."""
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
