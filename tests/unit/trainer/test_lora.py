"""LoRA: names and values of merged weights against PEFT's own merge; saving; resuming from a checkpoint."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch

MODEL = "examples/quickstart/model"
WORDS = (
    f"--pretrain {MODEL} --prompt_data d.jsonl --vllm_num_engines 1 --actor.num_gpus_per_node 1 --label_key label "
    "--advantage_estimator ktae --n_samples_per_prompt 4 --rollout_batch_size 1 --train_batch_size 4 "
    "--micro_train_batch_size 4 --colocate_all_models --max_len 64 --backend cpu --ds.attn_implementation sdpa "
    "--ds.lora.rank 4 --actor.adam.lr 0.01 --actor.lr_scheduler constant"
)


def small(dtype, tied=True):
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "qwen2",
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=40,
        tie_word_embeddings=tied,
    )
    return AutoModelForCausalLM.from_config(config).to(dtype)


def adapted(model, targets, **more):
    """Return the host's model with `--ds.lora.*` and non-zero adapters, as after some training."""
    from peft import LoraConfig, TaskType, get_peft_model

    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM, r=4, lora_alpha=16, target_modules=targets, lora_dropout=0, bias="none", **more
    )
    made = get_peft_model(model, config)
    for name, parameter in made.named_parameters():
        if parameter.requires_grad and "lora" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("targets", "tied", "more"),
    [
        ("all-linear", True, {}),
        (["q_proj", "v_proj"], True, {"use_rslora": True}),
        (["embed_tokens", "lm_head", "down_proj"], False, {}),
    ],
)
def test_merged_weights_equal_pefts(targets, tied, more, dtype, host):
    from openrlhf_ktae.trainer.lora import MergedWeight, model_weights

    plain = small(dtype, tied)
    model = adapted(copy.deepcopy(plain), targets, **more)
    found = model_weights(model)
    assert list(found) == [name for name, _ in plain.named_parameters()], "must be the names that an engine knows"
    expected = copy.deepcopy(model).merge_and_unload().state_dict()
    for name, weight in found.items():
        assert weight.dtype == dtype and tuple(weight.shape) == tuple(expected[name].shape)
        # for embeddings PEFT rounds the product to bf16 before adding it, for other layers only the sum
        apart = torch.finfo(dtype).eps if dtype == torch.bfloat16 and "embed" in name else 0.0
        torch.testing.assert_close(weight.data, expected[name], rtol=apart, atol=apart / 10)
    changed = {name for name, weight in plain.named_parameters() if not torch.equal(weight, found[name].data)}
    assert changed == {name for name, weight in found.items() if isinstance(weight, MergedWeight)}
    base = {name.replace(".base_layer", ""): p for name, p in model.get_base_model().named_parameters()}
    assert all(torch.equal(base[name], weight) for name, weight in plain.named_parameters()), "the base must not change"


def test_a_model_without_adapters_is_sent_unchanged(host):
    from openrlhf_ktae.trainer.lora import model_weights

    plain = small(torch.float32)
    assert list(model_weights(plain).values()) == list(plain.parameters())


@pytest.fixture
def loaded(group, root, monkeypatch):
    """Load the host's model with adapters into DeepSpeed, as a rank does."""
    monkeypatch.chdir(root)
    from openrlhf.models import Actor
    from openrlhf.utils import get_tokenizer

    from openrlhf_ktae.cli.options import parse_command_line
    from openrlhf_ktae.trainer.ray.cpu_actors import CpuDeepspeedStrategy

    def load(stage, dtype):
        args = parse_command_line([*WORDS.split(), "--zero_stage", str(stage), "--param_dtype", dtype])
        strategy = CpuDeepspeedStrategy(
            args=args, zero_stage=stage, max_norm=1.0, train_batch_size=4, micro_train_batch_size=4
        )
        strategy.setup_distributed()
        lora = args.ds.lora
        actor = Actor(
            MODEL,
            attn_implementation="sdpa",
            param_dtype=dtype,
            lora_rank=lora.rank,
            lora_alpha=lora.alpha,
            target_modules=lora.target_modules,
            ds_config=strategy.get_ds_train_config(),
        )
        tokenizer = get_tokenizer(MODEL, actor.model, "left", strategy)
        settings = {
            **{"optim": "adam", "muon": {}, "adam": vars(args.actor.adam), "lr_scheduler": "constant"},
            **{"lr_warmup_ratio": 0.0, "min_lr_ratio": 0.1, "max_norm": 1.0, "scheduler_steps": 10},
        }
        return strategy, tokenizer, strategy.prepare((actor, settings))

    return load


def step(strategy, prepared, seed=0):
    actor, optimizer, scheduler = prepared
    ids = torch.randint(3, 190, (4, 16), generator=torch.Generator().manual_seed(seed))
    log_probs = actor(ids, attention_mask=torch.ones_like(ids), action_mask=torch.ones(4, 15))
    strategy.backward(-log_probs.mean(), actor, optimizer)
    strategy.optimizer_step(optimizer, actor, scheduler)


@pytest.mark.parametrize(("stage", "dtype"), [(3, "fp32"), (3, "bf16"), (2, "bf16")])
def test_sent_weights_equal_saved_ones_and_training_continues(stage, dtype, loaded, tmp_path):
    from peft import PeftModel
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from openrlhf_ktae.trainer.lora import gathered, model_weights

    def sent(prepared):
        return gathered(model_weights(prepared[0].model.module).items())

    strategy, tokenizer, prepared = loaded(stage, dtype)
    start = load_file(f"{MODEL}/model.safetensors")
    before = sent(prepared)
    assert before.keys() == start.keys()
    assert all(torch.equal(before[name], start[name].to(before[name].dtype)) for name in start)
    step(strategy, prepared)
    after = sent(prepared)
    changed = {name for name in start if not torch.equal(before[name], after[name])}
    assert changed == {name for name in start if name.endswith("proj.weight")}

    strategy.save_model(prepared[0], tokenizer, str(tmp_path / "model"))
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype="auto").state_dict()
    assert all(torch.equal(merged[name], weight) for name, weight in after.items())
    assert len(AutoTokenizer.from_pretrained(tmp_path / "model")) == len(tokenizer)
    base = AutoModelForCausalLM.from_pretrained(MODEL, dtype=after["model.embed_tokens.weight"].dtype)
    again = PeftModel.from_pretrained(base, tmp_path / "model/adapter").merge_and_unload().state_dict()
    for name, weight in after.items():  # with ZeRO-2 DeepSpeed rounds adapters to bf16, and PEFT their product
        apart = torch.finfo(torch.bfloat16).eps if (stage, dtype) == (2, "bf16") else 0.0
        torch.testing.assert_close(again[name], weight, rtol=apart, atol=apart / 100)

    strategy.save_ckpt(prepared[0].model, str(tmp_path / "checkpoint"), "one", client_state={"step": 1})
    step(strategy, prepared, seed=1)
    expected = sent(prepared)
    _, _, other = loaded(stage, dtype)
    _, states = strategy.load_ckpt(other[0].model, str(tmp_path / "checkpoint"))
    assert states["step"] == 1
    assert {name for name, weight in sent(other).items() if not torch.equal(weight, after[name])} == set()
    step(strategy, other, seed=1)
    assert {name for name, weight in sent(other).items() if not torch.equal(weight, expected[name])} == set()


@pytest.mark.parametrize("ipc", [False, True])
def test_the_host_s_loop_sends_merged_weights(ipc, loaded, monkeypatch):
    """The `cuda` backend sends through the host's loop, by CUDA IPC or a group; both are faked without a GPU."""
    from torch.multiprocessing import reductions

    from openrlhf_ktae.trainer.lora import gathered, model_weights
    from openrlhf_ktae.trainer.ray import ppo_actor

    strategy, _, prepared = loaded(3, "bf16")
    step(strategy, prepared)
    trainer = ppo_actor.KTAEActorPPOTrainer.__new__(ppo_actor.KTAEActorPPOTrainer)
    trainer.strategy, trainer.actor, trainer.use_cuda_ipc, trainer.vllm_engines = strategy, prepared[0], ipc, ["engine"]
    told, sent = [], []

    def tell(method, name, dtype, shape, ipc_handles=None, empty_cache=False):
        told.append((method, name, dtype, tuple(shape)))
        if ipc:
            sent.append(ipc_handles["gpu"])

    trainer._sending = SimpleNamespace(tell=tell, received=lambda: None, lost=None, guarded=lambda: _Nothing())
    trainer._model_update_group = SimpleNamespace(broadcast=lambda tensor, src, stream: sent.append(tensor.clone()))
    monkeypatch.setattr(ppo_actor, "EveryEngine", lambda sending: _Engine(sending))
    monkeypatch.setattr(ppo_actor.host, "get_physical_gpu_id", lambda: "gpu")
    monkeypatch.setattr(ppo_actor.host.ray, "get", lambda refs: None)
    monkeypatch.setattr(reductions, "reduce_tensor", lambda tensor: tensor.clone())
    trainer._send_weights()
    expected = gathered(model_weights(prepared[0].model.module).items())
    method = "update_weight_cuda_ipc" if ipc else "update_weight"
    assert told == [(method, name, weight.dtype, tuple(weight.shape)) for name, weight in expected.items()]
    assert all(torch.equal(one, weight) for one, weight in zip(sent, expected.values(), strict=True))
    assert trainer.actor is prepared[0]


class _Nothing:
    def __enter__(self):
        return self

    def __exit__(self, *_):
        return False


class _Engine:
    def __init__(self, sending):
        self._sending = sending

    def __getattr__(self, method):
        return SimpleNamespace(remote=lambda *a, **k: self._sending.tell(method, *a, **k))
