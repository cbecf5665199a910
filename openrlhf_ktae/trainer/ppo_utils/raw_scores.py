"""The judge's own scores of rollouts, before anything shapes them."""

from __future__ import annotations

import torch
from openrlhf.trainer.ppo_utils.experience import Experience


def raw_scores(experience: Experience) -> torch.Tensor:
    """Return the scores (B,) in fp32: the verifier's, or the rewards where a reward model gives no scores.

    NaN is an unknown verdict; so is one that nobody has given yet.
    """
    raw = experience.rewards if experience.scores is None else experience.scores
    if raw is None:
        return torch.full((len(experience.index),), torch.nan)
    return raw.detach().clone().float().flatten()
