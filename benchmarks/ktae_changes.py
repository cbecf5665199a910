"""Values of prefixes from statistics like KTAE's: the second variation on KTAE that docs/evidence.md measures.

The first variation, keys with context, is `ktae_by_context`. Legend as in `openrlhf_ktae.credit.batch`: `A` action
tokens, `B` rollouts; `K` keys (`credit/ktae_by_context.py`).
"""

from __future__ import annotations

import numpy as np
import torch

from openrlhf_ktae.credit import CreditBatch
from openrlhf_ktae.credit.ktae_by_context import keys

PRIOR = 1.0
"""Number of pseudo-rollouts with the group's mean score that are added to the rollouts that have a key."""


def by_value(batch: CreditBatch) -> torch.Tensor:
    """Return the change of a prefix's value, at the base's scale (N,).

        V_t = V_t-1 + w(id) (V(key) - V_t-1),  A_t = c (V_t - V_t-1)

    V(key) is the mean score of the group's rollouts that have the key and of `PRIOR` pseudo-rollouts with the group's
    mean. w(id) is the share of the spread of scores, over all keys of the id in the batch, that chance
    (hypergeometric) does not explain. It is 0 for an id without information, which then leaves the prefix's value
    unchanged. The last token gets the rest, up to the score. One-sided groups keep their base.
    """
    row_A, right_B = batch.row_A, batch.correct_B.astype(float)
    numbers_A = keys(batch, torch.zeros_like(batch.mask_N))
    key_A = np.unique([batch.group_B[row_A], numbers_A], axis=1, return_inverse=True)[1].reshape(-1)
    pairs = np.unique(np.stack([key_A, row_A]), axis=1)  # each rollout once per key
    group_K, id_K = np.zeros((2, key_A.max() + 1), np.int64)
    group_K[key_A], id_K[key_A] = batch.group_B[row_A], batch.token_ids_N.numpy()[batch.at_A]
    has_K, right_K = np.bincount(pairs[0]), np.bincount(pairs[0], right_B[pairs[1]])
    size_Q = np.bincount(batch.group_B).astype(float)
    mean_Q = np.bincount(batch.group_B, right_B) / size_Q
    mean_K, size_K = mean_Q[group_K], size_Q[group_K]
    chance_K = has_K * mean_K * (1 - mean_K) * (size_K - has_K) / np.maximum(size_K - 1, 1)
    chance, spread = np.bincount(id_K, chance_K), np.bincount(id_K, (right_K - has_K * mean_K) ** 2)
    known = (chance > 1e-9) & (spread > 1e-9)
    weight_A = np.where(known, np.maximum(0, 1 - chance / np.where(known, spread, 1)), 0)[id_K[key_A]]
    value_A = ((right_K + PRIOR * mean_K) / (has_K + PRIOR))[key_A]
    change_A, mixed_B = np.zeros(len(key_A)), batch.mixed_Q[batch.group_B]
    for b in np.flatnonzero(mixed_B & (batch.lengths_B > 0)):
        value = mean_Q[batch.group_B[b]]
        for i in range(batch.first_B[b], batch.first_B[b] + batch.lengths_B[b]):
            change_A[i] = weight_A[i] * (value_A[i] - value)
            value += change_A[i]
        change_A[i] += right_B[b] - value
    scale = np.abs(batch.advantage_B).sum() / max(np.abs(right_B - mean_Q[batch.group_B]).sum(), 1e-9)
    base_A = batch.base_N.numpy()[batch.at_A]
    return batch.spread(np.where(mixed_B[row_A], scale * change_A, base_A))
