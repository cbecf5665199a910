"""Advantages weighted by the token's probability, against the rule of improbable tokens (arXiv 2505.12929).

    A_it = A_i (alpha pi_it + 1 - alpha)

The gradient of log pi grows as 1 - pi, so improbable tokens rule an update; this takes alpha of it away.

Assumptions: pi is that of the policy before the update. alpha 0.2 is what the authors' script for logic puzzles has
(zhyang2226/AR-Lopti, `REWEIGHT_K`); the paper recommends other values for other tasks. Their second method, Lopti
(improbable tokens in an update of their own), is not here.

Cost: log-probabilities that a run has anyway; where a batch is one update, the pass that is otherwise left out.
"""

from __future__ import annotations

from dataclasses import dataclass

from openrlhf_ktae.credit.batch import CreditBatch, TokenCredit
from openrlhf_ktae.credit.registry import register


@dataclass(frozen=True)
class ProbReweightOptions:
    """`--algo.prob_reweight.*`."""

    alpha: float = 0.2
    """From 0 (the base) to 1 (advantage times probability)."""

    def __post_init__(self) -> None:
        """Check it."""
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha={self.alpha!r} must be from 0 to 1")


@register("prob_reweight", options=ProbReweightOptions, needs=("log_probs",))
def prob_reweight(batch: CreditBatch, options: ProbReweightOptions) -> TokenCredit:
    """Return base * alpha * (pi - 1)."""
    probabilities_N = batch.needed("log_probs").exp()
    return TokenCredit(
        batch.on_tokens(options.alpha * (probabilities_N - 1) * batch.base_N), {"probability": probabilities_N}
    )
