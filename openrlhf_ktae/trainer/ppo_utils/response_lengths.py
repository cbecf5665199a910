"""Departures from the host for long responses: DAPO's overlong shaping with the right limit, and masking.

Shapes: `B` rollouts of a micro-batch, `T` positions. Only action tokens count towards the length. The host measures
from the first to the last action token, including tool output. Without `--rollout.max_new_tokens` its limit is the
whole context, so its penalty never applies.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from openrlhf.trainer.ppo_utils import length_penalty as host
from openrlhf.trainer.ppo_utils.experience import Experience

from openrlhf_ktae.base.temporarily import temporarily

NO_PENALTIES: dict[str, Any] = {"overlong_buffer_len": None, "stop_properly_penalty_coef": None}
"""Set in `args.reward` once the penalties are applied, so that the host does not apply them again."""
ROUNDING = 1e-6  # of float32, relative to the group's largest absolute reward, or to 1 if that is larger


def response_tokens(experience: Experience) -> torch.Tensor:
    """Return the number of action tokens of each rollout (B,)."""
    return experience.action_mask.bool().sum(dim=-1)


def response_limits(experience: Experience, max_len: int, max_new_tokens: int | None) -> torch.Tensor:
    """Return the longest possible length of each response (B,): `max_len` minus prompt and tool tokens."""
    room = max_len - (experience.total_length.flatten().long() - response_tokens(experience))
    return room if max_new_tokens is None else room.clamp(max=max_new_tokens)


def overlong_penalty(tokens: torch.Tensor, limits: torch.Tensor, buffer: float, factor: float) -> torch.Tensor:
    """Return DAPO's penalty on the rewards (B,), in [-factor, 0] (arXiv 2503.14476, eq. 13).

    0 up to `limits - buffer` tokens, then falling linearly to `-factor` at the limit.
    """
    excess = tokens - (limits - buffer).clamp(min=0)
    return -excess.clamp(min=0, max=buffer) / buffer * factor


def shape_overlong(experiences: Sequence[Experience], args: SimpleNamespace) -> None:
    """Add the penalty to `rewards` in place if `--reward.overlong_buffer_len` is set; `scores` stay raw."""
    buffer = args.reward.overlong_buffer_len
    if buffer is None:
        return
    for experience in experiences:
        limits = response_limits(experience, args.data.max_len, args.rollout.max_new_tokens)
        penalty = overlong_penalty(response_tokens(experience), limits, buffer, args.reward.overlong_penalty_factor)
        experience.rewards = experience.rewards.float() + penalty.to(experience.rewards.device)


def apply_length_penalties(experiences: Sequence[Experience], args: SimpleNamespace) -> None:
    """Apply all length penalties to `rewards` in place: the overlong shaping above, and the host's others."""
    shape_overlong(experiences, args)
    with temporarily(args.reward, overlong_buffer_len=None):
        host.apply_length_penalties(list(experiences), args)


def levelled(rewards_B: torch.Tensor, index_B: torch.Tensor, samples: int) -> torch.Tensor:
    """Return the rewards (B,), set to 0 in groups whose rewards are equal up to rounding.

    This makes deviations from the group's mean exactly 0. The host divides them by the standard deviation plus 1e-9. In
    float32 the mean of eight rewards of 0.1 is off by 7e-9, which would give equal rewards an advantage of 7.

    Args:
        rewards_B: rewards of a batch of whole groups.
        index_B: the host's index of each rollout: its place in the batch sorted by prompt.
        samples: rollouts per group.
    """
    sorted_B = torch.empty_like(rewards_B)
    sorted_B[index_B] = rewards_B
    groups_QG = sorted_B.view(-1, samples)
    largest_Q1 = groups_QG.abs().amax(-1, keepdim=True).clamp(min=1.0)
    same_Q1 = groups_QG.amax(-1, keepdim=True) - groups_QG.amin(-1, keepdim=True) <= ROUNDING * largest_Q1
    return rewards_B.masked_fill(same_Q1.expand_as(groups_QG).reshape(-1)[index_B], 0.0)


@contextmanager
def levelled_rewards(experiences: Sequence[Experience], samples: int) -> Iterator[None]:
    """Temporarily replace `rewards` of the micro-batches by `levelled` ones; logged rewards are unaffected.

    The host overwrites `info["reward"]`, which it logs, with `rewards`, so both are restored.
    """
    before = [e.rewards for e in experiences]
    logged = [e.info.get("reward") for e in experiences]
    index_B = torch.tensor([i for e in experiences for i in e.index])
    rewards_B = levelled(torch.cat([rewards.flatten().float() for rewards in before]), index_B, samples)
    for experience, rewards in zip(experiences, rewards_B.split([len(e.index) for e in experiences]), strict=True):
        experience.rewards = rewards
    try:
        yield
    finally:
        for experience, rewards, info in zip(experiences, before, logged, strict=True):
            experience.rewards = rewards
            if info is not None:
                experience.info["reward"] = info


def mask_truncated(experiences: Sequence[Experience]) -> float:
    """Remove truncated rollouts from the loss, in place; return their share.

    Their rewards are already part of their groups' statistics.
    """
    cut, count = 0, 0
    for experience in experiences:
        truncated_B = experience.truncated.flatten().bool()
        experience.action_mask = experience.action_mask * (~truncated_B).unsqueeze(1).to(experience.action_mask.dtype)
        cut, count = cut + int(truncated_B.sum()), count + len(truncated_B)
    return cut / max(count, 1)
