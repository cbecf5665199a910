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


def test_a_penalised_correct_answer_stays_correct_by_its_verdict():
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


def test_other_estimators_are_unchanged():
    assert torch.equal(advantages(batch(), "grpo"), adapter._host(batch(), adv_estimator="grpo").batch["advantages"])


def test_verl_imports_it_through_its_environment_variable():
    code = (
        "import verl; from verl.trainer.ppo import core_algos; print(core_algos.get_adv_estimator_fn('ktae').__name__)"
    )
    environment = os.environ | {"VERL_USE_EXTERNAL_MODULES": "openrlhf_ktae.adapters.verl"}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert run.stdout.splitlines()[-1:] == ["ktae_advantages"], run.stderr


@pytest.fixture(scope="module")
def queue():
    """verl's TransferQueue, with Ray."""
    import ray
    import transfer_queue

    ray.init(num_cpus=8, include_dashboard=False, log_to_driver=False, address="local")
    transfer_queue.init()
    yield transfer_queue
    transfer_queue.close()
    ray.shutdown()


def put(queue, data, name):
    """Put a batch into the queue as verl's agent loops do: rows without padding."""
    from verl.utils.tensordict_utils import list_of_dict_to_tensordict

    lengths = data.batch["response_mask"].sum(-1).tolist()
    verdicts = data.non_tensor_batch.get("acc")
    rows = []
    for i, length in enumerate(lengths):
        said = {} if verdicts is None else {"acc": float(verdicts[i])}
        rows.append(
            {
                "uid": data.non_tensor_batch["uid"][i],
                "responses": data.batch["responses"][i, :length],
                "response_mask": data.batch["response_mask"][i, :length],
                "rm_scores": data.batch["token_level_scores"][i, :length],
                "extra_fields": {"reward_extra_info": said},
            }
        )
    keys = [f"{i}_{row['uid']}_0_0" for i, row in enumerate(rows)]
    return queue.kv_batch_put(keys, name, fields=list_of_dict_to_tensordict(rows))


@pytest.mark.parametrize("acc", [None, True])
@pytest.mark.parametrize("mode", ["sync", "colocate_async", "separate_async"])
def test_verls_trainers_give_grpo_plus_k(queue, mode, acc):
    """The step of verl's trainer between rewards and update, from its queue and back; what it trains on is compared."""
    from omegaconf import OmegaConf
    from verl.trainer.ppo.v1 import get_trainer_cls

    data = batch(acc=acc, penalty=2.0)
    found = {}
    for estimator in ("grpo", "ktae"):
        trainer = object.__new__(get_trainer_cls(mode))
        algorithm = {"adv_estimator": estimator, "gamma": 1.0, "lam": 1.0, "use_kl_in_reward": False}
        rollout = {"actor_rollout_ref": {"rollout": {"n": N}}}
        trainer.config = OmegaConf.create({"algorithm": algorithm, **rollout})
        partition = f"{mode} {acc} {estimator}"
        meta = trainer._compute_advantage(put(queue, data, partition), {})
        fetched = queue.kv_batch_get(meta.keys, partition, select_fields=["advantages"])
        found[estimator] = fetched["advantages"].to_padded_tensor(0.0)
    scores = data.batch["token_level_scores"].sum(-1) if acc is None else data.non_tensor_batch["acc"]
    k = expected_k(data, scores)
    width = found["ktae"].size(1)
    assert k.any() == bool(acc), "without a verdict, no answer with a penalty of 2 is correct"
    assert torch.equal(found["ktae"], found["grpo"] + k[:, :width] * data.batch["response_mask"][:, :width])


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
