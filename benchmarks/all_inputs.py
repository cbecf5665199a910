"""Adds no credit, but needs every input, so that `--ktae.record_rollouts` stores all of them.

--advantage_estimator custom --algo.credit.file benchmarks/all_inputs.py

With a chains model, leave out `values` (one place, far behind the longest response): --algo.mc_value.every 1000
"""

import torch

from openrlhf_ktae.credit import NEEDS, CreditBatch, NoOptions, TokenCredit, register


@register("all_inputs", needs=NEEDS)
def all_inputs(batch: CreditBatch, options: NoOptions) -> TokenCredit:
    """Return zeros."""
    return TokenCredit(torch.zeros(len(batch.mask_N)))
