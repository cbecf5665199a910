"""Advantage plus a bonus for tokens at which the policy was uncertain (arXiv 2506.14758).

    A_it = A_i + min(alpha H_it, |A_i| / kappa)

H carries no gradient. The bonus is capped at a share of |A|, so no advantage changes its sign, and a rollout whose
advantage is 0 gets no bonus.

Assumptions: uncertain tokens begin steps worth exploring. The paper uses alpha 0.4 with GRPO (0.1 with PPO) and kappa
2. Formula and values come from excerpts and secondary sources, which agree, not from the full text or code.
Entropies are computed before the update.

Cost: entropies in the forward pass for old log-probabilities; a few operations per token.
"""

from dataclasses import dataclass

import torch

from openrlhf_ktae.credit.batch import CreditBatch, TokenCredit
from openrlhf_ktae.credit.registry import register


@dataclass(frozen=True)
class EntropyBonusOptions:
    """`--algo.entropy_bonus.*`."""

    alpha: float = 0.4
    """Advantage per nat of entropy, at least 0; 0 gives the base."""

    kappa: float = 2.0
    """The bonus is at most |A| / kappa; must be above 1, or the bonus could flip a wrong answer's advantage."""

    def __post_init__(self) -> None:
        if not 0 <= self.alpha < float("inf"):
            raise ValueError(f"alpha={self.alpha!r} must be a number of at least 0")
        if not self.kappa > 1:
            raise ValueError(f"kappa={self.kappa!r} must be above 1")


@register("entropy_bonus", options=EntropyBonusOptions, needs=("entropies",))
def entropy_bonus(batch: CreditBatch, options: EntropyBonusOptions) -> TokenCredit:
    """Return the bonus."""
    entropies_N = batch.needed("entropies")
    bonus_N = torch.minimum(options.alpha * entropies_N, batch.base_N.abs() / options.kappa)
    return TokenCredit(batch.on_tokens(bonus_N), {"entropy": entropies_N})
