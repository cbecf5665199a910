"""The oracle's credit times the token's probability, which trains better than GRPO; the oracle's credit does not.

    --advantage_estimator custom --algo.credit.file examples/chains/oracle_weighted.py

    A_it = pi_it c (V(state after t) - V(state before t))

Without the factor, credit is mostly blame on improbable tokens, whose gradients dominate an update (arXiv 2505.12929).
"""

from pathlib import Path

from openrlhf_ktae.credit import CreditBatch, NoOptions, TokenCredit, load_estimator, register

oracle = load_estimator(Path(__file__).with_name("oracle.py"))


@register("oracle_weighted", needs=("log_probs",), by_verdict=True)
def oracle_weighted(batch: CreditBatch, options: NoOptions) -> TokenCredit:
    """Return the oracle's advantage times pi, minus the base."""
    credit_N = batch.base_N + oracle(batch).added_N
    return TokenCredit(batch.on_tokens(credit_N * batch.needed("log_probs").exp() - batch.base_N))
