"""KTAE with keys of context and id in place of ids; docs/evidence.md says where it trains better than GRPO.

    --advantage_estimator custom --algo.credit.file examples/ktae_by_context.py
    --algo.credit.options '{"variant": "calibrated"}'

    A_it = A_i + K(context, id)

Context is the last token of the answer before that the prompt has too (`context_keys.py`). Options are those of
`--algo.ktae.*`; `excluded_ids` would be keys and means nothing here.
"""

import torch
from context_keys import keys

from openrlhf_ktae.credit import CreditBatch, TokenCredit, register
from openrlhf_ktae.ktae import KTAEConfig, compute_key_token_values


@register("ktae_by_context", options=KTAEConfig, by_verdict=True)
def ktae_by_context(batch: CreditBatch, options: KTAEConfig) -> TokenCredit:
    """Return the weighted K of each token's key; special ids get none."""
    keys_N = torch.zeros_like(batch.token_ids_N)
    keys_N[batch.at_A] = torch.from_numpy(keys(batch))
    labels = batch.scores_B, batch.groups_B, options
    found_N = compute_key_token_values(keys_N, batch.mask_N, *labels, row_edges=batch.edges_B).values_BT
    special_N = torch.isin(batch.token_ids_N, torch.tensor(batch.special_ids, dtype=torch.long))
    return TokenCredit(torch.where(special_N, 0.0, found_N))
