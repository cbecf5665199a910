"""Old log-probabilities taken from the update give the loss and gradient of a separate pass."""

from __future__ import annotations

import pytest
import torch
from rollout_batches import arguments

B, T, V = 6, 5, 11
SETTINGS = (
    {},
    {"policy_loss_type": "gspo"},
    {"dual_clip": 3.0},
    {"is_correction_level": "token", "is_correction_mode": "clip"},
)


@pytest.fixture(scope="module")
def module(host):
    from openrlhf_ktae.trainer.ppo_utils import old_log_probs

    return old_log_probs


def batch(seed=0):
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(B, T, 4, generator=generator)
    ids = torch.randint(V, (B, T), generator=generator)
    mask = torch.arange(T) < torch.randint(1, T + 1, (B, 1), generator=generator)
    advantages = torch.randn(B, 1, generator=generator) * mask
    return states, ids, mask.float(), advantages, -torch.rand(B, T, generator=generator)


def log_probs(weight, states, ids):
    return torch.log_softmax(states @ weight, -1).gather(-1, ids.unsqueeze(-1)).squeeze(-1)


@pytest.mark.parametrize("settings", SETTINGS)
def test_loss_and_gradient_equal_those_with_a_separate_pass(module, settings):
    from openrlhf.models.loss import PolicyLoss

    states, ids, mask, advantages, rollout = batch()
    results = []
    for old in ("computed", "left out"):
        weight = torch.linspace(-1, 1, 4 * V).reshape(4, V).clone().requires_grad_()
        new = log_probs(weight, states, ids) * mask
        before = new.detach().clone() if old == "computed" else module.left_out([mask])[0]
        host = PolicyLoss(**settings)
        loss = module.UpdateLogProbs(host) if old == "left out" else host
        outcome = loss(new, before, advantages, action_mask=mask, rollout_log_probs=rollout * mask)
        outcome[0].backward()
        results.append([*(x for x in outcome if x is not None), weight.grad])
    for expected, found in zip(*results, strict=True):
        assert torch.equal(expected, found)
    assert results[0][-1].abs().sum() > 0


def test_padding_of_another_micro_batch_changes_nothing(module):
    """The replay buffer pads the NaN placeholders with 0."""
    from openrlhf.models.loss import PolicyLoss

    _, _, mask, advantages, _ = batch()
    new = -torch.rand(B, T) * mask
    old = torch.where(mask.bool(), torch.nan, 0.0)
    loss = module.UpdateLogProbs(PolicyLoss())(new, old, advantages, action_mask=mask)[0]
    assert torch.equal(loss, PolicyLoss()(new, new, advantages, action_mask=mask)[0])


def test_computed_log_probs_are_kept(module):
    from openrlhf.models.loss import PolicyLoss

    _, _, mask, advantages, _ = batch()
    new, old = -torch.rand(B, T) * mask, -torch.rand(B, T) * mask
    loss = module.UpdateLogProbs(PolicyLoss())(new, old, advantages, action_mask=mask)[0]
    assert torch.equal(loss, PolicyLoss()(new, old, advantages, action_mask=mask)[0])


SIZES = "--rollout_batch_size 4 --train_batch_size 16".split()


@pytest.mark.parametrize(
    ("words", "rollouts", "has_reference", "expected"),
    [
        ([], 16, False, True),
        ([], 12, False, True),
        ([], 32, False, False),
        ([], 16, True, False),
        (["--max_epochs", "2"], 16, False, False),
        (["--actor.recompute_log_probs", "true"], 16, False, False),
    ],
)
def test_used_only_if_a_batch_is_one_update(module, words, rollouts, has_reference, expected):
    assert module.update_computes_log_probs(arguments(*SIZES, *words), rollouts, has_reference) is expected


def test_the_gap_between_sampler_and_trainer_matches_plain_loops(module):
    _, _, mask, _, sampled = batch()
    old = sampled + torch.linspace(-0.5, 0.5, B * T).reshape(B, T)
    found = {name: float(value) for name, value in module.mismatch(old, sampled, mask).items()}
    gaps, quarters = [], {1: [], 2: [], 3: [], 4: []}
    for row in range(B):
        places = [place for place in range(T) if mask[row, place]]
        for number, place in enumerate(places):
            gap = abs(float(old[row, place] - sampled[row, place]))
            gaps.append(gap)
            quarters[1 + 4 * number // len(places)].append(gap)
    assert found["mismatch/mean"] == pytest.approx(sum(gaps) / len(gaps))
    assert found["mismatch/p99"] == pytest.approx(max(gaps)), "with fewer than 100 tokens p99 is the maximum"
    for quarter, values in quarters.items():
        assert found[f"mismatch/quarter{quarter}"] == pytest.approx(sum(values) / max(len(values), 1))


def test_a_batch_without_an_action_has_no_gap(module):
    _, _, mask, _, sampled = batch()
    assert all(float(value) == 0 for value in module.mismatch(sampled, sampled, mask * 0).values())
