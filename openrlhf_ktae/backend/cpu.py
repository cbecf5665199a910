"""The `cpu` backend: virtual devices for Ray, gloo for collectives, the CPU build of vLLM.

It changes devices and transport, not algorithms. Patches of other libraries are in `cpu_patches`.
"""

import json
import os
from types import SimpleNamespace
from typing import Any

from openrlhf_ktae.backend.base import Backend, devices_needed
from openrlhf_ktae.backend.cpu_patches import ENGINE_THREADS_VARIABLE, ENGINE_VARIABLE
from openrlhf_ktae.base.host import installed
from openrlhf_ktae.base.text import joined
from openrlhf_ktae.memory.model_shape import model_shape
from openrlhf_ktae.memory.phases import BYTES

ENGINE_DTYPES = {"bf16": "bfloat16", "fp32": "float32"}
KV_CACHE_BYTES = (64 * 2**20, 2 * 2**30)  # least, most; all of it is used eventually
UNKNOWN_SHAPE_BYTES = 256 * 2**20  # KV cache of a model whose shape cannot be read
KV_BLOCK = 128  # tokens; the block size of vLLM's CPU cache
SHARED_BLOCK = 32  # tokens; the block size with prefix caching: only full blocks are shared
SMALL_MODEL = 5_000_000  # parameters up to which one thread generates faster than two (docs/scale.md)
HELPER_CPUS = 6  # for trainer, its asynchronous actors and queues: Ray reserves a CPU for each while placing it
OBJECT_STORE_BYTES = 512 * 2**20


class CpuBackend(Backend):
    """Any machine without a GPU; each rank and engine gets one virtual device."""

    name = "cpu"
    preloads = "openrlhf_ktae.backend.cpu_preload"  # applies the patches before workers and engine cores fork
    worker_setup_hook = "openrlhf_ktae.backend.cpu_patches.activate"

    def adapt(self, args: SimpleNamespace) -> list[str]:
        """Set transport, attention and engine mode to the values that a CPU requires."""
        changes = []

        def change(group: SimpleNamespace, flag: str, value: Any) -> None:
            attribute = flag.rsplit(".", 1)[1]
            if getattr(group, attribute) != value:
                setattr(group, attribute, value)
                changes.append(f"{flag} {joined(value)}")

        change(args.vllm, "--vllm.sync_backend", "gloo")
        change(args.vllm, "--vllm.sync_with_ray", False)
        change(args.vllm, "--vllm.enforce_eager", True)
        change(args.vllm, "--vllm.enable_sleep", False)
        change(args.ds, "--ds.enable_sleep", False)
        if "flash" in args.ds.attn_implementation:
            change(args.ds, "--ds.attn_implementation", "sdpa")
        return changes

    def environment(self, args: SimpleNamespace) -> dict[str, str]:
        """Return variables for threads, DeepSpeed's accelerator, Ray and vLLM."""
        busy = max(args.actor.num_nodes * args.actor.num_gpus_per_node, args.vllm.num_engines or 1)
        threads = str(max(1, len(os.sched_getaffinity(0)) // busy))
        shape = model_shape(args.actor.model_name_or_path)
        small = shape is not None and shape.parameters <= SMALL_MODEL
        cache = kv_cache_bytes(args.actor.model_name_or_path, args.ds.param_dtype, *_rollouts_at_once(args))
        engine: dict[str, Any] = {
            "dtype": ENGINE_DTYPES[args.ds.param_dtype],
            "kv_cache_memory_bytes": cache,
            # With chunked prefill vLLM rewinds the random generator of a seeded request after every chunk but the last.
            # Only CUDA generators can be rewound: a prompt that does not fit into the batch would crash the engine.
            "enable_chunked_prefill": False,
        }
        if getattr(args.vllm, "enable_prefix_caching", False):
            engine["block_size"] = SHARED_BLOCK
        return {
            "DS_ACCELERATOR": "cpu",
            "OMP_NUM_THREADS": threads,
            # torch.compile would compile a few small functions with g++: 3 s at each start, and 9 s at the first.
            "TORCH_COMPILE_DISABLE": "1",
            ENGINE_THREADS_VARIABLE: os.environ.get("OMP_NUM_THREADS", "1" if small else threads),
            # Ray would run workers at niceness 15, after everything else on a laptop, though the driver waits for them.
            "RAY_worker_niceness": "0",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            # For evaluation: model and engine in one process. Training's asynchronous engine always uses a second one.
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_LOGGING_LEVEL": "ERROR",
            "VLLM_NO_USAGE_STATS": "1",
            ENGINE_VARIABLE: json.dumps(engine),
        }

    def ray_init_options(self, args: SimpleNamespace) -> dict[str, Any]:
        """Return options of a small local cluster, with one virtual device for each requested one."""
        devices = devices_needed(args)
        return {
            "address": "local",  # never join a cluster that happens to run here; RAY_ADDRESS names one to join
            "num_gpus": devices,
            "num_cpus": devices + HELPER_CPUS,
            "include_dashboard": False,
            "object_store_memory": OBJECT_STORE_BYTES,
        }


def vllm_build() -> str:
    """Return the device of the installed vLLM build: `cpu`, `cuda`, or empty without vLLM."""
    if installed("vllm-cpu") or "cpu" in installed("vllm"):  # a separate package, or 0.29.0+cpu if built from source
        return "cpu"
    return "cuda" if installed("vllm") else ""


def kv_cache_bytes(model: str | None, dtype: str, sequences: int, length: int) -> int:
    """Return the bytes for keys and values of `sequences` of `length` tokens, within `KV_CACHE_BYTES`.

    With a smaller cache decode batches are smaller, and every decode step reads all weights.
    """
    least, most = KV_CACHE_BYTES
    shape = model_shape(model)
    if shape is None:
        return UNKNOWN_SHAPE_BYTES
    tokens = sequences * -(-length // KV_BLOCK) * KV_BLOCK
    return min(max(tokens * shape.kv_of_token * BYTES[dtype], least), most)


def _rollouts_at_once(args: SimpleNamespace) -> tuple[int, int]:
    """Return how many rollouts one engine samples in one call, and the tokens of the longest possible rollout."""
    if not hasattr(args, "rollout"):
        return 0, 0
    prompts = args.rollout.vllm_generate_batch_size or args.rollout.batch_size
    return -(-prompts * args.rollout.n_samples_per_prompt // (args.vllm.num_engines or 1)), args.data.max_len
