"""The judge's scores of rollouts, before reward shaping."""

from __future__ import annotations

import torch
from openrlhf.trainer.ppo_utils.experience import Experience


def raw_scores(experience: Experience) -> torch.Tensor:
    """Return the scores (B,) in fp32: the verifier's, or the rewards if a reward model gives no scores.

    NaN means unknown, which includes rollouts not judged yet.
    """
    raw = experience.rewards if experience.scores is None else experience.scores
    if raw is None:
        return torch.full((len(experience.index),), torch.nan)
    return raw.detach().clone().float().flatten()
