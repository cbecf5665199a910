"""lambda-GRPO: each token's loss divided by the number of rollouts that share its prefix (arXiv 2509.21154).

    A_it = A_i / |lambda(i, t)|,  lambda(i, t) = rollouts of the group that begin with the tokens of i up to t

The paper shows that GRPO acts as a process reward model: a step is a shared prefix, and its advantage is the mean over
the rollouts that share it. A step shared by n rollouts then counts n times; the division corrects this.

Assumptions: one update per batch and a token-mean loss, as in the paper's proof. Paper and published code
(coli-saar/grpo-prm) also divide the penalty against the reference model. Here only the advantage is divided; a penalty
in the loss (`--algo.kl.use_loss`) is not. Rollouts without a verdict are not counted.

Cost: as for `tempo`.
"""

import torch

from openrlhf_ktae.credit.batch import CreditBatch, TokenCredit
from openrlhf_ktae.credit.registry import NoOptions, register


@register("lambda_grpo")
def lambda_grpo(batch: CreditBatch, options: NoOptions) -> TokenCredit:
    """Return base / count - base."""
    from openrlhf_ktae.credit.prefixes import prefix_tree

    count_N = torch.from_numpy(prefix_tree(batch)[1])
    return TokenCredit(batch.on_tokens(batch.base_N / count_N - batch.base_N), {"shared_by": count_N})
