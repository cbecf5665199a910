"""KTAE on pairs of context and id instead of ids; docs/evidence.md says where it trains better than GRPO.

    A_it = A_i + K(context, id)

The context of a token is the last earlier token of the answer that also occurs in the prompt. In an answer that works
through a question, the context says which part of the question a token is about. The id does not: `10` is right after
one operand and wrong after another. This estimator is ours and not from a paper.

Assumptions: answers quote the prompt; if none does, the result is that of `ktae`. Options are those of `ktae`. Cost:
36 ns per token, up to 140 ns if half of the tokens are contexts, plus the cost of `in_prompt`.
"""

from dataclasses import replace

import numpy as np
import torch

from openrlhf_ktae.credit.batch import CreditBatch, Indices, TokenCredit
from openrlhf_ktae.credit.ktae import with_threshold
from openrlhf_ktae.credit.registry import register
from openrlhf_ktae.ktae import KTAEConfig, compute_key_token_values


@register("ktae_by_context", options=KTAEConfig, needs=("in_prompt",), by_verdict=True)
def ktae_by_context(batch: CreditBatch, options: KTAEConfig) -> TokenCredit:
    """Return the weighted K of each token's (context, id); special and excluded ids get 0 and are never a context."""
    excluded = torch.tensor([*batch.special_ids, *options.excluded_ids], dtype=torch.long)
    special_N = torch.isin(batch.token_ids_N, excluded)
    keys_N = torch.zeros_like(batch.token_ids_N, dtype=torch.int64)
    keys_N[batch.at_A] = torch.from_numpy(keys(batch, special_N))
    without_value = np.unique(keys_N[batch.mask_N & special_N])
    labels = batch.scores_B, batch.groups_B, replace(with_threshold(batch, options), excluded_ids=()), without_value
    return TokenCredit(compute_key_token_values(keys_N, batch.mask_N, *labels, row_edges=batch.edges_B))


def keys(batch: CreditBatch, special_N: torch.Tensor) -> Indices:
    """Return a number below 2^32 for each action token's (context, id): shape (A,)."""
    at_A, ids_N = batch.at_A, batch.token_ids_N.numpy()
    ids_A, ids = ids_N[at_A], int(ids_N.max(initial=0)) + 1
    asked_A = ((batch.needed("in_prompt") > 0.5) & ~special_N).numpy()[at_A]
    last_A = np.maximum.accumulate(np.where(asked_A, np.arange(len(at_A)), -1))
    before_A = np.concatenate([[-1], last_A])[:-1]
    contexts = np.unique(ids_A[asked_A])
    with_one_A = before_A >= batch.first_B[batch.row_A]
    context_A = np.zeros(len(at_A), np.int64)
    context_A[with_one_A] = 1 + np.searchsorted(contexts, ids_A[before_A[with_one_A]])
    pairs_A: Indices = context_A * ids + ids_A
    if (len(contexts) + 1) * ids > 1 << 32:
        pairs_A = np.unique(pairs_A, return_inverse=True)[1].astype(np.int64)
    return pairs_A
