"""What a step logs about token-level credit."""

from __future__ import annotations

import torch

from openrlhf_ktae.ktae import KeyTokenValues


def credit_metrics(
    values: KeyTokenValues, values_BT: torch.Tensor, advantages_BT: torch.Tensor, action_mask_BT: torch.Tensor
) -> dict[str, float]:
    """Return scalars of one batch; a mean over nothing is left out.

    Args:
        values: what KTAE found, for the labels and the count of groups.
        values_BT: K, 0 outside action tokens.
        advantages_BT: rollout-level advantages before K was added.
        action_mask_BT: True on action tokens.

    `ktae/mixed_group_share`: groups with a correct and a wrong rollout; elsewhere K is 0.
    `ktae/advantage_mass_share`: sum |K| / (sum |K| + sum |A|) over action tokens.
    `ktae/sign_flips`: share of action tokens whose advantage changes sign when K is added.
    `ktae/mean_k_correct`, `ktae/mean_k_wrong`: mean K over the action tokens of correct and of wrong rollouts.
    """
    k, a = values_BT[action_mask_BT], advantages_BT[action_mask_BT].float()
    metrics = {
        "ktae/mixed_group_share": values.mixed_groups / max(values.groups, 1),
        "ktae/unknown_rollouts": float(values.unknown_rollouts),
    }
    if k.numel() == 0:
        return metrics
    mass = float(k.abs().sum() + a.abs().sum())
    metrics["ktae/mean_abs_k"] = float(k.abs().mean())
    metrics["ktae/advantage_mass_share"] = float(k.abs().sum()) / mass if mass else 0.0
    metrics["ktae/sign_flips"] = float((a * (a + k) < 0).float().mean())
    known_B, correct_B = values.known_B.bool(), values.correct_B.bool()
    for name, rows_B in (("correct", correct_B & known_B), ("wrong", ~correct_B & known_B)):
        side = action_mask_BT & rows_B.unsqueeze(1)
        if side.any():
            metrics[f"ktae/mean_k_{name}"] = float(values_BT[side].mean())
    return metrics
