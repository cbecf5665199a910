"""Parts of the CPU backend that need no cluster."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
import torch
from marks import CPU_BUILDS, SLOW

from openrlhf_ktae.backend import cpu_memory, flash_attn_stub, resolve
from openrlhf_ktae.backend.base import devices_needed
from openrlhf_ktae.backend.cpu import CpuBackend, kv_cache_bytes
from openrlhf_ktae.backend.cpu_patches import (
    ENGINE_THREADS_VARIABLE,
    ENGINE_VARIABLE,
    interface_of,
    sample_with_uniform_numbers,
)
from openrlhf_ktae.base.errors import BadOption
from openrlhf_ktae.base.free_port import free_port
from openrlhf_ktae.cli.options import parse_command_line
from openrlhf_ktae.trainer.ray import cpu_weight_sync as sync


@CPU_BUILDS
def test_auto_is_cpu_with_the_cpu_build():
    assert resolve("auto").name == "cpu"
    with pytest.raises(BadOption, match="--backend cpu"):
        resolve("cuda")


def test_gloo_listens_on_the_interface_of_an_address():
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("192.0.2.77") is None


def test_ids_are_sampled_with_their_probabilities():
    module = SimpleNamespace(__name__="sampler", torch=torch, compiled_random_sample=None)
    sample_with_uniform_numbers(module)
    logits = torch.tensor([3.0, 1.0, 2.0, -torch.inf, 0.0])
    torch.manual_seed(0)
    found = module.compiled_random_sample(logits.expand(100_000, -1).clone())
    shares, expected = torch.bincount(found, minlength=5) / len(found), logits.softmax(-1)
    assert shares[3] == 0
    assert ((shares - expected).abs() <= 4 * (expected * (1 - expected) / len(found)).sqrt()).all()


@pytest.mark.parametrize(
    ("words", "devices"),
    [
        (["--colocate_all_models", "--actor.num_gpus_per_node", "2"], 2),
        (["--actor.num_gpus_per_node", "1"], 2),
        (["--actor.num_gpus_per_node", "1", "--init_kl_coef", "0.1", "--ref.num_gpus_per_node", "1"], 3),
        (["--colocate_all_models", "--actor.num_gpus_per_node", "1", "--async_train"], 2),
    ],
)
def test_devices_the_host_will_request(words, devices):
    base = ["--pretrain", "m", "--vllm_num_engines", "1", "--init_kl_coef", "0", "--n_samples_per_prompt", "4"]
    args = parse_command_line([*base, "--advantage_estimator", "ktae", "--remote_rm_url", "http://x", *words])
    assert devices_needed(args) == devices


@pytest.mark.parametrize(
    ("words", "devices"),
    [
        ([], 4),
        (["--train.colocate_critic_reward"], 3),
        (["--colocate_all_models"], 1),
        (["--colocate_all_models", "--train.colocate_critic_reward"], 2),
        (["--critic.model_name_or_path", ""], 3),
        (["--critic.model_name_or_path", "", "--train.colocate_critic_reward"], 3),
        (["--critic.model_name_or_path", "", "--colocate_all_models", "--train.colocate_critic_reward"], 1),
    ],
)
def test_devices_of_a_critic_and_a_reward_model(words, devices):
    """The host gives them devices of their own; the reward model shares the critic's, if any."""
    base = ["--pretrain", "m", "--vllm_num_engines", "1", "--init_kl_coef", "0", "--reward.model_name_or_path", "r"]
    sizes = [f"--{model}.num_gpus_per_node=1" for model in ("actor", "critic", "reward")]
    args = parse_command_line([*base, *sizes, "--advantage_estimator", "gae", *words])
    assert devices_needed(args) == devices


def test_the_engines_cache_holds_all_rollouts_of_a_call(tmp_path):
    """SmolLM2-135M in fp32 takes 46,080 bytes per token; 256 MiB held only 22 of 64 rollouts at once."""
    sizes = {"hidden_size": 576, "num_hidden_layers": 30, "intermediate_size": 1536, "num_attention_heads": 9}
    shape = {"model_type": "llama", "num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True}
    (tmp_path / "config.json").write_text(json.dumps({**sizes, **shape}))
    model = str(tmp_path)
    assert kv_cache_bytes(model, "fp32", 64, 192) == 64 * 256 * 46_080
    assert kv_cache_bytes(model, "bf16", 64, 256) == 64 * 256 * 23_040
    assert [kv_cache_bytes(model, "fp32", n, 1000) for n in (1, 1000)] == [64 * 2**20, 2 * 2**30]
    assert kv_cache_bytes("no such model", "fp32", 64, 192) == 256 * 2**20
    words = ["--pretrain", model, "--n_samples_per_prompt", "8", "--rollout_batch_size", "16", "--max_len", "192"]
    words += ["--vllm_num_engines", "2", "--param_dtype", "fp32", "--backend", "cpu", "--init_kl_coef", "0"]
    args = parse_command_line([*words, "--advantage_estimator", "ktae"])
    engine = json.loads(CpuBackend().environment(args)[ENGINE_VARIABLE])
    assert engine["kv_cache_memory_bytes"] == 64 * 256 * 46_080, "each engine answers half of 16 x 8"
    assert "block_size" not in engine
    args.vllm.enable_prefix_caching = True
    assert json.loads(CpuBackend().environment(args)[ENGINE_VARIABLE])["block_size"] == 32


@pytest.mark.parametrize(("hidden", "threads"), [(128, "1"), (1024, "4")])
def test_the_engine_of_a_small_model_has_one_thread(tmp_path, monkeypatch, hidden, threads):
    """Waking a second thread takes longer than a layer of the quickstart's model: 0.12 s a generation became 0.22."""
    sizes = {"hidden_size": hidden, "num_hidden_layers": 2, "intermediate_size": 256, "num_attention_heads": 4}
    (tmp_path / "config.json").write_text(json.dumps({**sizes, "model_type": "llama", "vocab_size": 384}))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(4))
    words = ["--pretrain", str(tmp_path), "--init_kl_coef", "0", "--advantage_estimator", "reinforce"]
    words += ["--vllm_num_engines", "1", "--actor.num_gpus_per_node", "1"]
    args = parse_command_line(words)
    found = CpuBackend().environment(args)
    assert (found[ENGINE_THREADS_VARIABLE], found["OMP_NUM_THREADS"]) == (threads, "4"), "ranks keep theirs"
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert CpuBackend().environment(args)[ENGINE_THREADS_VARIABLE] == "3", "the user's number"


def test_an_engine_takes_its_threads_though_the_libraries_are_loaded():
    code = "import torch; torch.set_num_threads(2); from openrlhf_ktae.backend import cpu_patches as patches; "
    code += "patches.activate_in_vllm(); print(torch.get_num_threads())"
    given = {**os.environ, ENGINE_VARIABLE: "{}", ENGINE_THREADS_VARIABLE: "1"}
    done = subprocess.run([sys.executable, "-c", code], env=given, capture_output=True, text=True, timeout=100)
    assert done.stdout.split() == ["1"], done.stderr[-2000:]


def test_unpad_and_pad_are_inverse():
    torch.manual_seed(0)
    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]])
    hidden = torch.randn(3, 4, 2) * mask.unsqueeze(-1)
    values, indices, cumulated, longest, lengths = flash_attn_stub.unpad_input(hidden, mask)
    assert cumulated.tolist() == [0, 3, 4, 8]
    assert (longest, lengths.tolist()) == (4, [3, 1, 4])
    assert torch.equal(values, flash_attn_stub.index_first_axis(hidden.reshape(-1, 2), indices))
    assert torch.equal(flash_attn_stub.pad_input(values, indices, 3, 4), hidden)


def test_buckets_hold_each_parameter_once(monkeypatch):
    monkeypatch.setattr(sync, "BUCKET_BYTES", 100)
    sizes = [
        ("a", torch.float32, (5, 3)),
        ("b", torch.bfloat16, (3,)),
        ("c", torch.float32, (40,)),
        ("d", torch.int8, (1,)),
    ]
    buckets = list(sync.buckets(sizes))
    assert [[slot.name for slot in bucket] for bucket in buckets] == [["a", "b"], ["c"], ["d"]]
    tensors = {"a": torch.randn(5, 3), "b": torch.randn(3).bfloat16()}
    buffer = sync.new_buffer(buckets[0])
    for slot in buckets[0]:
        sync.view(buffer, slot).copy_(tensors[slot.name])
    for slot in buckets[0]:
        assert torch.equal(sync.view(buffer, slot), tensors[slot.name])


def test_broadcast_over_gloo():
    port = free_port()
    received = torch.zeros(16, dtype=torch.uint8)

    def receive():
        sync.GlooGroup("127.0.0.1", port, 1, 2).broadcast(received).wait()

    thread = threading.Thread(target=receive)
    thread.start()
    sync.GlooGroup("127.0.0.1", port, 0, 2).broadcast(torch.arange(16, dtype=torch.uint8)).wait()
    thread.join(timeout=30)
    assert received.tolist() == list(range(16))


def test_weights_in_another_dtype_than_the_engines_are_refused():
    worker = sync.CpuWorkerExtension()
    worker.model_config = type("Config", (), {"dtype": torch.float32})
    with pytest.raises(ValueError, match=r"w is bfloat16.*float32"):
        worker.update_weights_in_bucket([("w", "bfloat16", (2,), 0, 4)])


class Served(torch.nn.Module):
    """A model whose parameter `sent` receives weights; ranks never send `own`."""

    def __init__(self):
        super().__init__()
        self.sent, self.own = (torch.nn.Parameter(torch.ones(1 << 14), requires_grad=False) for _ in range(2))

    def load_weights(self, weights):
        return {name for name, weight in weights if self.get_parameter(name).copy_(weight) is not None}


def test_only_parameters_that_ranks_send_are_released_for_an_update(monkeypatch):
    monkeypatch.setattr(cpu_memory, "WORTHWHILE", 0)
    worker, model, (bucket,) = sync.CpuWorkerExtension(), Served(), sync.buckets([("sent", torch.float32, (1 << 14,))])
    worker.model_config = SimpleNamespace(dtype=torch.float32)
    worker.model_runner = SimpleNamespace(model=model, kv_caches=[])
    new = torch.rand(1 << 14)

    def broadcast(buffer):
        return SimpleNamespace(wait=lambda: sync.view(buffer, bucket[0]).copy_(new))

    worker._ktae_group = SimpleNamespace(broadcast=broadcast)
    worker.release_memory()
    assert model.sent.min() == 1, "nothing has been sent yet"
    for _ in range(2):
        worker.update_weights_in_bucket(bucket)
        assert torch.equal(model.sent, new)
        worker.release_memory()
        assert (model.sent == 0).sum() > model.sent.numel() / 2, "whole pages are released"
        assert model.own.min() == 1


def test_nothing_is_generated_between_an_update_and_its_weights(host, monkeypatch):
    from openrlhf_ktae.trainer.ray.cpu_engine import CpuRolloutActor
    from openrlhf_ktae.trainer.ray.retrying_rollouts import RetryingRollouts

    async def call(*_, **__):
        return [{}]

    monkeypatch.setattr(CpuRolloutActor, "generate_responses", call)
    kind = type("GuardedEngine", (RetryingRollouts, CpuRolloutActor), {})
    engine = kind.__new__(kind)
    engine.llm = SimpleNamespace(collective_rpc=call)

    async def run():
        assert len(await engine.generate_responses()) == 1
        await engine.release_memory()
        with pytest.raises(RuntimeError, match="has not received new ones"):
            await engine.generate_responses()
        await engine.update_weights_in_bucket([])
        await engine.confirm_weights(1)
        assert len(await engine.generate_responses()) == 1

    asyncio.run(run())


def test_a_patch_that_cannot_apply_raises():
    from types import ModuleType

    from openrlhf_ktae.backend.cpu_patches import PatchDoesNotApply, mesh_on_cpu

    with pytest.raises(PatchDoesNotApply, match="init_device_mesh"):
        mesh_on_cpu(ModuleType("changed"))


def test_the_vllm_plugin_does_nothing_outside_the_cpu_backend(monkeypatch):
    from openrlhf_ktae.backend import cpu_patches

    monkeypatch.delenv(cpu_patches.ENGINE_VARIABLE, raising=False)
    monkeypatch.setattr(cpu_patches, "register_post_import_hook", lambda *_: pytest.fail("a patch was registered"))
    cpu_patches.activate_in_vllm()


@SLOW
@CPU_BUILDS
def test_seeded_prompts_that_do_not_fit_into_one_batch_are_answered(root):
    """Chunked prefill would crash the engine: it rewinds the request's random generator, which fails on a CPU."""
    code = f"""
import json, os
from openrlhf_ktae.backend.cpu import CpuBackend
from openrlhf_ktae.cli.options import parse_command_line
words = "--pretrain {root}/examples/quickstart/model --advantage_estimator ktae --vllm_num_engines 1 --max_len 96"
words += " --param_dtype fp32 --backend cpu --init_kl_coef 0 --n_samples_per_prompt 8"
environment = CpuBackend().environment(parse_command_line(words.split()))
os.environ.update(environment)
from vllm import LLM, SamplingParams
given = json.loads(environment["{ENGINE_VARIABLE}"])
llm = LLM("{root}/examples/quickstart/model", max_model_len=96, enforce_eager=True, max_num_batched_tokens=100, **given)
found = llm.generate([{{"prompt_token_ids": [5] * 60}}] * 3, SamplingParams(max_tokens=4, seed=1, min_tokens=4))
print([len(one.outputs[0].token_ids) for one in found])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200)
    assert done.stdout.rstrip().endswith("[4, 4, 4]"), done.stderr[-2000:]
