"""Policy gradient only on forking tokens, the tokens with the highest entropy (arXiv 2506.01939).

    A_it = A_i if H_it is among the highest `share` of the batch's action tokens, else 0

As in the paper, the loss still divides by the number of all tokens. Tokens that tie with the last kept one are kept.

Assumptions: a few uncertain tokens decide how a response continues. The batch is all rollouts of a step; the paper uses
the mini-batch of an update, TRL (`top_entropy_quantile`) a micro-batch of each process. Entropies are computed before
the update. The paper uses those of the policy being updated, which are the same in the first update of a batch. A
penalty in the loss still counts every token.

Cost: entropies in the forward pass for old log-probabilities, and a partition of the tokens, a fraction of a sort.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch

from openrlhf_ktae.credit.batch import CreditBatch, TokenCredit
from openrlhf_ktae.credit.registry import register


@dataclass(frozen=True)
class EntropyMaskOptions:
    """`--algo.entropy_mask.*`."""

    share: float = 0.2
    """Share of action tokens to train on, above 0; 1 gives the base."""

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"share={self.share!r} must be above 0 and at most 1")


@register("entropy_mask", options=EntropyMaskOptions, needs=("entropies",), across_groups=True)
def entropy_mask(batch: CreditBatch, options: EntropyMaskOptions) -> TokenCredit:
    """Return minus the base at tokens whose entropy is below the threshold, else 0."""
    entropies_N = batch.needed("entropies")
    entropies_A = entropies_N.numpy()[batch.at_A[batch.known_B[batch.row_A]]]
    if not len(entropies_A):
        return TokenCredit(torch.zeros_like(batch.base_N))
    kept = max(1, math.ceil(options.share * len(entropies_A) - 1e-9))  # 0.2 of 35 tokens is 7, not 8
    threshold = np.partition(entropies_A, len(entropies_A) - kept)[len(entropies_A) - kept]
    left_out_N = torch.where(entropies_N < float(threshold), -batch.base_N, 0.0)
    return TokenCredit(batch.on_tokens(left_out_N), {"entropy": entropies_N})
