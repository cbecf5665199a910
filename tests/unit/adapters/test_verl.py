"""The verl adapter on batches in verl's format; needs verl installed (see docs/ktae.md)."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from marks import RARELY

pytest.importorskip("verl", reason="verl is absent: install verl==0.9.1 in an environment of its own (docs/ktae.md)")

from verl import DataProto
from verl.trainer.config import AlgoConfig
from verl.trainer.ppo import core_algos, ray_trainer

from openrlhf_ktae.adapters import verl as adapter
from openrlhf_ktae.credit import CreditBatch, estimators
from openrlhf_ktae.ktae import KTAEConfig, compute_key_token_values

PROMPTS, N, P, T = 3, 8, 5, 12
SPECIAL = (2,)
PADDING = 3
"""Of prompts; also an id in responses."""


def values(prompt, response):
    """Return values that differ by prompt and prefix; one token has none."""
    return [(sum(prompt) + sum(response[: t + 1])) % 7 / 7 if t != 1 else float("nan") for t in range(len(response))]


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
    more = np.random.default_rng(1)
    seen = np.arange(P) >= more.integers(0, P, (rows, 1))
    tensors["prompts"] = np.where(seen, more.integers(4, 12, (rows, P)), PADDING)
    tensors["attention_mask"] = np.concatenate([seen, mask], axis=1).astype(int)
    for name, sign in (("old_log_probs", -1), ("entropy", 1), ("sum_pi_squared", 1)):
        tensors[name] = (sign * more.random((rows, T))).astype(np.float32)
    others = {"uid": np.array([f"prompt {i % PROMPTS}" for i in range(rows)], dtype=object)[order]}
    if acc is not None:
        others["acc"] = np.where(correct == 1, 1.0, 0.0)[order]
    return DataProto.from_dict({k: torch.tensor(v[order]) for k, v in tensors.items()}, non_tensors=others)


def advantages(data, estimator, **more):
    return ray_trainer.compute_advantage(data, adv_estimator=estimator, **more).batch["advantages"]


def expected_k(data, scores):
    groups = np.unique(data.non_tensor_batch["uid"], return_inverse=True)[1]
    inputs = (data.batch["responses"], data.batch["response_mask"], scores, groups)
    return compute_key_token_values(*inputs, adapter.options, SPECIAL)


def expected_credit(data, name, base):
    """Return the estimator's credit for correct answers by score, from tables written out here."""
    groups = np.unique(data.non_tensor_batch["uid"], return_inverse=True)[1]
    tensors = dict(data.batch)
    seen = tensors["attention_mask"][:, :P].bool()
    prompts = [{*row[used].tolist()} for row, used in zip(tensors["prompts"], seen, strict=True)]
    given = {"log_probs": tensors["old_log_probs"], "entropies": tensors["entropy"]}
    given |= {"sum_squares": tensors["sum_pi_squared"]}
    given["values"] = torch.zeros(base.shape)
    for row, (ids, mask) in enumerate(zip(tensors["responses"], tensors["response_mask"], strict=True)):
        told = values(tensors["prompts"][row][seen[row]].tolist(), ids[mask == 1].tolist())
        given["values"][row, : len(told)] = torch.tensor(told)
    rows = zip(tensors["responses"].tolist(), prompts, strict=True)
    given["in_prompt"] = [[float(one in prompt) for one in row] for row, prompt in rows]
    labels = tensors["token_level_scores"].sum(-1), groups, base, SPECIAL
    tables = CreditBatch.from_tables(tensors["responses"], tensors["response_mask"], *labels, **given)
    one = estimators()[name]
    return one(tables, adapter.options if one.options is KTAEConfig else None).added_N.view(base.shape)


@pytest.fixture(autouse=True)
def special_ids(monkeypatch):
    monkeypatch.setattr(adapter, "special_token_ids", SPECIAL)
    monkeypatch.setattr(adapter, "values", values)


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
def queue(nothing_kept):
    """Start Ray and verl's TransferQueue."""
    import ray
    import transfer_queue

    ray.init(num_cpus=8, include_dashboard=False, log_to_driver=False, address="local")
    transfer_queue.init()
    yield transfer_queue
    transfer_queue.close()
    ray.shutdown()


def put(queue, data, name):
    """Put a batch into the queue as verl's agent loops do, in rows without padding."""
    from verl.utils.tensordict_utils import list_of_dict_to_tensordict

    lengths = data.batch["response_mask"].sum(-1).tolist()
    verdicts = data.non_tensor_batch.get("acc")
    rows = []
    for i, length in enumerate(lengths):
        said = {} if verdicts is None else {"acc": float(verdicts[i])}
        rows.append(
            {
                "uid": data.non_tensor_batch["uid"][i],
                "prompts": data.batch["prompts"][i][data.batch["attention_mask"][i, :P].bool()],
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
    """Runs the advantage step of verl's trainer, from its queue and back, and compares its advantages."""
    from verl.trainer.ppo.v1 import get_trainer_cls

    data = batch(acc=acc, penalty=2.0)
    found = {}
    for estimator in ("grpo", "ktae"):
        trainer = object.__new__(get_trainer_cls(mode))
        trainer.config = config_of(estimator)
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


@pytest.mark.parametrize("name", estimators())
def test_each_estimator_gives_grpo_plus_its_credit(name, monkeypatch):
    monkeypatch.setattr(adapter, "options", KTAEConfig(variant="calibrated"))
    data = batch()
    base = advantages(data, "grpo")
    added = expected_credit(data, name, base)
    assert added.any()
    assert torch.equal(advantages(data, name), base + added)


class Worker:
    """The policy's process: returns figures of prompts and responses, shifted by one token, as verl's does."""

    def __init__(self, data, put=None):
        self.data, self.put = data, put

    def compute_log_prob(self, batch):
        from tensordict import TensorDict
        from verl.utils import tensordict_utils

        asked, what = batch.extra_info if self.put else batch, "calculate_sum_pi_squared"
        names = {"log_probs": "old_log_probs", "entropy": "entropy"}
        if tensordict_utils.get(asked, what) if asked is batch else asked.get(what):
            names["sum_pi_squared"] = "sum_pi_squared"
        tensors, fields = self.data.batch, {}
        for name, source in names.items():
            rows = []
            for row, mask in zip(tensors[source], tensors["attention_mask"], strict=True):
                figures = torch.full((int(mask.sum()),), 9.0)
                size = int(mask[P:].sum())
                figures[-size - 1 : -1] = row[:size]
                rows.append(figures)
            fields[name] = torch.nested.as_nested_tensor(rows, layout=torch.jagged)
        output = TensorDict(fields, batch_size=[len(self.data)])
        if self.put:
            return self.put(batch.keys, batch.partition_id, fields=output)
        tensordict_utils.assign_non_tensor(output, metrics={"mfu": 0.0})
        return output


def config_of(name):
    from omegaconf import OmegaConf

    algorithm = {"adv_estimator": name, "gamma": 1.0, "lam": 1.0, "use_kl_in_reward": False}
    actor = {"calculate_sum_pi_squared": False, "loss_agg_mode": "token-mean", "loss_scale_factor": None}
    rollout = {"n": N, "temperature": 1.0, "calculate_log_probs": False}
    return OmegaConf.create({"algorithm": algorithm, "actor_rollout_ref": {"actor": actor, "rollout": rollout}})


@pytest.mark.parametrize("name", estimators())
def test_the_default_trainer_gets_each_estimators_inputs(queue, name):
    """Runs verl's steps for old log-probabilities and advantages, from its queue and back."""
    from verl.trainer.ppo.v1 import get_trainer_cls

    data, partition = batch(), f"inputs of {name}"
    trainer = object.__new__(get_trainer_cls("sync"))
    trainer.config, trainer.actor_rollout_wg = config_of(name), Worker(data, queue.kv_batch_put)
    given = put(queue, data, partition)
    made = trainer._compute_old_log_prob(given, {})
    assert "calculate_sum_pi_squared" not in given.extra_info | made.extra_info
    assert ("sum_pi_squared" in made.fields) == ("sum_squares" in estimators()[name].needs)
    made = trainer._compute_advantage(made, {})
    found = queue.kv_batch_get(made.keys, partition, select_fields=["advantages"])["advantages"].to_padded_tensor(0.0)
    data.batch["token_level_rewards"] = data.batch["token_level_scores"]
    base, width = advantages(data, "grpo"), found.size(1)
    mask = data.batch["response_mask"][:, :width]
    torch.testing.assert_close(found, (base + expected_credit(data, name, base))[:, :width] * mask, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", estimators())
def test_the_old_trainer_keeps_each_estimators_inputs(name):
    data = batch()
    base = advantages(data, "grpo")
    expected = base + expected_credit(data, name, base)
    trainer = object.__new__(ray_trainer.RayPPOTrainer)
    trainer.config, trainer.actor_rollout_wg = config_of(name), Worker(batch())
    for figure in ("old_log_probs", "entropy", "sum_pi_squared"):
        data.batch.pop(figure)
    data.batch["input_ids"] = torch.cat([data.batch["prompts"], data.batch["responses"]], dim=1)
    data.batch["position_ids"] = torch.zeros_like(data.batch["input_ids"])
    kept, _ = trainer._compute_old_log_prob(data)
    kept.batch.pop("entropys")  # as the trainer does
    assert not trainer.config.actor_rollout_ref.actor.calculate_sum_pi_squared
    found, mask = advantages(data.union(kept), name), data.batch["response_mask"]
    torch.testing.assert_close(found * mask, expected * mask, atol=1e-6, rtol=0)


def test_a_batch_without_an_estimators_inputs_is_refused(monkeypatch):
    data = batch()
    data.batch.pop("entropy")
    wanted = "adv_estimator=gtpo: the batch has no entropy; set algorithm.rollout_correction.bypass_mode=False"
    with pytest.raises(RuntimeError, match=wanted):
        advantages(data, "gtpo")
    monkeypatch.setattr(adapter, "values", None)
    with pytest.raises(
        ValueError, match=r"adv_estimator=mc_value: .* give a function .* as openrlhf_ktae.*verl.values"
    ):
        advantages(data, "mc_value")


STEP = """
data.train_batch_size=4 data.max_prompt_length=32 data.max_response_length=32
data.return_raw_chat=True data.dataloader_num_workers=0
actor_rollout_ref.model.use_remove_padding=False +actor_rollout_ref.model.override_config.attn_implementation=eager
actor_rollout_ref.actor.strategy=fsdp2 actor_rollout_ref.actor.ppo_mini_batch_size=4
actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=4 actor_rollout_ref.actor.fsdp_config.use_torch_compile=False
actor_rollout_ref.rollout.name=vllm actor_rollout_ref.rollout.n=4 actor_rollout_ref.rollout.enforce_eager=True
actor_rollout_ref.rollout.tensor_model_parallel_size=1 actor_rollout_ref.rollout.free_cache_engine=False
+actor_rollout_ref.rollout.enable_sleep_mode=False actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=4
actor_rollout_ref.rollout.agent.num_workers=1 reward.custom_reward_function.name=compute_score
trainer.device=cpu trainer.n_gpus_per_node=1 trainer.nnodes=1 trainer.total_training_steps=2
trainer.val_before_train=False trainer.test_freq=-1 trainer.save_freq=-1 trainer.logger=["console"]
+ray_kwargs.ray_init.address=local ray_kwargs.ray_init.num_cpus=32 +ray_kwargs.ray_init.num_gpus=1
+ray_kwargs.ray_init.include_dashboard=false transfer_queue.backend.SimpleStorage.num_data_storage_units=1
""".split()


@RARELY
@pytest.mark.parametrize("estimator", ["ktae", "ktae_by_context", "otb"])
def test_verl_trains_two_steps_on_a_cpu(tmp_path, estimator):
    """verl's own trainer, vLLM and FSDP2: credit reaches the advantages that verl reports and its update's loss."""
    pandas, here = pytest.importorskip("pandas"), Path(__file__).parent
    pytest.importorskip("vllm", reason="vLLM is absent: see docs/ktae.md")
    quickstart, model, data = here.parents[2] / "examples/quickstart", tmp_path / "model", tmp_path / "train.parquet"
    shutil.copytree(quickstart / "model", model)
    for name in ("tokenizer.json", "tokenizer_config.json"):  # verl looks for Qwen's end-of-turn token
        file = model / name
        file.write_text(file.read_text().replace("<eos>", "<|im_end|>"))
    template = json.loads(file.read_text()) | {"chat_template": "{{ messages[0]['content'] }}"}
    file.write_text(json.dumps(template))
    rows = [json.loads(line) for line in (quickstart / "data/train.jsonl").read_text().splitlines()[:16]]
    prompts = [
        {
            "data_source": row["datasource"],
            "prompt": [{"role": "user", "content": row["input"]}],
            "reward_model": {"style": "rule", "ground_truth": row["label"]},
            "extra_info": {"index": number},
        }
        for number, row in enumerate(rows)
    ]
    pandas.DataFrame(prompts).to_parquet(data)
    places = [f"data.train_files={data}", f"data.val_files={data}", f"actor_rollout_ref.model.path={model}"]
    places.append(f"reward.custom_reward_function.path={here}/verl_on_cpu.py")
    more = {"VERL_USE_EXTERNAL_MODULES": "verl_on_cpu", "VERL_PLATFORM": "cpu", "VERL_ENGINE_DEVICE": "cuda"}
    more |= {"PYTHONPATH": f"{here}:{here.parents[2]}", "MODEL": str(model), "VLLM_CPU_KVCACHE_SPACE": "1"}
    more |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "verl.trainer.main_ppo", f"algorithm.adv_estimator={estimator}", *STEP, *places]
    run = subprocess.run(command, capture_output=True, text=True, env=os.environ | more, cwd=tmp_path, timeout=450)
    assert run.returncode == 0, run.stderr[-3000:]
    means = np.array(re.findall(r"means (-?[\d.]+) (-?[\d.]+) ([\d.]+)", run.stdout), dtype=float)
    print(means, *re.findall(r"step:\d .*", run.stdout), sep="\n")
    assert means.shape == (2, 3) and means[:, 2].any(), run.stdout[-3000:]
    for name, sign in (("critic/advantages/mean", 1), ("actor/pg_loss", -1)):
        reported = np.array(re.findall(rf"{name}:(-?[\d.e-]+)", run.stdout), dtype=float)
        np.testing.assert_allclose(reported, sign * means[:, :2].sum(axis=1), atol=1e-4)
    assert any(float(norm) > 0 for norm in re.findall(r"actor/grad_norm:([\d.e-]+)", run.stdout))
