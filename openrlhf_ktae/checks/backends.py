"""Options that a backend does not support, and requirements of it that this machine does not meet."""

import importlib.util
from collections.abc import Iterator
from types import SimpleNamespace

from openrlhf_ktae.backend import flash_attn_stub
from openrlhf_ktae.backend.cluster import check_address, cluster_to_join
from openrlhf_ktae.backend.cpu import ENGINE_DTYPES
from openrlhf_ktae.backend.cuda import FLASH
from openrlhf_ktae.base.errors import Refusal
from openrlhf_ktae.base.gpu_machine import CPU_OPERATOR, GPU_OPERATOR, gpus, this_machine
from openrlhf_ktae.base.model_config import config_of, head_size
from openrlhf_ktae.memory.devices import CPU

# Head sizes that vLLM 0.29's CPU attention supports; a contract test compares them with vLLM's own list.
HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
WAY_OUT = (
    "install it (docs/gpu.md says how), or give --ds.attn_implementation sdpa --ds.packing_samples false "
    "--train.dynamic_batch_enable false"
)


def backend_problems(args: SimpleNamespace, backend: str) -> list[str]:
    """Return a sentence for each option that the named backend does not support here: option, value, way out."""
    if backend == CPU:
        return [*_cluster_problem(), *_cpu_problems(args), *_head_size_problem(args.actor.model_name_or_path)]
    return [*_cluster_problem(), *_attention_problems(args), *_cupy_problem(args), *machine_problems(args, backend)]


def _cluster_problem() -> Iterator[str]:
    """Yield the reason if there is no cluster at RAY_ADDRESS."""
    try:
        check_address(cluster_to_join())
    except Refusal as refusal:
        yield str(refusal)


def machine_problems(args: SimpleNamespace, backend: str) -> list[str]:
    """Return what this machine lacks to use its GPUs, such as a driver for torch's CUDA or a compiler.

    Without GPUs the result is empty: this machine only leads the run, and the cluster's GPUs cannot be seen from here.
    """
    if backend == CPU or not gpus():
        return []
    return this_machine().problems(CPU_OPERATOR if args.ds.adam_offload else GPU_OPERATOR)


def _cpu_problems(args: SimpleNamespace) -> Iterator[str]:
    """Yield options that need a GPU."""
    needs_gpu = {
        "--ds.load_in_4bit": args.ds.load_in_4bit,
        "--ds.use_liger_kernel": args.ds.use_liger_kernel,
        "--ds.deepcompile": args.ds.deepcompile,
    }
    yield from (f"{flag} true: needs a GPU. Leave it out with --backend cpu." for flag, on in needs_gpu.items() if on)
    if args.ds.ring_attn_size > 1:
        yield f"--ds.ring_attn_size {args.ds.ring_attn_size}: ring attention needs a GPU; use 1 here."
    if args.vllm.tensor_parallel_size > 1:
        yield (
            f"--vllm.tensor_parallel_size {args.vllm.tensor_parallel_size}: an engine is one process on a CPU; use 1, "
            "and --vllm.num_engines for more engines."
        )
    if args.ds.param_dtype not in ENGINE_DTYPES:
        yield f"--ds.param_dtype {args.ds.param_dtype}: use bf16 or fp32 with --backend cpu."


def _head_size_problem(model: str | None) -> list[str]:
    """Return one sentence if vLLM's CPU attention does not support the head size of a local model."""
    size = head_size(config_of(model))
    if size is None or size in HEAD_SIZES:
        return []
    return [
        f"--actor.model_name_or_path {model}: its attention heads have size {size}, but vLLM's CPU attention supports "
        f"only {', '.join(map(str, HEAD_SIZES))}. Use a model with such heads, or a GPU."
    ]


def _attention_problems(args: SimpleNamespace) -> Iterator[str]:
    """Yield the option that needs flash-attention, if the package is missing."""
    if flash_attn_stub.is_installed():
        return
    if args.ds.ring_attn_size > 1:
        yield (
            f"--ds.ring_attn_size {args.ds.ring_attn_size}: ring attention needs flash-attn, which is not installed; "
            f"{WAY_OUT} --ds.ring_attn_size 1"
        )
    elif args.ds.attn_implementation == FLASH:
        asked = f"--ds.attn_implementation {FLASH}"
        if args.train.dynamic_batch_enable:
            asked = "--train.dynamic_batch_enable true (it packs samples)"
        elif args.ds.packing_samples:
            asked = "--ds.packing_samples true"
        yield f"{asked}: needs flash-attn, which is not installed; {WAY_OUT}"


def _cupy_problem(args: SimpleNamespace) -> Iterator[str]:
    if args.vllm.sync_with_ray and importlib.util.find_spec("cupy") is None:
        yield (
            "--vllm.sync_with_ray true: Ray's collectives need cupy, which is not installed. Leave it out (weights "
            "are then sent by vLLM's own NCCL), or install cupy-cuda13x."
        )
