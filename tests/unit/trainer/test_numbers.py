"""Non-finite numbers never reach the weights; a collapsing policy is detected."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from small_engines import initialized, weights

from openrlhf_ktae.base.faults_config import FaultsConfig


def engine(stage, dtype):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 1))
    return initialized(model, stage, bf16={"enabled": dtype == torch.bfloat16}, gradient_clipping=1.0)


def update(made, factor, dtype):
    loss = made(torch.ones(1, 4, dtype=dtype)).sum() * factor
    made.backward(loss)
    made.step()


@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_non_finite_update_is_skipped(stage, dtype, bad, group):
    from openrlhf_ktae.trainer.nonfinite import skip_nonfinite_updates

    made = engine(stage, dtype)
    skip_nonfinite_updates(made.optimizer)
    before = weights(made)
    update(made, bad, dtype)
    assert made.skipped_steps == 1
    assert torch.equal(weights(made), before)
    update(made, 1.0, dtype)
    assert made.skipped_steps == 1
    after = weights(made)
    assert after.isfinite().all()
    assert not torch.equal(after, before), "the next update must happen"


def test_gradients_whose_sum_overflows_are_not_skipped(group):
    """The quick check is a sum; if it is not finite, DeepSpeed's own check decides."""
    from openrlhf_ktae.trainer.nonfinite import skip_nonfinite_updates

    made = engine(3, torch.float32)
    skip_nonfinite_updates(made.optimizer)
    made.optimizer.clip_grad = 0.0
    update(made, 2e38, torch.float32)
    assert made.skipped_steps == 0
    assert not made.optimizer.grad_partitions_flat_buffer.sum().isfinite(), "nothing overflowed: the test is void"


def test_zero_3_has_fp32_parameters_once_and_one_rank_copies_no_gradients(group, monkeypatch):
    from deepspeed.runtime.zero import stage3

    made = engine(3, torch.float32)
    zero = made.optimizer
    assert all(
        ours.data_ptr() == theirs.data_ptr()
        for ours, theirs in zip(zero.fp32_partitioned_groups_flat, zero.fp16_partitioned_groups_flat, strict=True)
    )
    grads = [torch.ones(2, 3), torch.ones(4)]
    parts = stage3.reduce_scatter_coalesced(grads)
    assert [part.data_ptr() for part in parts] == [grad.data_ptr() for grad in grads]
    seen = []
    step = zero._optimizer_step
    monkeypatch.setattr(
        zero,
        "_optimizer_step",
        lambda i: seen.append(zero.fp32_partitioned_groups_flat[i].grad.untyped_storage().data_ptr()) or step(i),
    )
    update(made, 1.0, torch.float32)
    assert set(seen) == {zero.grad_partitions_flat_buffer.untyped_storage().data_ptr()}


def test_without_the_check_weights_become_non_finite(group):
    """Counterfactual: plain DeepSpeed with ZeRO-3 in fp32."""
    made = engine(3, torch.float32)
    update(made, float("nan"), torch.float32)
    assert made.skipped_steps == 0
    assert weights(made).isnan().any()


def experience(**changes):
    values = {
        "scores": torch.tensor([1.0, float("nan")]),
        "action_mask": torch.tensor([[0, 1, 1], [0, 0, 1]]),
        "advantages": torch.tensor([[float("nan"), 0.5, 0.1], [0.0, 0.0, -0.5]]),
        "action_log_probs": torch.zeros(2, 3),
        "base_action_log_probs": None,
        "prompts": ["a", "b"],
        "labels": ["1", "2"],
        "sequences": torch.arange(8).reshape(2, 4),
    }
    return SimpleNamespace(**{**values, **changes})


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"scores": torch.tensor([1.0, float("inf")])}, "a score is infinite"),
        ({"advantages": torch.full((2, 3), float("nan"))}, "advantages"),
        ({"advantages": torch.tensor([[0.0, float("nan"), 0.0], [0.0, 0.0, 0.0]])}, "advantages"),
        ({"action_log_probs": torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, -float("inf")]])}, "action log probs"),
    ],
)
def test_a_non_finite_batch_is_refused_and_saved(changes, what, host, tmp_path):
    from openrlhf_ktae.trainer.nonfinite import MOST_BATCHES, NonFiniteBatch, refuse_nonfinite, save_batch

    refuse_nonfinite([experience(action_log_probs=torch.full((2, 3), float("nan")))])  # left to the update
    good = experience()
    refuse_nonfinite([good])  # unknown verdicts and prompt positions may be NaN
    with pytest.raises(NonFiniteBatch, match=what) as refusal:
        refuse_nonfinite([good, experience(**changes)])
    path = save_batch(tmp_path, 7, str(refusal.value), refusal.value.experiences)
    saved = torch.load(path, weights_only=True)
    assert (saved["step"], saved["what"]) == (7, str(refusal.value))
    assert len(saved["micro_batches"]) == 2
    assert saved["micro_batches"][0]["prompts"] == ["a", "b"]
    for step in range(8, 30):
        save_batch(tmp_path, step, "", [good])
    assert len(list((tmp_path / "postmortem").iterdir())) == MOST_BATCHES


RULES = {
    "min_entropy": ("entropy_loss", 0.1, 0.2, 0.05),
    "max_length": ("rollout/response_length_mean", 100.0, 90.0, 101.0),
    "max_repetition": ("faults/repetition", 0.5, 0.1, 0.6),
    "max_kl": ("kl", 1.0, 0.5, 2.0),
    "min_mixed_share": ("ktae/mixed_group_share", 0.2, 0.5, 0.1),
}


@pytest.mark.parametrize("option", RULES)
def test_a_collapse_is_noticed_after_its_patience(option, host):
    from openrlhf_ktae.trainer.collapse import RULES as ALL
    from openrlhf_ktae.trainer.collapse import CollapseWatch

    assert set(RULES) == {rule.option for rule in ALL}
    name, limit, right, wrong = RULES[option]
    watch = CollapseWatch(FaultsConfig(**{option: limit}, collapse_patience=2))
    values = [wrong, right, wrong, None, wrong, wrong, right]
    found = [len(watch.breaches({} if value is None else {name: value})) for value in values]
    assert found == [0, 0, 0, 0, 1, 0, 0], "only two in a row count; steps without the figure do not"
    watch.breaches({name: wrong})
    (sentence,) = watch.breaches({name: wrong})
    assert f"--faults.{option} {limit:g}" in sentence
    assert name in sentence


def test_without_rules_there_are_no_breaches(host):
    from openrlhf_ktae.trainer.collapse import CollapseWatch

    assert CollapseWatch(FaultsConfig()).breaches({"entropy_loss": 0.0, "kl": 1e9}) == []


def test_repetition_counts_ngrams_that_occurred_before(host):
    from openrlhf_ktae.trainer.collapse import repetition

    def of_all(rows):
        return repetition([row.numpy() for row in rows], [np.ones(len(row)) for row in rows])

    assert of_all([torch.arange(20)]) == 0
    assert of_all([torch.zeros(7, dtype=torch.long)]) == pytest.approx(3 / 4)  # 4 four-grams, one distinct
    assert of_all([torch.arange(3)]) == 0
    assert of_all([torch.arange(7), torch.zeros(7, dtype=torch.long)]) == pytest.approx(3 / 8)


def test_steps_without_learning_are_noted_once(host):
    from openrlhf_ktae.trainer.collapse import CollapseTrainer

    watch = CollapseTrainer()
    spread = [0.3, 0.0, 0.0, 0.0, 0.2, 0.0, None, 0.0]
    notes = [watch._idle_note({"group_reward_std": value}) for value in spread]
    assert [note is not None for note in notes] == [False, False, True, False, False, False, False, True]
    assert "rewards are equal in every group" in notes[2]
