"""Values of prefixes from sampled continuations, as in VinePPO (arXiv 2410.01679): the dear way, and a control.

    A_it = V(s_after) - V(s_before),  V(s) = mean score of responses sampled from s

`values_N` is V after each token where somebody sampled there, NaN elsewhere. Tokens between two such places form a
step, as in the paper, and each gets the difference of the step. Before the first token V is the mean score of the
group, at the end it is the rollout's own score. Scores are bare, so the advantage is that of `--algo.credit.base
dr_grpo`; with another base its scale is taken: std of the group's scores with `group_norm`, read off the base.

Assumptions: continuations come from the policy that is trained. Nothing here samples them: a run cannot give this
estimator what it needs, a program that has the values calls it. Cost: continuations, K responses for each place.
"""

from __future__ import annotations

import numpy as np

from openrlhf_ktae.credit.batch import CreditBatch, TokenCredit
from openrlhf_ktae.credit.registry import NoOptions, register


@register("mc_value", needs=("values",), by_verdict=True)
def mc_value(batch: CreditBatch, options: NoOptions) -> TokenCredit:
    """Return the difference of each step, minus the base."""
    values_A = batch.needed("values").numpy()[batch.at_A].astype(np.float64)
    scores_B = np.where(batch.known_B, np.nan_to_num(batch.scores_B.numpy().astype(np.float64)), 0.0)
    last_B = (batch.first_B + batch.lengths_B - 1)[batch.lengths_B > 0]
    values_A[last_B] = scores_B[batch.lengths_B > 0]
    ends = np.flatnonzero(~np.isnan(values_A))  # of steps; the last token of a rollout ends one
    step_A = np.searchsorted(ends, np.arange(len(values_A)))
    count_Q = np.maximum(np.bincount(batch.group_B, batch.known_B), 1.0)
    mean_B = (np.bincount(batch.group_B, scores_B) / count_Q)[batch.group_B]
    before = np.append(0.0, values_A[ends])[: len(ends)]
    first = np.diff(batch.row_A[ends], prepend=-1) > 0  # steps that begin a rollout
    before[first] = mean_B[batch.row_A[ends][first]]
    change_A = (values_A[ends] - before)[step_A]
    base_A = batch.base_N.numpy()[batch.at_A].astype(np.float64)
    credit_A = change_A * _scale(batch, scores_B, mean_B)[batch.row_A]
    return TokenCredit(batch.spread(credit_A - base_A), {"change": batch.spread(change_A)})


def _scale(batch: CreditBatch, scores_B: np.ndarray, mean_B: np.ndarray) -> np.ndarray:
    """Return how large the group's base is beside its centred scores (B,); 1 where either is 0."""
    sizes = [
        np.bincount(batch.group_B, np.abs(values_B) * batch.known_B)
        for values_B in (batch.advantage_B, scores_B - mean_B)
    ]
    known = (sizes[0] > 0) & (sizes[1] > 0)
    return np.where(known, sizes[0] / np.where(known, sizes[1], 1.0), 1.0)[batch.group_B]
