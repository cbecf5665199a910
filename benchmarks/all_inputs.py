"""Adds no credit, but needs every input, so that `--ktae.record_rollouts` stores all of them.

    --advantage_estimator custom --algo.credit.file benchmarks/all_inputs.py

`values` are sampled as `--algo.mc_value.*` says; a large `--algo.mc_value.every` samples none.
"""

import torch

from openrlhf_ktae.credit import NEEDS, CreditBatch, NoOptions, TokenCredit, register


@register("all_inputs", needs=NEEDS)
def all_inputs(batch: CreditBatch, options: NoOptions) -> TokenCredit:
    """Return zeros."""
    return TokenCredit(torch.zeros(len(batch.mask_N)))
