"""lambda-GRPO: each token's loss divided by the number of rollouts that share its prefix (arXiv 2509.21154).

    A_it = A_i / |lambda(i, t)|,  lambda(i, t) = rollouts of the group that begin with the tokens of i up to t

GRPO is shown to be a process reward model whose step is a shared prefix and whose step advantage is the mean over the
rollouts that share it; a step that many share then weighs as many times. The division takes that out.

Assumptions: one update a batch and a token-mean loss, as in the paper's equivalence. Paper and published code
(coli-saar/grpo-prm) divide the penalty against the reference model too; here the advantage alone is divided, and a
penalty in the loss (`--algo.kl.use_loss`) is not. A rollout without a verdict is not counted.

Cost: as `tempo`.
"""

from __future__ import annotations

import torch

from openrlhf_ktae.credit.batch import CreditBatch, TokenCredit
from openrlhf_ktae.credit.registry import NoOptions, register


@register("lambda_grpo")
def lambda_grpo(batch: CreditBatch, options: NoOptions) -> TokenCredit:
    """Return base / count - base."""
    from openrlhf_ktae.credit.prefixes import prefix_tree

    count_N = torch.from_numpy(prefix_tree(batch)[1])
    return TokenCredit(batch.on_tokens(batch.base_N / count_N - batch.base_N), {"shared_by": count_N})
