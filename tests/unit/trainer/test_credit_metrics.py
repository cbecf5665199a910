"""A step's credit metrics against values computed by hand."""

from __future__ import annotations

import pytest
import torch

from openrlhf_ktae.credit import CreditBatch, TokenCredit, estimators
from openrlhf_ktae.ktae import credit_sums
from openrlhf_ktae.trainer.ppo_utils.credit_metrics import credit_metrics

# Two right rollouts, a wrong one and one with an unknown verdict; 99 marks tokens that must not count.
MASK = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 1], [1, 0, 0]]).bool()
K = torch.tensor([[0.5, 0.25, 99.0], [-1.5, 99.0, 99.0], [0.25, -0.5, 0.0], [0.0, 99.0, 99.0]])
A = torch.tensor([[1.0, 1.0, 99.0], [1.0, 99.0, 99.0], [-0.5, -0.5, -0.5], [2.0, 99.0, 99.0]])


def of(scores=(1.0, 1.0, 0.0, torch.nan), mask=MASK, estimator="ktae", figures=None):
    """Return the metrics of three groups, one of which has a right and a wrong rollout."""
    ids = torch.zeros(4, 3, dtype=torch.int64)
    batch = CreditBatch.from_tables(ids, mask, scores, [0, 1, 1, 2], A)
    return credit_metrics(
        batch, TokenCredit(K.flatten(), figures or {}), sums(mask), estimators()[estimator].metrics_prefix
    )


def sums(mask=MASK):
    ids = torch.zeros(mask.numel(), dtype=torch.int64)
    return credit_sums(ids, mask.flatten(), K.flatten(), A.flatten(), [0, 3, 6, 9, 12])


def test_by_hand():
    assert of() == pytest.approx(
        {
            "ktae/mixed_group_share": 1 / 3,
            "ktae/unknown_rollouts": 1.0,
            "ktae/mean_abs_k": 3.0 / 7,  # 0.5 + 0.25 + 1.5 + 0.25 + 0.5
            "ktae/advantage_mass_share": 3.0 / (3.0 + 6.5),  # 1 + 1 + 1 + 3 x 0.5 + 2
            "ktae/sign_flips": 1 / 7,  # only 1 - 1.5 changes its sign
            "ktae/mean_k_correct": (0.5 + 0.25 - 1.5) / 3,
            "ktae/mean_k_wrong": (0.25 - 0.5 + 0.0) / 3,
        }
    )


def test_a_side_without_rollouts_is_left_out():
    metrics = of((1.0, 1.0, 1.0, 1.0))
    assert "ktae/mean_k_wrong" not in metrics
    assert metrics["ktae/mean_k_correct"] == pytest.approx(-1.0 / 7)


def test_a_batch_without_action_tokens_has_no_means():
    assert of(mask=torch.zeros_like(MASK)) == {"ktae/mixed_group_share": 0, "ktae/unknown_rollouts": 4.0}


def test_other_estimators_log_their_figures_under_their_own_prefix():
    metrics = of(estimator="tempo", figures={"shared_by": torch.arange(12.0)})
    assert metrics["credit/mean_added_wrong"] == pytest.approx((0.25 - 0.5 + 0.0) / 3)
    assert metrics["credit/shared_by"] == pytest.approx((0 + 1 + 3 + 6 + 7 + 8 + 9) / 7), "the mean over action tokens"
    assert not any(name.startswith("ktae/") for name in metrics)
