"""Token-level credit reaches the gradient with every policy loss and aggregation."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest
import torch

CORRECTIONS = [
    ("off", "mask", "ratio"),
    ("token", "mask", "ratio"),
    ("token", "clip", "ratio"),
    ("seq", "mask", "ratio"),
    ("token", "mask", "binary_kl"),
    ("seq", "mask", "binary_kl"),
    ("token", "mask", "tv"),
    ("seq", "mask", "tv"),
]
RUNS = list(itertools.product(["ppo", "gspo"], ["token-mean", "seq-mean-token-mean"], [None, 3.0], CORRECTIONS))


def loss_of(kind, aggregation, dual_clip, correction, ktae=True, clip=0.2, threshold=None):
    from openrlhf.models.loss import PolicyLoss

    from openrlhf_ktae.trainer.ppo_utils.old_log_probs import UpdateLogProbs
    from openrlhf_ktae.trainer.ppo_utils.token_gspo import with_token_credit

    level, mode, gating = correction
    threshold = threshold or ([0.1, 10.0] if gating == "ratio" else [0.0, 10.0])
    host = PolicyLoss(clip, clip, dual_clip, aggregation == "token-mean", kind, level, mode, gating, threshold)
    args = SimpleNamespace(algo=SimpleNamespace(credit=SimpleNamespace(name="ktae" if ktae else "")))
    return UpdateLogProbs(with_token_credit(host, args))


def batch(rows=3, tokens=5):
    made = torch.Generator().manual_seed(0)
    old = -torch.rand(rows, tokens, generator=made) - 0.5
    log_probs = old + 0.05 * torch.randn(rows, tokens, generator=made)
    rollout = old + 0.02 * torch.randn(rows, tokens, generator=made)
    mask = torch.ones(rows, tokens)
    mask[1, 3:] = 0
    return log_probs, old, rollout, mask


def gradient(loss, advantages, old=None, made=batch):
    log_probs, before, rollout, mask = made()
    log_probs.requires_grad_()
    normaliser = {"batch_num_tokens": mask.sum(), "global_batch_size": torch.tensor(float(len(mask)))}
    value, *_ = loss(
        log_probs,
        before if old is None else old,
        advantages,
        action_mask=mask,
        rollout_log_probs=rollout,
        dp_size=1,
        **normaliser,
    )
    value.backward()
    return value.detach(), log_probs.grad


@pytest.mark.parametrize(("kind", "aggregation", "dual_clip", "correction"), RUNS)
def test_k_changes_only_its_own_tokens_gradient(kind, aggregation, dual_clip, correction, host):
    """Also if the old log-probabilities are taken from the update."""
    loss = loss_of(kind, aggregation, dual_clip, correction)
    even = torch.ones(3, 5)
    for row, token in ((0, 0), (0, 4), (1, 2), (2, 1)):
        credit = even.clone()
        credit[row, token] = 1.5
        for old in (None, torch.full((3, 5), torch.nan)):
            _, before = gradient(loss, even, old)
            _, after = gradient(loss, credit, old)
            moved = (after - before).abs() > 1e-7
            assert moved[row, token]
            assert moved.sum() == 1
            assert after[row, token] / before[row, token] == pytest.approx(1.5, rel=1e-4)


def one_apart():
    """Return a batch in which trainer and sampler agree except on one token, three times as likely for the trainer."""
    log_probs, old, _, mask = batch()
    rollout = old.clone()
    rollout[0, 1] -= 1.0986
    return log_probs, old, rollout, mask


@pytest.mark.parametrize("correction", CORRECTIONS[1:])
def test_k_is_scaled_by_the_importance_correction(correction, host):
    """By 0 if the gate drops the token (token, mask) or its response (seq), by 1.2 if the ratio is clipped."""
    level, mode, gating = correction
    loss = loss_of("ppo", "token-mean", None, correction, threshold=[0.9, 1.2] if gating == "ratio" else [0.0, 0.02])
    even = torch.ones(3, 5)
    _, before = gradient(loss, even, made=one_apart)
    _, plain = gradient(loss_of("ppo", "token-mean", None, CORRECTIONS[0]), even)
    weight = torch.ones(3, 5)
    if mode == "clip":
        weight[0, 1] = 1.2
    else:
        weight[0, 1 if level == "token" else slice(None)] = 0.0
    assert torch.allclose(before, weight * plain, atol=1e-6)
    for row, token in ((0, 0), (0, 1), (1, 1)):
        credit = even.clone()
        credit[row, token] = 1.5
        moved = gradient(loss, credit, made=one_apart)[1] - before
        assert moved[row, token] == pytest.approx(float(0.5 * weight[row, token] * plain[row, token]), abs=1e-6)


def test_the_hosts_gspo_would_lose_token_credit(host):
    """Advantages 1, 1.5, 0.5, 1, ... give the same gradient as all 1."""
    loss = loss_of("gspo", "token-mean", None, CORRECTIONS[0], ktae=False)
    uneven = torch.tensor([[1.0, 1.5, 0.5, 1.0, 1.0]]).repeat(3, 1)
    uneven[1, :3] = torch.tensor([1.5, 0.5, 1.0])
    assert torch.allclose(gradient(loss, uneven)[1], gradient(loss, torch.ones(3, 5))[1])


@pytest.mark.parametrize("clip", [0.2, 0.01, 0.001])
@pytest.mark.parametrize("dual_clip", [None, 3.0])
@pytest.mark.parametrize("correction", CORRECTIONS[:2])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_with_equal_advantages_the_token_form_is_gspo(clip, dual_clip, correction, sign, host):
    theirs = loss_of("gspo", "token-mean", dual_clip, correction, ktae=False, clip=clip)
    ours = loss_of("gspo", "token-mean", dual_clip, correction, clip=clip)
    advantages = sign * torch.tensor([[0.7], [1.0], [1.6]]).expand(3, 5)
    for mine, host_s in zip(gradient(ours, advantages), gradient(theirs, advantages), strict=True):
        assert torch.allclose(mine, host_s, atol=1e-6)


def test_the_gradient_follows_the_formula(host):
    """Without clipping the gradient of token t of response i is -s_i A_t / |y_i| / number of responses."""
    log_probs, old, _, mask = batch()
    advantages = torch.rand(3, 5) + 0.5
    _, found = gradient(loss_of("gspo", "token-mean", None, CORRECTIONS[0]), advantages)
    lengths = mask.sum(1, keepdim=True)
    ratios = (((log_probs - old) * mask).sum(1, keepdim=True) / lengths).exp()
    assert torch.allclose(found, -ratios * advantages * mask / lengths / 3, atol=1e-6)


def test_without_ktae_the_loss_is_unchanged(host):
    from openrlhf.models.loss import PolicyLoss

    assert type(loss_of("gspo", "token-mean", None, CORRECTIONS[0], ktae=False).loss) is PolicyLoss
    assert type(loss_of("ppo", "token-mean", None, CORRECTIONS[0]).loss) is PolicyLoss


def test_the_update_loop_uses_the_loss(host, monkeypatch):
    from openrlhf.models.loss import PolicyLoss

    from openrlhf_ktae.trainer.ppo_utils.token_gspo import TokenGspo
    from openrlhf_ktae.trainer.ray import ppo_actor

    def init(self, *_, **__):
        self.args = SimpleNamespace(algo=SimpleNamespace(credit=SimpleNamespace(name="ktae")))
        self.actor_loss_fn = PolicyLoss(policy_loss_type="gspo")
        self.actor = SimpleNamespace(model=SimpleNamespace(optimizer=None))

    monkeypatch.setattr(ppo_actor.host.ActorPPOTrainer, "__init__", init)
    monkeypatch.setattr(ppo_actor, "skip_nonfinite_updates", lambda _: None)
    assert type(ppo_actor.KTAEActorPPOTrainer().actor_loss_fn.loss) is TokenGspo
