"""What a step logs about credit, against values computed by hand."""

from __future__ import annotations

import pytest
import torch

from openrlhf_ktae.ktae import KeyTokenValues, credit_sums
from openrlhf_ktae.trainer.ppo_utils.credit_metrics import credit_metrics

# Two right rollouts, a wrong one and one of unknown verdict; 99 lies outside of action tokens and must not count.
MASK = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 1], [1, 0, 0]]).bool()
K = torch.tensor([[0.5, 0.25, 99.0], [-1.5, 99.0, 99.0], [0.25, -0.5, 0.0], [0.0, 99.0, 99.0]])
A = torch.tensor([[1.0, 1.0, 99.0], [1.0, 99.0, 99.0], [-0.5, -0.5, -0.5], [2.0, 99.0, 99.0]])


def values(correct=(1, 1, 0, 0), known=(1, 1, 1, 0)):
    return KeyTokenValues(K, 3, 1, 1, torch.tensor(correct).bool(), torch.tensor(known).bool())


def sums(mask=MASK):
    ids = torch.zeros(mask.numel(), dtype=torch.int64)
    return credit_sums(ids, mask.flatten(), K.flatten(), A.flatten(), [0, 3, 6, 9, 12])


def test_by_hand():
    assert credit_metrics(values(), sums()) == pytest.approx(
        {
            "ktae/mixed_group_share": 1 / 3,
            "ktae/unknown_rollouts": 1.0,
            "ktae/mean_abs_k": 3.0 / 7,  # 0.5 + 0.25 + 1.5 + 0.25 + 0.5
            "ktae/advantage_mass_share": 3.0 / (3.0 + 6.5),  # 1 + 1 + 1 + 3 x 0.5 + 2
            "ktae/sign_flips": 1 / 7,  # 1 - 1.5 alone changes its sign
            "ktae/mean_k_correct": (0.5 + 0.25 - 1.5) / 3,
            "ktae/mean_k_wrong": (0.25 - 0.5 + 0.0) / 3,
        }
    )


def test_a_side_without_rollouts_is_left_out():
    metrics = credit_metrics(values(correct=(1, 1, 1, 1), known=(1, 1, 1, 1)), sums())
    assert "ktae/mean_k_wrong" not in metrics
    assert metrics["ktae/mean_k_correct"] == pytest.approx(-1.0 / 7)


def test_a_batch_without_action_tokens_has_no_means():
    metrics = credit_metrics(values(), sums(torch.zeros_like(MASK)))
    assert metrics == {"ktae/mixed_group_share": 1 / 3, "ktae/unknown_rollouts": 1.0}
