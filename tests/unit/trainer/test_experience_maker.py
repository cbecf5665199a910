"""Token-level credit in the host's experience maker, on batches made by hand: no Ray, no model."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from openrlhf_ktae.cli.options import parse_command_line

N = 4  # rollouts of a prompt
PAD = 0


@pytest.fixture(scope="module")
def module(host):
    from openrlhf_ktae.trainer.ppo_utils import experience_maker

    return experience_maker


BASE = (
    "--pretrain m --prompt_data d.jsonl --vllm_num_engines 1 --actor.num_gpus_per_node 1 "
    f"--advantage_estimator ktae --n_samples_per_prompt {N} --init_kl_coef 0"
).split()


def arguments(*words):
    return parse_command_line([*BASE, *words])


class Tokenizer:
    all_special_ids = (PAD, 1)
    pad_token_id = PAD

    def decode(self, ids):
        return f"<{ids[0]}>"


def maker(module, *words):
    args = arguments(*words)
    args.reward.clip_range = (-10, 10)
    kl = SimpleNamespace(value=0.0)
    return module.KTAEExperienceMaker(None, None, None, None, kl, SimpleNamespace(args=args), Tokenizer())


def rollouts(prompts=3, seed=0, late=()):
    """Single-rollout experiences in the host's layout; correct rollouts contain id 7, wrong ones id 8."""
    from openrlhf.trainer.ppo_utils.experience import Experience

    generator = torch.Generator().manual_seed(seed)
    samples = []
    for index in range(prompts * N):
        correct = index % N in (0, 1)
        length = int(torch.randint(3, 7, (1,), generator=generator))
        response = torch.randint(10, 14, (length,), generator=generator)
        response[0] = 7 if correct else 8
        sequence = torch.cat([torch.tensor([5, 6]), response, torch.tensor([1])]).unsqueeze(0)
        mask = torch.zeros(1, sequence.size(1) - 1)
        mask[:, 1:] = 1
        samples.append(
            Experience(
                sequences=sequence,
                attention_mask=torch.ones_like(sequence),
                action_mask=mask,
                action_log_probs=torch.zeros_like(mask),
                kl=torch.zeros_like(mask),
                rewards=torch.tensor([float(correct)]) - (2.0 if index in late else 0.0),
                scores=torch.tensor([float(correct)]),
                response_length=torch.tensor([length + 1]),
                truncated=torch.tensor([False]),
                total_length=torch.tensor([float(sequence.size(1))]),
                prompts=[f"prompt {index // N}"],
                labels=["x"],
                index=[index],
                info={"reward": torch.tensor([float(correct)])},
            )
        )
    return samples


def batched(samples, size):
    from openrlhf.trainer.ppo_utils.experience import Experience

    return [Experience.concat_experiences(samples[i : i + size], PAD) for i in range(0, len(samples), size)]


def by_rollout(experiences):
    """Advantages on action tokens, by the host's number of the rollout."""
    return {
        index: e.advantages[row][e.action_mask[row].bool()] for e in experiences for row, index in enumerate(e.index)
    }


def host_advantages(module, samples, size):
    plain = maker(module)
    return by_rollout(super(module.KTAEExperienceMaker, plain).compute_advantages_and_returns(batched(samples, size)))


def assert_same(left, right, exact=True):
    assert left.keys() == right.keys()
    for index in left:
        if exact:
            assert torch.equal(left[index], right[index])
        else:
            torch.testing.assert_close(left[index], right[index])


def test_credit_is_added_where_it_belongs(module):
    samples = rollouts()
    base = host_advantages(module, rollouts(), 4)
    credited = by_rollout(maker(module).compute_advantages_and_returns(batched(samples, 4)))
    for index, advantages in credited.items():
        added = advantages - base[index]
        assert (added[0] > 0.1) == (index % N in (0, 1)), "id 7 goes with being right, id 8 with being wrong"
        assert (added[0] < -0.1) == (index % N not in (0, 1))
        assert added[-1] == 0, "the end-of-text id gets no value"


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


def test_shadow_logs_what_ktae_would_give(module):
    shadow, real = maker(module, "--algo.ktae.shadow"), maker(module)
    for one in (shadow, real):
        one.compute_advantages_and_returns(batched(rollouts(), 4))
    keys = [key for key in real.metrics if key != "ktae/seconds"]
    assert keys
    assert [shadow.metrics[key] for key in keys] == [real.metrics[key] for key in keys]


def test_a_penalised_correct_answer_stays_correct(module):
    """The raw score decides: rollout 0 is right, but its reward is below 0 after a penalty."""
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


def test_one_sided_groups_are_the_host_exactly(module):
    samples = rollouts()
    for sample in samples:
        sample.scores = torch.tensor([1.0])
        sample.rewards = torch.tensor([1.0])
    tested = maker(module)
    result = by_rollout(tested.compute_advantages_and_returns(batched(samples, 4)))
    assert all(bool((advantages == 0).all()) for advantages in result.values())
    assert tested.metrics["ktae/mixed_group_share"] == 0.0


def test_a_group_of_two_prompts_is_refused(module):
    samples = rollouts()
    samples[1].prompts = ["another"]
    with pytest.raises(module.BrokenGroup, match="group 0"):
        maker(module).compute_advantages_and_returns(batched(samples, 4))
