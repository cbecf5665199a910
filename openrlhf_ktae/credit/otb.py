"""Optimal token baseline: at each t, the group's mean weighted by how much each rollout so far moves the policy
(arXiv 2602.07078).

    A_it = G_i - B_t,  B_t = sum_i G_i W_it / sum_i W_it,  W_it = sum_{j <= t} (1 - 2 pi_ij + sum_v pi_v^2)

The sums over i cover the group's rollouts that have a t-th token. The bracket is the squared norm of the gradient of
log pi with respect to the logits, so W is the "energy" of the rollout up to t. G is the rollout's advantage: the base
(r - mean) / std becomes (r - B_t) / std. With `--algo.credit.base dr_grpo` (no std) this is the paper's formula, with
`group_norm` it is scaled.

Assumptions: rewards come at the end. t counts only tokens of the policy, as in verl's form for several turns. If only
one rollout has a t-th token, B_t would equal its G and cancel all credit, so the base is kept there. verl
(`handle_zero_tail`) does the same, but its base is the raw reward. Its weights for off-policy samples are left out.

Cost: sums of squares in the forward pass for old log-probabilities (a pass over the logits), and sums over columns.
"""

import numpy as np

from openrlhf_ktae.credit.batch import CreditBatch, TokenCredit
from openrlhf_ktae.credit.registry import NoOptions, register


@register("otb", needs=("log_probs", "sum_squares"))
def otb(batch: CreditBatch, options: NoOptions) -> TokenCredit:
    """Return minus the baseline B_t, or 0 where the base is kept."""
    log_probs_A, squares_A = (batch.needed(name).numpy()[batch.at_A] for name in ("log_probs", "sum_squares"))
    step_A = np.maximum(1.0 - 2.0 * np.exp(log_probs_A.astype(np.float64)) + squares_A, 0.0)
    until_A = np.cumsum(step_A)
    before_B = np.append(0.0, until_A)[batch.first_B]
    energy_A = until_A - before_B[batch.row_A]
    known_A = batch.known_B[batch.row_A]
    weight_A = np.where(known_A, energy_A, 0.0)
    columns = batch.column_A
    sums = np.bincount(columns, weight_A)
    alone = np.bincount(columns, known_A) < 2
    means = np.bincount(columns, weight_A * batch.advantage_B[batch.row_A]) / np.where(sums > 0, sums, 1.0)
    return TokenCredit(batch.spread(-np.where(alone, 0.0, means)[columns]), {"energy": batch.spread(energy_A)})
