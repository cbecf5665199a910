"""Keys of tokens with context, for statistics that would otherwise count a token's id alone.

Context: the last token before that the prompt has too. In an answer that works through a question it says which part of
the question a token is about. An id alone cannot: `10` is right after one operand and wrong after another.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from openrlhf_ktae.credit import CreditBatch


def keys(batch: CreditBatch) -> NDArray[np.int64]:
    """Return the number of each action token's (group, context, id): shape (A,)."""
    ids_N, context_A = batch.token_ids_N.numpy(), np.full(len(batch.at_A), -1)
    for b, (first, length) in enumerate(zip(batch.first_B, batch.lengths_B, strict=True)):
        at = batch.at_A[first : first + length]
        asked = np.isin(ids_N[at], ids_N[batch.edges_B[b] : at[0]]) if length else np.zeros(0, bool)
        last = np.maximum.accumulate(np.where(asked, np.arange(length), -1))[:-1]
        context_A[first + 1 : first + length] = np.where(last < 0, -1, ids_N[at][last])
    triples = np.stack([batch.group_B[batch.row_A], context_A, ids_N[batch.at_A]])
    return np.unique(triples, axis=1, return_inverse=True)[1].reshape(-1)
