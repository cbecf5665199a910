"""Advantages weighted by the token's probability, so that improbable tokens dominate less (arXiv 2505.12929).

    A_it = A_i (alpha pi_it + 1 - alpha)

The gradient of log pi grows with 1 - pi, so improbable tokens dominate an update. The factor reduces that by alpha.

Assumptions: pi is the policy before the update. alpha 0.2 comes from the authors' script for logic puzzles
(zhyang2226/AR-Lopti, `REWEIGHT_K`); the paper recommends other values for other tasks. Their second method, Lopti
(a separate update for improbable tokens), is not implemented.

Cost: log-probabilities, which most runs compute anyway. A run with one update per batch otherwise skips that pass.
"""

from dataclasses import dataclass

from openrlhf_ktae.credit.batch import CreditBatch, TokenCredit
from openrlhf_ktae.credit.registry import register


@dataclass(frozen=True)
class ProbReweightOptions:
    """`--algo.prob_reweight.*`."""

    alpha: float = 0.2
    """From 0 (the base) to 1 (advantage times probability)."""

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha={self.alpha!r} must be from 0 to 1")


@register("prob_reweight", options=ProbReweightOptions, needs=("log_probs",))
def prob_reweight(batch: CreditBatch, options: ProbReweightOptions) -> TokenCredit:
    """Return base * alpha * (pi - 1)."""
    probabilities_N = batch.needed("log_probs").exp()
    return TokenCredit(
        batch.on_tokens(options.alpha * (probabilities_N - 1) * batch.base_N), {"probability": probabilities_N}
    )
