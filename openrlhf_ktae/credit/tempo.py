"""TEMPO: the rollout's advantage plus what a token changes in the value of its prefix (arXiv 2509.18314).

    A_it = (r_i - mean r + V(s_t+1) - V(s_t)) / std r

V of a prefix is the mean reward of the group's rollouts that begin with it. Where rollouts do not branch the difference
is 0, so most tokens keep their rollout's advantage. Here V is the mean of the rollouts' advantages, which are
(r - mean) / std with `--algo.credit.base group_norm`: the same number, and the formula without std with `dr_grpo`.

Assumptions: rollouts of a group share prefixes, which they do for some tens of tokens; few rollouts share one, so V is
noisy. The published code (fatebreaker/tempo, estimator `tidepo`) computes the same; a rollout without a verdict, which
it does not know, takes no part here.

Cost: reads the tokens of shared prefixes once; a fraction of a sort of all tokens.
"""

from __future__ import annotations

import torch

from openrlhf_ktae.credit.batch import CreditBatch, TokenCredit
from openrlhf_ktae.credit.registry import NoOptions, register


@register("tempo")
def tempo(batch: CreditBatch, options: NoOptions) -> TokenCredit:
    """Return the change of the prefix value at each token."""
    from openrlhf_ktae.credit.prefixes import prefix_tree  # on first use: it compiles

    change_N, count_N = prefix_tree(batch)
    return TokenCredit(torch.from_numpy(change_N), {"shared_by": torch.from_numpy(count_N)})
