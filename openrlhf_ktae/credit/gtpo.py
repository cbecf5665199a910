"""GTPO: reward distributed over the t-th tokens of a group by their share of entropy (arXiv 2508.04349).

    r_it =  a1 r_i + a2 d_t H_it / sum_k H_kt                for the d_t correct rollouts with a t-th token
    r_jt = -a1     - a2 h_t (1 / H_jt) / sum_k (1 / H_kt)    for the h_t wrong ones

Tokens at which the policy was uncertain get more reward in correct rollouts and less blame in wrong ones. With
a1 + a2 = 1 the total reward at each t is unchanged.

`form` decides how r is used:

- `spread` (default): r_it / r_i multiplies the base, A_it = A_i (a1 + a2 d_t H_it / sum_k H_kt), so the group's
  advantages are distributed as its rewards are. This form works with any rollout-level base.
- `paper`: (r_it - mean) / std over the tokens of the group's correct rollouts, and separately of its wrong ones
  (equation 6 of later versions of the paper, taken from two independent implementations that agree, not from its text).
  Each side has mean 0, so the credit compares the tokens of a side, not the rollouts.

a1 is 1 - `alpha`; the paper's experiments use a1 = 1 and a2 = 0.1. A group without both kinds keeps its base; the
paper's dynamic sampling drops such groups.

Assumptions: the t-th tokens of rollouts are comparable. Entropies carry no gradient and are computed before the update.
Cost: entropies in the forward pass for old log-probabilities, and sums over columns.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from openrlhf_ktae.credit.batch import CreditBatch, TokenCredit
from openrlhf_ktae.credit.registry import register

LEAST_ENTROPY = 1e-6
"""Nats; keeps 1 / H finite where the policy was certain of the token."""
LEAST_STD = 1e-6


@dataclass(frozen=True)
class GtpoOptions:
    """`--algo.gtpo.*`."""

    alpha: float = 0.1
    """Share of the reward that is distributed by entropy, from 0 (which with `spread` gives the base) to 1."""

    form: Literal["spread", "paper"] = "spread"
    """`spread` multiplies the base, `paper` replaces it."""

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha={self.alpha!r} must be from 0 to 1")
        if self.form not in ("spread", "paper"):
            raise ValueError(f"form={self.form!r} is not one of spread, paper")


@register("gtpo", options=GtpoOptions, needs=("entropies",), by_verdict=True)
def gtpo(batch: CreditBatch, options: GtpoOptions) -> TokenCredit:
    """Return the advantages from the distributed rewards in the chosen form, minus the base."""
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
    """Return (value - mean) / std over the counted tokens of each group; 0 if they are all equal."""
    count = np.maximum(np.bincount(group_A, counted_A), 1.0)
    away_A = values_A - (np.bincount(group_A, values_A * counted_A) / count)[group_A]
    std = np.sqrt(np.bincount(group_A, away_A**2 * counted_A) / count)
    return np.where(std[group_A] > LEAST_STD, away_A / np.maximum(std, LEAST_STD)[group_A], 0.0)
