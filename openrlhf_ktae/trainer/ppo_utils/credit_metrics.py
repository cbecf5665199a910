"""A step's metrics of token-level credit."""

from openrlhf_ktae.credit import CreditBatch, TokenCredit
from openrlhf_ktae.ktae import CreditSums


def credit_metrics(batch: CreditBatch, credit: TokenCredit, sums: CreditSums, prefix: str) -> dict[str, float]:
    """Return scalars of one batch; means over empty sets are left out.

    Args:
        batch: what credit was computed from.
        credit: the estimator's result; means of its figures over action tokens are logged.
        sums: sums over action tokens of the credit, and of the advantages before it was added.
        prefix: start of the names: `ktae` for KTAE, which calls its credit K, else `credit` (`added` instead of `k`).

    `mixed_group_share`: share of groups with a correct and a wrong rollout; in the others KTAE's K is 0.
    `advantage_mass_share`: sum |K| / (sum |K| + sum |A|) over action tokens.
    `sign_flips`: share of action tokens whose advantage changes sign when K is added.
    `mean_k_correct`, `mean_k_wrong`: mean K over the action tokens of correct and of wrong rollouts.
    """
    k = "k" if prefix == "ktae" else "added"
    metrics = {
        f"{prefix}/mixed_group_share": float(batch.mixed_Q.sum()) / max(len(batch.mixed_Q), 1),
        f"{prefix}/unknown_rollouts": float((~batch.known_B).sum()),
    }
    if sums.tokens == 0:
        return metrics
    mass = sums.k_mass + sums.a_mass
    metrics[f"{prefix}/mean_abs_{k}"] = sums.k_mass / sums.tokens
    metrics[f"{prefix}/advantage_mass_share"] = sums.k_mass / mass if mass else 0.0
    metrics[f"{prefix}/sign_flips"] = sums.flips / sums.tokens
    for name, rows_B in (("correct", batch.correct_B), ("wrong", batch.known_B & ~batch.correct_B)):
        tokens = int(sums.tokens_B[rows_B].sum())
        if tokens:
            metrics[f"{prefix}/mean_{k}_{name}"] = float(sums.sums_B[rows_B].sum()) / tokens
    for name, values_N in credit.figures.items():
        metrics[f"{prefix}/{name}"] = float(values_N[batch.mask_N].double().mean())
    return metrics
