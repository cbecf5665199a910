"""GTPO: reward spread over the tokens at one place by their share of entropy (arXiv 2508.04349).

    r_it =  a1 r_i + a2 d_t H_it / sum_k H_kt                correct rollouts that have a t-th token, d_t of them
    r_jt = -a1     - a2 h_t (1 / H_jt) / sum_k (1 / H_kt)    wrong ones, h_t of them

A token that the policy was unsure of gets more in a correct rollout and less blame in a wrong one. With a1 + a2 = 1
what the rollouts get at a place stays the same.

`form` says what becomes of r:

- `spread` (default): r_it / r_i multiplies the base, A_it = A_i (a1 + a2 d_t H_it / sum_k H_kt), so the group's
  advantages are spread as its rewards are. This is what composes with a rollout-level base.
- `paper`: (r_it - mean) / std over the tokens of the group's correct rollouts, and apart from them of its wrong ones
  (equation 6 of later versions of the paper, as two independent implementations have it; its text was at hand in
  excerpts without equations). Either side has the mean 0: what is left is which of its tokens, not which rollout.

a1 is 1 - `alpha`; the paper's experiments take 1 and 0.1. A group without both kinds keeps its base: the paper's
dynamic sampling drops such groups.

Assumptions: places are comparable across rollouts. Entropies carry no gradient and are those before the update.
Cost: entropies in the forward pass for old log-probabilities, and sums over columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from openrlhf_ktae.credit.batch import CreditBatch, TokenCredit
from openrlhf_ktae.credit.registry import register

LEAST_ENTROPY = 1e-6
"""Nats: a token that the policy was sure of has an inverse all the same."""
LEAST_STD = 1e-6


@dataclass(frozen=True)
class GtpoOptions:
    """`--algo.gtpo.*`."""

    alpha: float = 0.1
    """Share of the reward that is spread by entropy, from 0 (`spread`: the base) to 1."""

    form: Literal["spread", "paper"] = "spread"
    """`spread` multiplies the base, `paper` takes its place."""

    def __post_init__(self) -> None:
        """Check both."""
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha={self.alpha!r} must be from 0 to 1")
        if self.form not in ("spread", "paper"):
            raise ValueError(f"form={self.form!r} is not one of spread, paper")


@register("gtpo", options=GtpoOptions, needs=("entropies",), by_verdict=True)
def gtpo(batch: CreditBatch, options: GtpoOptions) -> TokenCredit:
    """Return the spread rewards in the chosen form, minus the base."""
    entropies_N = batch.needed("entropies")
    entropy_A = np.maximum(entropies_N.numpy()[batch.at_A].astype(np.float64), LEAST_ENTROPY)
    correct_A = batch.correct_B[batch.row_A]
    counted_A = (batch.known_B & batch.mixed_Q[batch.group_B])[batch.row_A]
    pull_A = np.where(correct_A, entropy_A, 1.0 / entropy_A)
    side_A = 2 * batch.column_A + correct_A
    pulls, count = np.bincount(side_A, pull_A * counted_A), np.bincount(side_A, counted_A)
    share_A = pull_A * count[side_A] / np.where(pulls > 0, pulls, 1.0)[side_A]
    factor_A = 1.0 - options.alpha + options.alpha * share_A
    base_A = batch.base_N.numpy()[batch.at_A].astype(np.float64)
    if options.form == "paper":
        group_A = 2 * batch.group_B[batch.row_A] + correct_A
        wanted_A = _normalised(np.where(correct_A, factor_A, -factor_A), group_A, counted_A)
        added_A = wanted_A - base_A
    else:
        added_A = base_A * options.alpha * (share_A - 1.0)
    return TokenCredit(batch.spread(np.where(counted_A, added_A, 0.0)), {"share": batch.spread(share_A * counted_A)})


def _normalised(values_A: NDArray[Any], group_A: NDArray[Any], counted_A: NDArray[np.bool_]) -> NDArray[Any]:
    """Return (value - mean) / std over the counted tokens of each group; 0 where they are all equal."""
    count = np.maximum(np.bincount(group_A, counted_A), 1.0)
    away_A = values_A - (np.bincount(group_A, values_A * counted_A) / count)[group_A]
    std = np.sqrt(np.bincount(group_A, away_A**2 * counted_A) / count)
    return np.where(std[group_A] > LEAST_STD, away_A / np.maximum(std, LEAST_STD)[group_A], 0.0)
