"""Credit from the true state of a chain: a positive control for experiments with `examples/chains`.

    --advantage_estimator custom --algo.credit.file examples/chains/oracle.py

    A_it = c (V(state after t) - V(state before t))

The state is the number of hours given, and whether all is right; it determines the chance of a right answer. V is the
mean score of the batch's rollouts that reached the state. Before the first token it is the group's mean score, after
the last token the rollout's score. c brings scores to the scale of the base. Prompt and response are read from token
ids, so no label is needed. Rows that are not chains keep their base.
"""

import numpy as np
from make_task import on_track, read_problem, words_of

from openrlhf_ktae.credit import CreditBatch, NoOptions, TokenCredit, register


def states(batch: CreditBatch) -> np.ndarray:
    """Return the state after each action token (A,): twice the number of hours, plus 1 if all is right.

    It is -1 in rows that are not chains.
    """
    state_A = np.full(len(batch.at_A), -1)
    ids_N, first_B = batch.token_ids_N.numpy(), batch.first_B
    for b, (first, length) in enumerate(zip(first_B, batch.lengths_B, strict=True)):
        at = batch.at_A[first : first + length]
        problem = read_problem(words_of(ids_N[batch.edges_B[b] : at[0]])) if length else None
        if problem:
            state_A[first : first + length] = [2 * n + right for n, right in on_track(words_of(ids_N[at]), problem)]
    return state_A


@register("oracle", by_verdict=True)
def oracle(batch: CreditBatch, options: NoOptions) -> TokenCredit:
    """Return the change of the state's value, minus the base."""
    state_A, row_A = states(batch), batch.row_A
    known_A = batch.known_B[row_A] & (state_A >= 0)
    scores_B = np.where(batch.known_B, np.nan_to_num(batch.scores_B.numpy().astype(float)), 0.0)
    pairs = np.unique(np.stack([state_A[known_A], row_A[known_A]]), axis=1)  # each rollout once per state
    total, count = np.zeros((2, state_A.max(initial=0) + 1))
    np.add.at(total, pairs[0], scores_B[pairs[1]])
    np.add.at(count, pairs[0], 1)
    value_A = np.where(known_A, (total / np.maximum(count, 1))[state_A], 0.0)
    acted = batch.lengths_B > 0
    value_A[(batch.first_B + batch.lengths_B - 1)[acted]] = scores_B[acted]
    in_group = np.maximum(np.bincount(batch.group_B, batch.known_B), 1)
    mean_B = (np.bincount(batch.group_B, scores_B) / in_group)[batch.group_B]
    before_A = np.append(0.0, value_A)[: len(value_A)]
    before_A[batch.first_B[acted]] = mean_B[acted]
    sizes = [np.abs(values_B[batch.known_B]).sum() for values_B in (batch.advantage_B, scores_B - mean_B)]
    scale = sizes[0] / sizes[1] if min(sizes) > 0 else 1.0
    base_A = batch.base_N.numpy()[batch.at_A]
    wanted_A = np.where(known_A, scale * (value_A - before_A), base_A)
    return TokenCredit(batch.spread(wanted_A - base_A), {"right": batch.spread((state_A % 2 == 1).astype(np.float32))})
