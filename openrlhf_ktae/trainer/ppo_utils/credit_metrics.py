"""A step's metrics of token-level credit."""

from __future__ import annotations

from openrlhf_ktae.ktae import CreditSums, KeyTokenValues


def credit_metrics(values: KeyTokenValues, sums: CreditSums) -> dict[str, float]:
    """Return scalars of one batch; means over empty sets are left out.

    Args:
        values: KTAE's result, for labels and group counts.
        sums: sums over action tokens of K, and of rollout-level advantages before K was added.

    `ktae/mixed_group_share`: groups with a correct and a wrong rollout; elsewhere K is 0.
    `ktae/advantage_mass_share`: sum |K| / (sum |K| + sum |A|) over action tokens.
    `ktae/sign_flips`: share of action tokens whose advantage changes sign when K is added.
    `ktae/mean_k_correct`, `ktae/mean_k_wrong`: mean K over the action tokens of correct and of wrong rollouts.
    """
    metrics = {
        "ktae/mixed_group_share": values.mixed_groups / max(values.groups, 1),
        "ktae/unknown_rollouts": float(values.unknown_rollouts),
    }
    if sums.tokens == 0:
        return metrics
    mass = sums.k_mass + sums.a_mass
    metrics["ktae/mean_abs_k"] = sums.k_mass / sums.tokens
    metrics["ktae/advantage_mass_share"] = sums.k_mass / mass if mass else 0.0
    metrics["ktae/sign_flips"] = sums.flips / sums.tokens
    known_B, correct_B = values.known_B.numpy(), values.correct_B.numpy()
    for name, rows_B in (("correct", correct_B & known_B), ("wrong", ~correct_B & known_B)):
        tokens = int(sums.tokens_B[rows_B].sum())
        if tokens:
            metrics[f"ktae/mean_k_{name}"] = float(sums.sums_B[rows_B].sum()) / tokens
    return metrics
