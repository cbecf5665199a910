"""The CPU backend's parts that need no cluster."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest
import torch

from openrlhf_ktae.backend import BackendUnavailable, flash_attn_stub, resolve
from openrlhf_ktae.backend import cpu_weight_sync as sync
from openrlhf_ktae.backend.base import devices_needed
from openrlhf_ktae.cli.options import parse_command_line


def test_auto_is_cpu_with_the_cpu_build():
    assert resolve("auto").name == "cpu"
    with pytest.raises(BackendUnavailable, match="--backend cpu"):
        resolve("cuda")


def test_cuda_without_flash_attention_is_refused():
    """In a fresh process: others in this one may have installed the stub."""
    code = "from openrlhf_ktae.backend.cuda import CudaBackend; print(CudaBackend().problems(None))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install .[gpu]" in done.stdout


def test_cuda_backend_patches_nothing(host):
    from openrlhf_ktae.backend.cuda import CudaBackend

    cuda = CudaBackend()
    assert cuda.worker_setup_hook() is None
    assert {name for _, name in cuda.host_classes()} == {"PolicyModelActor", "CriticModelActor", "RolloutRayActor"}
    assert cuda.environment(None) == {}


@pytest.mark.parametrize(
    ("words", "devices"),
    [
        (["--colocate_all_models", "--actor.num_gpus_per_node", "2"], 2),
        (["--actor.num_gpus_per_node", "1"], 2),
        (["--actor.num_gpus_per_node", "1", "--init_kl_coef", "0.1", "--ref.num_gpus_per_node", "1"], 3),
        (["--colocate_all_models", "--actor.num_gpus_per_node", "1", "--async_train"], 2),
    ],
)
def test_devices_that_the_host_will_ask_for(words, devices):
    base = ["--pretrain", "m", "--vllm_num_engines", "1", "--init_kl_coef", "0", "--n_samples_per_prompt", "4"]
    args = parse_command_line([*base, "--advantage_estimator", "ktae", "--remote_rm_url", "http://x", *words])
    assert devices_needed(args) == devices


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
    """Two ranks in two threads; the receiver gets the sender's bytes."""
    import socket

    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    received = torch.zeros(16, dtype=torch.uint8)

    def receive():
        sync.GlooGroup("127.0.0.1", port, 1, 2).broadcast(received).wait()

    thread = threading.Thread(target=receive)
    thread.start()
    sync.GlooGroup("127.0.0.1", port, 0, 2).broadcast(torch.arange(16, dtype=torch.uint8)).wait()
    thread.join(timeout=30)
    assert received.tolist() == list(range(16))


def test_a_dtype_that_the_engine_does_not_run_in_is_refused():
    worker = sync.CpuWorkerExtension()
    worker.model_config = type("Config", (), {"dtype": torch.float32})
    with pytest.raises(ValueError, match=r"w is bfloat16.*float32"):
        worker.update_weights_in_bucket([("w", "bfloat16", (2,), 0, 4)])


def test_patches_that_cannot_apply_say_so():
    from types import ModuleType

    from openrlhf_ktae.backend.cpu_patches import PatchDoesNotApply, mesh_on_cpu

    with pytest.raises(PatchDoesNotApply, match="init_device_mesh"):
        mesh_on_cpu(ModuleType("changed"))


def test_the_vllm_plugin_does_nothing_outside_the_cpu_backend(monkeypatch):
    from openrlhf_ktae.backend import cpu_patches

    monkeypatch.delenv(cpu_patches.ENGINE_VARIABLE, raising=False)
    monkeypatch.setattr(cpu_patches, "register_post_import_hook", lambda *_: pytest.fail("a patch was registered"))
    cpu_patches.activate_in_vllm()
