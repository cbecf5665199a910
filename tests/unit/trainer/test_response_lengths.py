"""Overlong shaping, masking of truncated responses, and the normaliser of the loss."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from rollout_batches import N, batched, by_rollout, maker, rollouts


@pytest.fixture(scope="module")
def lengths(host):
    from openrlhf_ktae.trainer.ppo_utils import response_lengths

    return response_lengths


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [(0, 0.0), (80, 0.0), (85, -0.25), (90, -0.5), (99, -0.95), (100, -1.0), (130, -1.0)],
)
def test_the_papers_penalty(lengths, tokens, expected):
    """With limit 100 and buffer 20: 0 up to 80, -1 at 100 (arXiv 2503.14476, eq. 13)."""
    penalty = lengths.overlong_penalty(torch.tensor([tokens]), torch.tensor([100]), 20, 1.0)
    assert penalty.item() == pytest.approx(expected)
    doubled = lengths.overlong_penalty(torch.tensor([tokens]), torch.tensor([100]), 20, 2.0)
    assert doubled.item() == pytest.approx(2 * expected)


def multi_turn(prompt, turns, tool):
    """Return a rollout: prompt tokens, then twice `turns` action tokens and `tool` tokens."""
    from openrlhf.trainer.ppo_utils.experience import Experience

    mask = [0] * prompt + ([1] * turns + [0] * tool) * 2
    action_mask = torch.tensor([mask[1:]])
    return Experience(
        sequences=torch.ones(1, len(mask), dtype=torch.long),
        action_mask=action_mask,
        total_length=torch.tensor([float(len(mask))]),
        response_length=torch.tensor([2 * turns + tool]),
        rewards=torch.tensor([1.0]),
        truncated=torch.tensor([False]),
    )


def test_only_action_tokens_count(lengths):
    rollout = multi_turn(prompt=10, turns=8, tool=5)
    assert lengths.response_tokens(rollout).tolist() == [16]
    assert lengths.response_limits(rollout, 100, None).tolist() == [100 - 20]
    assert lengths.response_limits(rollout, 100, 30).tolist() == [30]
    assert lengths.response_limits(rollout, 40, 30).tolist() == [20], "the context ends before --max_new_tokens"


def options(buffer, max_len, max_new_tokens, factor=1.0):
    return SimpleNamespace(
        reward=SimpleNamespace(overlong_buffer_len=buffer, overlong_penalty_factor=factor),
        data=SimpleNamespace(max_len=max_len),
        rollout=SimpleNamespace(max_new_tokens=max_new_tokens),
    )


@pytest.mark.parametrize("max_new_tokens", [None, 16])
def test_a_response_at_its_limit_gets_the_full_penalty(lengths, max_new_tokens):
    """The host takes the whole context as the limit, which no response can reach."""
    rollout = multi_turn(prompt=10, turns=8, tool=5)
    lengths.shape_overlong([rollout], options(8, max_len=36, max_new_tokens=max_new_tokens))
    assert rollout.rewards.tolist() == [0.0]


def test_the_maker_shapes_once_and_keeps_raw_scores(module):
    """In the host's own computation; scores are equal, so only the length penalty distinguishes rollouts."""
    samples = rollouts(prompts=1)
    for sample in samples:
        sample.scores, sample.rewards = torch.tensor([1.0]), torch.tensor([1.0])
    words = ("--overlong_buffer_len", "4", "--max_new_tokens", "8", "--max_len", "64")
    tested = maker(module, *words)
    tokens = [int(sample.action_mask.sum()) for sample in samples]
    made = tested.compute_advantages_and_returns(batched(samples, N))
    expected = [1.0 - min(max(count - 4, 0), 4) / 4 for count in tokens]
    assert made[0].rewards.tolist() == pytest.approx(expected)
    assert made[0].info["reward"].tolist() == pytest.approx(expected)
    assert made[0].scores.tolist() == [1.0] * N
    assert tested.args.reward.overlong_buffer_len == 4, "the option must be restored"
    advantages = by_rollout(made)
    longest, shortest = tokens.index(max(tokens)), tokens.index(min(tokens))
    assert advantages[longest][0] < 0 < advantages[shortest][0]


def test_truncated_responses_leave_the_loss_but_not_the_statistics(module, lengths):
    plain = maker(module).compute_advantages_and_returns(batched(rollouts(), 4))
    samples = rollouts()
    samples[1].truncated = samples[6].truncated = torch.tensor([True])
    made = maker(module).compute_advantages_and_returns(batched(samples, 4))
    share = lengths.mask_truncated(made)
    assert share == pytest.approx(2 / 12)
    tokens = {index: int(e.action_mask[row].sum()) for e in made for row, index in enumerate(e.index)}
    assert [index for index, count in tokens.items() if count == 0] == [1, 6]
    expected, left = by_rollout(plain), by_rollout(made)
    for index in expected:
        if index not in (1, 6):
            assert torch.equal(left[index], expected[index])


def args_of_loss(constant, dynamic=False):
    return SimpleNamespace(
        train=SimpleNamespace(batch_size=16, dynamic_batch_enable=dynamic),
        rollout=SimpleNamespace(max_new_tokens=32),
        actor=SimpleNamespace(dr_grpo_norm=constant),
    )


@pytest.mark.parametrize("dynamic", [False, True])
def test_dr_grpo_divides_by_a_constant(host, dynamic):
    from openrlhf_ktae.trainer.ray.ppo_actor import normaliser

    parts = 1 if dynamic else 4
    infos = [
        {"dp_size": 2, "batch_num_tokens": torch.tensor(n / parts), "global_batch_size": torch.tensor(16.0 / parts)}
        for n in (100.0, 321.0)
    ]
    constant = [normaliser(info, args_of_loss(True, dynamic), 4)["batch_num_tokens"].item() for info in infos]
    assert constant == [16 * 32 / parts] * 2
    own = [normaliser(info, args_of_loss(False, dynamic), 4) for info in infos]
    assert [info["batch_num_tokens"].item() for info in own] == [100 / parts, 321 / parts]


def test_a_step_of_masked_responses_has_loss_zero(host):
    from openrlhf.models.loss import aggregate_loss

    from openrlhf_ktae.trainer.ray.ppo_actor import normaliser

    zero = {"dp_size": 1, "batch_num_tokens": torch.tensor(0.0), "global_batch_size": torch.tensor(0.0)}
    losses, mask = torch.ones(2, 3), torch.zeros(2, 3)
    assert torch.isnan(aggregate_loss(losses, mask, **zero)), "the host alone would make the weights NaN"
    info = normaliser(zero, args_of_loss(False), 1)
    assert aggregate_loss(losses, mask, token_level_loss=True, **info) == 0
    assert aggregate_loss(losses, mask, token_level_loss=False, **info) == 0


def test_the_schedule_moves_forward_with_the_data(host):
    """20 updates are planned, filtering leaves 8; the final rate must be the schedule's last, not that of update 8."""
    from transformers.optimization import get_cosine_schedule_with_warmup

    from openrlhf_ktae.trainer.ray.ppo_actor import forward_schedule

    def schedule():
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        return optimizer, get_cosine_schedule_with_warmup(optimizer, 2, 20)

    def rates(positions):
        optimizer, scheduler = schedule()
        taken = []
        for position in positions:
            forward_schedule(scheduler, position)
            taken.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        return taken, scheduler.get_last_lr()[0]

    unfiltered, _ = rates(range(20))
    plain, last = rates([0] * 20)
    assert unfiltered == plain
    assert last == pytest.approx(0, abs=1e-9)
    filtered, last = rates([0, 2, 5, 7, 10, 13, 16, 19])
    assert filtered == [plain[i] for i in (0, 2, 5, 7, 10, 13, 16, 19)]
    assert last == pytest.approx(0, abs=1e-9)


def test_the_penalty_is_applied_once_if_a_rollout_is_excluded(module):
    """An empty rollout takes another path through the maker, which must not change other rewards."""
    words = ("--overlong_buffer_len", "4", "--max_new_tokens", "8", "--max_len", "64", "--algo.ktae.weight", "0")
    plain = maker(module, *words).compute_advantages_and_returns(batched(rollouts(), 4))
    samples = rollouts()
    samples[0].action_mask = torch.zeros_like(samples[0].action_mask)
    made = maker(module, *words).compute_advantages_and_returns(batched(samples, 4))
    rewards = [torch.cat([e.rewards for e in batch]).tolist() for batch in (plain, made)]
    assert rewards[0][1:] == pytest.approx(rewards[1][1:])
    assert min(rewards[0]) < 0
