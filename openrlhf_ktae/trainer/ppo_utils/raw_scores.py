"""The judge's scores of rollouts, before reward shaping."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from openrlhf.trainer.ppo_utils.experience import Experience

from openrlhf_ktae.trainer.ppo_utils.received import peek


def raw_scores(experience: Experience) -> torch.Tensor:
    """Return the scores (B,) in fp32: the verifier's, or the rewards if a reward model gives no scores.

    NaN means unknown, which includes rollouts not judged yet.
    """
    raw = experience.rewards if experience.scores is None else experience.scores
    if raw is None:
        return torch.full((len(experience.index),), torch.nan)
    return raw.detach().clone().float().flatten()


def plain_scores(rollouts: Sequence[Any]) -> list[float]:
    """Return `raw_scores` of single rollouts, which may hold plain numbers."""
    given = [peek(one, "rewards" if peek(one, "scores") is None else "scores") for one in rollouts]
    return torch.tensor([math.nan if one is None else float(one) for one in given], dtype=torch.float32).tolist()
