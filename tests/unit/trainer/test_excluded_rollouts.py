"""Rollouts without information do not affect group statistics: compared with groups without them."""

from __future__ import annotations

import math

import pytest
import torch
from rollout_batches import arguments, batched, by_rollout, maker, rollouts

SMALL, OUT = 4, (2, 5)  # rollouts kept per prompt; positions of those excluded in a group of six


def advantages(module, samples, per_prompt, *words):
    made = maker(module, *words, "--n_samples_per_prompt", str(per_prompt))
    experiences = made.compute_advantages_and_returns(batched(samples, 6))
    return by_rollout(experiences), experiences, made


def with_outsiders(samples, how):
    """Insert two excluded rollouts among the four of each prompt."""
    grown, kept = [], []
    source = iter(samples)
    for group in range(len(samples) // SMALL):
        for number in range(6):
            index = group * 6 + number
            if number in OUT:
                sample = rollouts(1, seed=100 + index)[0]
                sample.prompts = [f"prompt {group}"]
                if how == "unknown":
                    sample.scores = torch.tensor([math.nan])
                    sample.info["score"] = torch.tensor([math.nan])
                else:
                    sample.action_mask = torch.zeros_like(sample.action_mask)
                    sample.rewards = torch.tensor([-1.0])
                    for key in ("kl", "logprobs_diff"):  # as the host's mean over zero tokens
                        sample.info[key] = torch.tensor([math.nan])
            else:
                sample = next(source)
                kept.append(index)
            sample.index = [index]
            grown.append(sample)
    return grown, kept


@pytest.mark.parametrize("how", ["unknown", "no action token"])
@pytest.mark.parametrize("base", ["group_norm", "dr_grpo", "rloo", "reinforce_baseline"])
def test_excluded_rollouts_change_nothing(module, base, how):
    words = ["--algo.ktae.base", base, "--reward.overlong_buffer_len", "3", "--max_new_tokens", "6"]
    words += ["--algo.ktae.weight", "0"]
    without, _, _ = advantages(module, rollouts(per_prompt=SMALL, lopsided=True), SMALL, *words)
    grown, kept = with_outsiders(rollouts(per_prompt=SMALL, lopsided=True), how)
    among, experiences, _ = advantages(module, grown, 6, *words)
    for index, number in zip(kept, sorted(without), strict=True):
        torch.testing.assert_close(among[index], without[number], msg=f"rollout {index}")
    for index in set(among) - set(kept):
        assert not among[index].any()
    assert any(without[number].any() for number in without)
    for e in experiences:
        assert not any(e.info[key].isnan().any() for key in e.info)


def test_tokens_of_excluded_rollouts_are_not_counted(module):
    without, _, _ = advantages(module, rollouts(per_prompt=SMALL), SMALL)
    grown, kept = with_outsiders(rollouts(per_prompt=SMALL), "unknown")
    among, _, made = advantages(module, grown, 6)
    for index, number in zip(kept, sorted(without), strict=True):
        torch.testing.assert_close(among[index], without[number])
    assert made.metrics["ktae/unknown_rollouts"] == len(grown) - len(kept)


def test_kl_in_the_reward_is_not_scaled(module):
    def penalised(samples):
        for sample in samples:
            sample.kl = torch.full_like(sample.kl, 0.1) * sample.action_mask
        return samples

    words = ["--algo.ktae.weight", "0"]

    def run(samples, per_prompt):
        made = maker(module, *words, "--n_samples_per_prompt", str(per_prompt))
        made.kl_ctl.value = 0.5
        return by_rollout(made.compute_advantages_and_returns(batched(penalised(samples), 6)))

    without = run(rollouts(per_prompt=SMALL), SMALL)
    grown, kept = with_outsiders(rollouts(per_prompt=SMALL), "unknown")
    among = run(grown, 6)
    for index, number in zip(kept, sorted(without), strict=True):
        torch.testing.assert_close(among[index], without[number])


def test_a_batch_of_excluded_rollouts_has_zero_advantages(module):
    samples = rollouts(per_prompt=SMALL)
    for sample in samples:
        sample.scores = torch.tensor([math.nan])
    result, experiences, made = advantages(module, samples, SMALL)
    assert all(not values.any() for values in result.values())
    assert made.metrics["ktae/mixed_group_share"] == 0
    assert all(torch.isfinite(e.advantages).all() for e in experiences)


def test_length_penalties_are_restored_afterwards(module):
    from openrlhf_ktae.base.temporarily import temporarily
    from openrlhf_ktae.trainer.ppo_utils.response_lengths import NO_PENALTIES

    args = arguments("--reward.overlong_buffer_len", "3", "--max_new_tokens", "6")
    with pytest.raises(KeyError), temporarily(args.reward, **NO_PENALTIES):
        assert args.reward.overlong_buffer_len is None
        raise KeyError
    assert args.reward.overlong_buffer_len == 3
