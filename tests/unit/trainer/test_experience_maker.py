"""Token-level credit in the host's experience maker, on handmade batches, without Ray or a model."""

from __future__ import annotations

import pytest
import torch
from rollout_batches import N, Tokenizer, batched, by_rollout, maker, rollouts


def host_advantages(module, samples, size):
    plain = maker(module)
    return by_rollout(plain._hosts_advantages(batched(samples, size)))


def assert_same(left, right, exact=True):
    assert left.keys() == right.keys()
    for index in left:
        if exact:
            assert torch.equal(left[index], right[index])
        else:
            torch.testing.assert_close(left[index], right[index])


def test_credit_is_added_to_the_right_tokens(module):
    samples = rollouts()
    base = host_advantages(module, rollouts(), 4)
    credited = by_rollout(maker(module).compute_advantages_and_returns(batched(samples, 4)))
    for index, advantages in credited.items():
        added = advantages - base[index]
        assert (added[0] > 0.1) == (index % N in (0, 1)), "id 7 occurs in right rollouts, id 8 in wrong ones"
        assert (added[0] < -0.1) == (index % N not in (0, 1))


def test_special_ids_get_no_value(module):
    """Only right answers end with the end-of-text id, since wrong ones are cut off, so it would be a key token."""

    def added():
        samples = rollouts()
        for sample in samples:
            if not sample.scores.item():
                sample.sequences[:, -1] = 12
        tested = maker(module)
        tested.tokenizer = Named(special)
        credited = by_rollout(tested.compute_advantages_and_returns(batched(samples, 4)))
        base = host_advantages(module, rollouts(), 4)
        return [float(credited[index][-1] - base[index][-1]) for index in credited if index % N in (0, 1)]

    class Named(Tokenizer):
        def __init__(self, ids):
            self.all_special_ids = ids

    special = (0, 1)
    assert added() == [0.0] * 6
    special = (0,)
    assert min(added()) > 0.1


def test_a_rollout_without_action_tokens_is_unknown(module):
    samples = rollouts()
    samples[2].action_mask.zero_()
    tested = maker(module)
    tested.compute_advantages_and_returns(batched(samples, 4))
    assert tested.metrics["ktae/unknown_rollouts"] == 1
    assert torch.isnan(module.credited_scores(samples[2])).all()


@pytest.mark.parametrize("count", [0, 2, 3])
def test_the_requested_number_of_key_tokens_is_logged(module, count):
    tested = maker(module, "--algo.ktae.top_tokens", str(count))
    tested.compute_advantages_and_returns(batched(rollouts(), 4))
    assert [len(tested.key_tokens[side]) for side in ("highest", "lowest")] == [count, count]


@pytest.mark.parametrize("base", ["group_norm", "dr_grpo", "rloo", "reinforce_baseline"])
@pytest.mark.parametrize("size", [1, 4, 5])
def test_weight_zero_equals_the_host_bit_for_bit(module, base, size):
    """Compares with openrlhf's experience maker itself, not with our parent class."""
    from openrlhf.trainer.ppo_utils.experience_maker import RemoteExperienceMaker

    tested = maker(module, "--algo.ktae.weight", "0", "--algo.ktae.base", base)
    plain = RemoteExperienceMaker(None, None, None, None, tested.kl_ctl, tested.strategy, Tokenizer())
    for more in ({}, {"lopsided": True}, {"late": (0, 5)}):
        given = [batched(rollouts(prompts=4, **more), size) for _ in range(2)]
        expected = by_rollout(plain.compute_advantages_and_returns(given[0]))
        assert_same(expected, by_rollout(tested.compute_advantages_and_returns(given[1])))
        assert any(advantages.any() for advantages in expected.values())
    assert tested.metrics["ktae/mixed_group_share"] == 1


@pytest.mark.parametrize(
    ("base", "unknown", "copied"),
    [
        ("group_norm", False, False),
        ("group_norm", True, True),
        ("dr_grpo", False, False),
        ("rloo", False, False),
        ("reinforce_baseline", False, True),
    ],
)
def test_estimators_read_the_hosts_advantages_and_32_bit_ids(module, base, unknown, copied, monkeypatch):
    """Ids, mask and returns take a block of memory each; advantages take one only if they are not the returns."""
    tested, seen = maker(module, "--algo.ktae.base", base), {}
    monkeypatch.setattr(tested, "estimator", Spy(tested.estimator, seen))
    for _ in range(2):
        samples = rollouts()
        if unknown:
            samples[3].scores = torch.tensor([torch.nan])
        expected, batch = maker(module, "--algo.ktae.base", base, "--algo.ktae.weight", "0"), batched(samples, 5)
        expected = expected.compute_advantages_and_returns(batched(samples, 5))
        tested.compute_advantages_and_returns(batch)
        assert torch.equal(seen["base_N"], torch.cat([e.advantages.flatten() for e in expected]))
        assert seen["token_ids_N"].dtype == torch.int32
        assert seen["token_ids_N"].tolist() == [i for e in batch for i in e.sequences[:, 1:].flatten().tolist()]
        seen.clear()
    assert len(tested._memory._blocks) == 3 + copied


class Spy:
    """Keeps a copy of the batch that the estimator gets."""

    def __init__(self, estimator, seen):
        self._estimator, self._seen = estimator, seen

    def __getattr__(self, name):
        return getattr(self._estimator, name)

    def __call__(self, batch, options):
        self._seen |= {name: getattr(batch, name).clone() for name in ("token_ids_N", "base_N")}
        return self._estimator(batch, options)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 12])
def test_micro_batch_split_changes_nothing(module, size):
    whole = by_rollout(maker(module).compute_advantages_and_returns(batched(rollouts(), 12)))
    split = by_rollout(maker(module).compute_advantages_and_returns(batched(rollouts(), size)))
    assert_same(whole, split)


def test_order_of_rollouts_changes_nothing(module):
    whole = by_rollout(maker(module).compute_advantages_and_returns(batched(rollouts(), 12)))
    shuffled = [rollouts()[i] for i in (11, 3, 7, 0, 9, 1, 5, 2, 10, 4, 8, 6)]
    assert_same(whole, by_rollout(maker(module).compute_advantages_and_returns(batched(shuffled, 5))))


@pytest.mark.parametrize("words", [("--algo.ktae.weight", "0"), ("--algo.ktae.shadow",)])
def test_weight_zero_and_shadow_give_the_host_bit_for_bit(module, words):
    tested = maker(module, *words)
    result = by_rollout(tested.compute_advantages_and_returns(batched(rollouts(), 4)))
    assert_same(host_advantages(module, rollouts(), 4), result)
    assert "ktae/mean_abs_k" in tested.metrics


def test_shadow_logs_the_metrics_of_ktae(module):
    shadow, real = maker(module, "--algo.ktae.shadow"), maker(module)
    for one in (shadow, real):
        one.compute_advantages_and_returns(batched(rollouts(), 4))
    keys = [key for key in real.metrics if key != "ktae/seconds"]
    assert keys
    assert [shadow.metrics[key] for key in keys] == [real.metrics[key] for key in keys]


def test_a_penalised_correct_answer_stays_correct(module):
    """Rollout 0 is right by its raw score, although a penalty makes its reward negative."""
    tested = maker(module)
    tested.compute_advantages_and_returns(batched(rollouts(late=(0,)), 4))
    plain = maker(module)
    plain.compute_advantages_and_returns(batched(rollouts(), 4))
    assert tested.metrics["ktae/mean_k_correct"] == plain.metrics["ktae/mean_k_correct"]


def test_metrics_describe_the_batch(module):
    tested = maker(module)
    tested.compute_advantages_and_returns(batched(rollouts(), 4))
    metrics = tested.metrics
    assert metrics["ktae/mixed_group_share"] == 1.0
    assert 0 < metrics["ktae/advantage_mass_share"] < 1
    assert 0 <= metrics["ktae/sign_flips"] <= 1
    assert metrics["ktae/mean_k_correct"] > 0 > metrics["ktae/mean_k_wrong"]
    assert tested.key_tokens["highest"][0]["id"] == 7
    assert tested.key_tokens["lowest"][0]["id"] == 8


def test_one_sided_groups_have_zero_advantages(module):
    samples = rollouts()
    for sample in samples:
        sample.scores = torch.tensor([1.0])
        sample.rewards = torch.tensor([1.0])
    tested = maker(module)
    result = by_rollout(tested.compute_advantages_and_returns(batched(samples, 4)))
    assert all(bool((advantages == 0).all()) for advantages in result.values())
    assert tested.metrics["ktae/mixed_group_share"] == 0.0


@pytest.mark.parametrize("reward", [0.1, 0.3, -0.1, 1.1])
@pytest.mark.parametrize("size", [8, 12, 16])
@pytest.mark.parametrize("unknown", [0, 1])
def test_equal_rewards_give_zero_advantages(module, reward, size, unknown):
    """The host divides the rounding error of such a group's mean by 1e-9, which gives advantages of up to 10."""
    samples = rollouts(prompts=2, per_prompt=size)
    for sample in samples[:size]:
        sample.rewards, sample.scores = torch.tensor([reward]), torch.tensor([0.0])
    for sample in samples[:unknown]:
        sample.scores = torch.tensor([torch.nan])
    tested = maker(module, "--n_samples_per_prompt", str(size))
    experiences = tested.compute_advantages_and_returns(batched(samples, 4))
    result = by_rollout(experiences)
    for rewards in (torch.cat([e.rewards for e in experiences]), torch.cat([e.info["reward"] for e in experiences])):
        assert rewards[:size].tolist() == pytest.approx([reward] * size), "logged rewards must be the given ones"
        assert rewards[size:].tolist() == [1, 1] + [0] * (size - 2)
    assert all(bool((result[index] == 0).all()) for index in range(size))
    assert all(bool(result[index].abs().max() > 0.1) for index in range(size, 2 * size)), "the other group is mixed"


def test_a_group_with_two_prompts_is_refused(module):
    samples = rollouts()
    samples[1].prompts = ["another"]
    with pytest.raises(module.BrokenGroup, match="group 0"):
        maker(module).compute_advantages_and_returns(batched(samples, 4))


def test_shuffled_labels_are_a_control(module):
    """K is computed from labels permuted within each group, so counts and base stay and values change."""
    plain, shuffled = maker(module), maker(module, "--algo.ktae.shuffle_labels", "true")
    batch = batched(rollouts(prompts=6), 4)
    scores = torch.cat([experience.scores for experience in batch])
    groups = torch.arange(len(scores)) // N
    permuted = shuffled._shuffled(scores, groups)
    assert not torch.equal(permuted, scores)
    assert torch.equal(permuted.view(-1, N).sum(1), scores.view(-1, N).sum(1))
    first = by_rollout(plain.compute_advantages_and_returns(batched(rollouts(prompts=6), 4)))
    second = by_rollout(shuffled.compute_advantages_and_returns(batched(rollouts(prompts=6), 4)))
    assert any(not torch.equal(first[index], second[index]) for index in first)
    assert shuffled.metrics["ktae/mixed_group_share"] == plain.metrics["ktae/mixed_group_share"]
