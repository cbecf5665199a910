"""Token figures that estimators need from the policy: computed correctly in the host's own pass, only if needed."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from rollout_batches import arguments, batched, by_rollout, maker, rollouts

NAMES = ("entropies", "sum_squares")


@pytest.fixture(scope="module")
def module(host):
    from openrlhf_ktae.trainer.ppo_utils import token_figures

    return token_figures


@pytest.fixture(scope="module")
def policy(host):
    """A tiny Qwen2 in the host's `Actor`, at temperature 0.7."""
    from openrlhf.models import Actor
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    sizes = {"vocab_size": 13, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    actor = Actor(Qwen2ForCausalLM(Qwen2Config(**sizes, **heads)).eval(), temperature=0.7)
    actor.packing_samples = False
    return actor


def test_an_id_that_the_model_rules_out_adds_nothing(module):
    logits = torch.tensor([[[1.0, 2.0, -torch.inf]]])
    expected = module.figures_of(logits[..., :2], NAMES)
    torch.testing.assert_close(module.figures_of(logits, NAMES), expected, rtol=0, atol=0)


def inputs():
    sequences = torch.tensor([[3, 4, 5, 6, 7], [3, 9, 8, 0, 0]])
    attention = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    return sequences, torch.tensor([[0, 1, 1, 1], [0, 1, 0, 0]]).float(), attention


@pytest.mark.parametrize("names", [NAMES, NAMES[:1], NAMES[1:]])
def test_figures_are_of_the_distribution_at_the_temperature(module, policy, names, monkeypatch):
    monkeypatch.setattr(module, "POSITIONS_AT_ONCE", 3)
    sequences, mask, attention = inputs()
    with torch.no_grad():
        expected = policy(sequences, mask, attention)
        watched = module.WatchedActor(policy, names)
        found = watched(sequences, mask, attention)
        logits = policy.model(sequences, attention_mask=attention).logits[:, :-1].double() / 0.7
    assert torch.equal(found, expected)
    p = torch.softmax(logits, -1)
    truth = {"entropies": -(p * p.log()).sum(-1) * mask, "sum_squares": p.square().sum(-1) * mask}
    assert set(watched.found) == set(names)
    for name in names:
        torch.testing.assert_close(watched.found[name].double(), truth[name], atol=1e-5, rtol=0)
        assert watched.found[name][mask.bool()].min() > 0


def test_packed_samples_give_the_same_figures(module, policy, monkeypatch):
    """All figures take the path on which the host gathers and pads entropies."""
    sequences, mask, attention = inputs()
    with torch.no_grad():
        plain, packed = (module.WatchedActor(policy, NAMES) for _ in range(2))
        plain(sequences[:1], mask[:1], attention[:1])  # without flash-attn, attention cannot separate packed rows
        monkeypatch.setattr(policy, "packing_samples", True)
        packed(sequences[:1], mask[:1], attention[:1])
    for name in NAMES:
        torch.testing.assert_close(packed.found[name], plain.found[name])


def test_the_policys_process_computes_figures_only_if_needed(host, monkeypatch):
    from openrlhf_ktae.trainer.ray import ppo_actor

    seen = []

    def forward(self, *args):
        seen.append(type(self.actor).__name__)
        self.actor.found = {"entropies": torch.ones(1, 2)}
        return torch.zeros(1, 2)

    monkeypatch.setattr(ppo_actor._HostPolicyModelActor, "forward", forward)
    for estimator, expected in (("prob_reweight", "SimpleNamespace"), ("gtpo", "WatchedActor")):
        one = ppo_actor.KTAEPolicyModelActor.__new__(ppo_actor.KTAEPolicyModelActor)
        one.strategy = SimpleNamespace(args=arguments("--advantage_estimator", estimator))
        own = one.actor = SimpleNamespace()
        answer = one.forward(1)
        assert seen.pop() == expected
        assert one.actor is own
        assert isinstance(answer, dict) == (estimator == "gtpo")


@pytest.mark.parametrize(("estimator", "passes"), [("ktae", False), ("tempo", False), ("prob_reweight", True)])
def test_the_forward_pass_is_not_skipped_if_needed(host, estimator, passes):
    from openrlhf_ktae.trainer.ppo_utils.old_log_probs import update_computes_log_probs

    sizes = "--rollout_batch_size 4 --train_batch_size 16".split()
    assert update_computes_log_probs(arguments(*sizes, "--advantage_estimator", estimator), 16, False) is not passes


def test_token_figures_reach_only_the_estimator(host, module):
    from openrlhf_ktae.trainer.ppo_utils import experience_maker

    tested = maker(experience_maker, "--advantage_estimator", "entropy_mask", "--algo.entropy_mask.share", "0.5")
    batch = batched(rollouts(), 5)
    entropies = [torch.rand(e.action_mask.shape) * e.action_mask for e in batch]
    answers = [
        {"log_probs": -torch.ones(e.action_mask.shape), "entropies": h} for e, h in zip(batch, entropies, strict=True)
    ]
    base = by_rollout(
        maker(experience_maker, "--algo.ktae.weight", "0").compute_advantages_and_returns(batched(rollouts(), 5))
    )
    plain, figures = module.apart(answers)
    assert plain[0] is answers[0]["log_probs"]
    for e, one in zip(batch, figures, strict=True):
        setattr(e, module.PLACE, one)
    result = by_rollout(tested.compute_advantages_and_returns(batch))
    threshold = torch.cat([h[e.action_mask.bool()] for h, e in zip(entropies, batch, strict=True)])
    least = threshold.sort(descending=True).values[-(-len(threshold) // 2) - 1]
    by_index = {
        i: h[row][e.action_mask[row].bool()]
        for h, e in zip(entropies, batch, strict=True)
        for row, i in enumerate(e.index)
    }
    for index, advantages in result.items():
        assert torch.equal(advantages, base[index] * (by_index[index] >= least))
    assert not any(module.PLACE in vars(e) for e in batch)
    assert 0 < tested.metrics["credit/entropy"] < 1
