"""The verl adapter on batches in verl's own form; needs an environment with verl (see docs/ktae.md)."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

pytest.importorskip("verl", reason="verl is absent: install verl==0.9.1 in an environment of its own (docs/ktae.md)")

from verl import DataProto
from verl.trainer.config import AlgoConfig
from verl.trainer.ppo import core_algos, ray_trainer

from openrlhf_ktae.adapters import verl as adapter
from openrlhf_ktae.credit import CreditBatch, estimators
from openrlhf_ktae.ktae import KTAEConfig, compute_key_token_values

PROMPTS, N, T = 3, 8, 12
SPECIAL = (2,)


def batch(acc=None, penalty=0.0):
    rng = np.random.default_rng(0)
    rows = PROMPTS * N
    correct = np.tile([1.0, 0.0], rows // 2)
    ids = rng.integers(2, 20, (rows, T))
    ids[correct == 1, 0] = 30
    mask = np.arange(T) < rng.integers(4, T + 1, (rows, 1))
    scores = np.zeros((rows, T), dtype=np.float32)
    scores[np.arange(rows), mask.sum(axis=1) - 1] = correct - penalty
    order = rng.permutation(rows)
    tensors = {"responses": ids, "response_mask": mask.astype(int), "token_level_scores": scores}
    tensors["token_level_rewards"] = scores - 0.01 * mask
    others = {"uid": np.array([f"prompt {i % PROMPTS}" for i in range(rows)], dtype=object)[order]}
    if acc is not None:
        others["acc"] = np.where(correct == 1, 1.0, 0.0)[order]
    return DataProto.from_dict({k: torch.tensor(v[order]) for k, v in tensors.items()}, non_tensors=others)


def advantages(data, estimator, **more):
    return ray_trainer.compute_advantage(data, adv_estimator=estimator, **more).batch["advantages"]


def expected_k(data, scores):
    groups = np.unique(data.non_tensor_batch["uid"], return_inverse=True)[1]
    inputs = (data.batch["responses"], data.batch["response_mask"], scores, groups)
    return compute_key_token_values(*inputs, adapter.options, SPECIAL).values_BT


@pytest.fixture(autouse=True)
def special_ids(monkeypatch):
    monkeypatch.setattr(adapter, "special_token_ids", SPECIAL)


@pytest.mark.parametrize("variant", ["paper", "calibrated"])
def test_the_registered_estimator_gives_grpo_plus_k(variant, monkeypatch):
    monkeypatch.setattr(adapter, "options", KTAEConfig(variant=variant))
    data = batch()
    k = expected_k(data, data.batch["token_level_scores"].sum(-1))
    assert k.any()
    assert torch.equal(advantages(batch(), "ktae"), advantages(batch(), "grpo") + k)
    assert core_algos.get_adv_estimator_fn("ktae") is adapter.ktae_advantages


def test_a_penalised_correct_answer_stays_correct_where_the_judge_says_so():
    data = batch(acc=True, penalty=2.0)
    k = expected_k(data, data.non_tensor_batch["acc"])
    assert k.any()
    assert torch.equal(advantages(data, "ktae"), advantages(batch(penalty=2.0), "grpo") + k)


def test_verl_options_reach_the_base():
    config = AlgoConfig(adv_estimator="ktae", norm_adv_by_std_in_grpo=False)
    data = batch()
    k = expected_k(data, data.batch["token_level_scores"].sum(-1))
    plain = advantages(batch(), "grpo", norm_adv_by_std_in_grpo=False)
    assert torch.equal(advantages(data, "ktae", config=config), plain + k)
    assert not torch.equal(plain, advantages(batch(), "grpo"))


def test_weight_zero_is_grpo_bit_for_bit(monkeypatch):
    monkeypatch.setattr(adapter, "options", KTAEConfig(weight=0.0))
    assert torch.equal(advantages(batch(), "ktae"), advantages(batch(), "grpo"))


def test_a_batch_without_responses_is_refused():
    data = batch()
    data.batch.pop("responses")
    with pytest.raises(RuntimeError, match="ktae needs responses"):
        advantages(data, "ktae")
    with pytest.raises(RuntimeError, match="ktae needs responses"):
        adapter.ktae_advantages(data.batch["token_level_rewards"], data.batch["response_mask"], ["a"])


def test_other_estimators_are_as_before():
    assert torch.equal(advantages(batch(), "grpo"), adapter._host(batch(), adv_estimator="grpo").batch["advantages"])


def test_verl_imports_it_when_told_by_its_environment_variable():
    code = (
        "import verl; from verl.trainer.ppo import core_algos; print(core_algos.get_adv_estimator_fn('ktae').__name__)"
    )
    environment = os.environ | {"VERL_USE_EXTERNAL_MODULES": "openrlhf_ktae.adapters.verl"}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert run.stdout.splitlines()[-1:] == ["ktae_advantages"], run.stderr


def test_special_ids_must_be_named(monkeypatch):
    monkeypatch.setattr(adapter, "special_token_ids", None)
    with pytest.raises(RuntimeError, match="special_token_ids"):
        advantages(batch(), "ktae")


@pytest.mark.parametrize("name", ["tempo", "lambda_grpo"])
def test_other_estimators_are_registered_too(name):
    data = batch()
    base = advantages(data, "grpo")
    groups = np.unique(data.non_tensor_batch["uid"], return_inverse=True)[1]
    scores = data.batch["token_level_scores"].sum(-1)
    inputs = data.batch["responses"], data.batch["response_mask"], scores, groups, base
    added = estimators()[name](CreditBatch.from_tables(*inputs, SPECIAL)).added_N.view(base.shape)
    assert added.any()
    torch.testing.assert_close(advantages(data, name), base + added)


def test_a_batch_without_what_an_estimator_needs_is_refused():
    with pytest.raises(RuntimeError, match="gtpo needs entropies"):
        advantages(batch(), "gtpo")
