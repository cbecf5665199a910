"""TEMPO: the rollout's advantage plus the change of the prefix value at each token (arXiv 2509.18314).

    A_it = (r_i - mean r + V(s_t+1) - V(s_t)) / std r

V of a prefix is the mean reward of the group's rollouts that begin with it. The difference is 0 unless rollouts branch,
so most tokens keep their rollout's advantage. Here V is the mean of the rollouts' advantages. With
`--algo.credit.base group_norm` these are (r - mean) / std, which gives the formula above; `dr_grpo` omits std.

Assumptions: rollouts of a group share prefixes, in practice some tens of tokens. Few share a prefix, so V is noisy.
The published code (fatebreaker/tempo, estimator `tidepo`) computes the same, but has no unknown verdicts; rollouts with
one are ignored here.

Cost: reads the tokens of shared prefixes once; a fraction of a sort of all tokens.
"""

import torch

from openrlhf_ktae.credit.batch import CreditBatch, TokenCredit
from openrlhf_ktae.credit.registry import NoOptions, register


@register("tempo")
def tempo(batch: CreditBatch, options: NoOptions) -> TokenCredit:
    """Return the change of the prefix value at each token."""
    from openrlhf_ktae.credit.prefixes import prefix_tree  # on first use: it compiles

    change_N, count_N = prefix_tree(batch)
    return TokenCredit(torch.from_numpy(change_N), {"shared_by": torch.from_numpy(count_N)})
