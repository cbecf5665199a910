"""Bytes on one device in each phase of a step, computed from the options and the shape of the model.

Model states follow DeepSpeed's estimators for 16-bit training (a test compares them). Activations are counted tensor by
tensor for a gated decoder with fused attention.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

from openrlhf_ktae.memory.devices import GIB
from openrlhf_ktae.memory.model_shape import ModelShape

CUDA_CONTEXT = 0.7 * GIB
"""CUDA context, loaded kernels and workspaces of one process on a GPU: an allowance, not measured."""
NCCL_COMMUNICATOR = 32 * 2 * 4 * 2**20
"""Channels x (send, receive) x NCCL_BUFFSIZE, 4 MiB by default (NCCL's page of environment variables). With few links
NCCL uses fewer channels."""
CUDA_GRAPH_SIZES = 3 + 31 + 17
"""Batch sizes that vLLM captures by default: 1, 2, 4; 8 to 248 by 8; 256 to 512 by 16 (`VllmConfig`)."""
CUDA_GRAPH_OF_LAYER = 0.35 * 2**20
"""Bytes of one batch size in one layer: an allowance (0.5 GiB for 28 layers), not measured."""
CPU_PROCESS = 160 * 2**20
"""Threads, code loaded or compiled on first use (oneDNN) and small buffers of a training process on a CPU: an allowance
calibrated on models of 8 and 28 million parameters (`docs/planner.md`)."""
GATHER_BUFFERS = 100 * 2**20
"""ZeRO-3's buffers for gathering (measured with models of 8, 28 and 80 million parameters, and `BUCKET`)."""
BUCKET = 500_000_000
"""DeepSpeed's `reduce_bucket_size`: number of gradient elements reduced at once."""
CPU_BUCKET = 4 * 2**20
"""The same on the CPU backend. Default-size buckets cost several model-sized copies per micro-batch. These stay below
glibc's heap limit (32 MiB), so Linux need not clear their pages. A parameter larger than a bucket is reduced by
itself."""
UNDIVIDED: dict[int, dict[int, tuple[float, float]]] = {
    BUCKET: {0: (10, 12), 1: (10, 12), 2: (10, 12), 3: (14, 17)},
    CPU_BUCKET: {0: (8.5, 7), 1: (8.5, 7), 2: (5.5, 5), 3: (4, 12)},
}
"""fp32: bucket -> ZeRO stage -> bytes per parameter that ZeRO does not shard, for (one rank, several ranks); calibrated
on measured peaks (`docs/planner.md`)."""
ENGINE_BYTES = 2
"""The host always loads its engines in bf16, whatever the trainer's dtype."""
FROZEN_GATHERED = 3
"""fp32 with ZeRO-3: of the 4 bytes of each parameter frozen by LoRA, how many stay gathered besides its shard;
calibrated on measured peaks (`docs/lora.md`)."""
LORA_PROCESS = 40 * 2**20
"""Adapter modules and their autograd state; calibrated on the same peaks on a CPU."""
BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}


@dataclass(frozen=True)
class PhaseMemory:
    """Bytes on one device, by part."""

    name: str
    parts: dict[str, float]

    @property
    def total(self) -> float:
        """Sum of all parts."""
        return sum(self.parts.values())


def share_devices(args: SimpleNamespace) -> bool:
    """Return whether engines and trainer take turns on the same devices."""
    return bool(args.train.colocate_all and not args.train.async_enable)


def trainer_process(args: SimpleNamespace) -> float:
    """Return a rank's bytes on a GPU besides tensors: CUDA context, and the NCCL buffers of each of its groups."""
    ranks = args.actor.num_nodes * args.actor.num_gpus_per_node
    groups = (ranks, args.ds.ring_attn_size, args.ds.tensor_parallel_size, 1 if share_devices(args) else 2)
    return CUDA_CONTEXT + NCCL_COMMUNICATOR * sum(size > 1 for size in groups)


def engine_process(args: SimpleNamespace, shape: ModelShape) -> float:
    """Return an engine's bytes on one GPU besides weights and KV cache; sleeping does not free them."""
    groups = (args.vllm.tensor_parallel_size, 1 if share_devices(args) else 2)
    graphs = 0.0 if args.vllm.enforce_eager else CUDA_GRAPH_SIZES * shape.layers * CUDA_GRAPH_OF_LAYER
    return CUDA_CONTEXT + NCCL_COMMUNICATOR * sum(size > 1 for size in groups) + graphs


def shards(args: SimpleNamespace) -> int:
    """Return the number of ranks that ZeRO shards over, which includes ring-attention but not tensor-parallel ones."""
    return max(1, args.actor.num_nodes * args.actor.num_gpus_per_node // args.ds.tensor_parallel_size)


def model_states(
    parameters: int, largest: int, stage: int, ranks: int, size: int, offload: bool = False, bucket: int = BUCKET
) -> float:
    """Return bytes of parameters, gradients and Adam's states on one rank.

    Args:
        parameters: number of the model's parameters, divided by tensor parallelism.
        largest: parameters of the largest module that ZeRO-3 gathers.
        stage: ZeRO stage, 0 to 3.
        ranks: number of ranks that shard the states.
        size: bytes of a parameter, 2 or 4.
        offload: whether Adam's states and the 32-bit parameters are in host memory.
        bucket: `BUCKET` or `CPU_BUCKET`; matters only in fp32.

    With 2 bytes these are DeepSpeed 0.19.6's `estimate_zero{2,3}_model_states_mem_needs`. Of 18 bytes per parameter, 2
    are the parameter, 4 gradients, 4 the 32-bit parameter and 8 Adam's states. For 4 bytes see `fp32_states`.
    """
    if size == 4:
        return fp32_states(parameters, stage, ranks, offload, bucket)
    if stage == 3:
        return 4 * largest + (2 if offload else 18) * parameters / ranks
    if stage == 2:
        return 2 * parameters + (0 if offload else 18 * parameters / ranks)
    divided = ranks if stage == 1 else 1
    return 4 * parameters + (0 if offload else 14 * parameters / divided)


def fp32_states(parameters: int, stage: int, ranks: int, offload: bool = False, bucket: int = BUCKET) -> float:
    """Return `model_states` in fp32. DeepSpeed has no estimator for it; calibrated on CPU peaks (`docs/planner.md`).

    ZeRO shards 20 bytes per parameter: the updated copy (4), Adam's states (8) and two gradients (8). With ZeRO-3 on a
    CPU the second gradient is a view of the first (`copy_states_less`): 16 bytes. Each rank briefly holds more
    (`UNDIVIDED`): gathered parameters, gradients before reduction, and bucket copies. In ZeRO-3 this extra is assumed
    not to grow beyond a model of `BUCKET` parameters; measured up to 135M.
    """
    views = stage == 3 and bucket == CPU_BUCKET
    divided = (8 if offload else 16 if views else 20) * parameters / (ranks if stage else 1)
    whole = UNDIVIDED[bucket][stage][ranks > 1]
    if stage == 3:
        return divided + whole * min(parameters, BUCKET) + (0 if views else GATHER_BUFFERS)
    return divided + whole * parameters


def trained_parameters(args: SimpleNamespace, shape: ModelShape) -> int:
    """Return the number of parameters with gradients and Adam states: all, or only those of LoRA adapters."""
    lora = args.ds.lora
    return shape.adapter_parameters(lora.rank, lora.target_modules) if lora.rank else shape.parameters


def _states_of(args: SimpleNamespace, shape: ModelShape, largest: int, cuda: bool) -> float:
    """Return `model_states` for a run's options; parameters frozen by LoRA have no gradients or Adam states."""
    size, bucket = BYTES[args.ds.param_dtype], BUCKET if cuda else CPU_BUCKET
    stage, ranks = args.ds.zero_stage, shards(args)
    trained = trained_parameters(args, shape) // args.ds.tensor_parallel_size
    states = model_states(trained, largest, stage, ranks, size, args.ds.adam_offload, bucket)
    if not args.ds.lora.rank:
        return states
    return states + frozen(shape.parameters, stage, ranks, size)


def frozen(parameters: int, stage: int, ranks: int, size: int) -> float:
    """Return bytes of frozen parameters. ZeRO-3 shards them, and in fp32 also keeps most of them gathered."""
    divided = parameters * size / (ranks if stage == 3 else 1)
    return divided + (FROZEN_GATHERED * min(parameters, BUCKET) if stage == 3 and size == BYTES["fp32"] else 0)


def activations(shape: ModelShape, tokens: int, size: int, checkpointing: bool) -> float:
    """Return bytes that a forward pass over `tokens` saves for the backward pass, without the logits.

    Per layer and token: two norms save their input and normalised input in 32 bits; queries, keys and values before and
    after rotation; the attention output; and four tensors of the gated MLP.
    """
    hidden, kv = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
    norms = 4 * shape.hidden * 4
    rest = (2 * shape.hidden + 4 * hidden + 4 * kv + 4 * shape.intermediate) * size
    layer = norms + rest
    if checkpointing:
        return tokens * (shape.layers * shape.hidden * size + layer)
    return tokens * shape.layers * layer


def logits(shape: ModelShape, tokens: int, size: int) -> float:
    """Return bytes of the logits, their 32-bit copy if they are 16-bit, and the gradients of both."""
    copies = 2 * 4 + (2 * size if size == 2 else 0)
    return tokens * shape.vocabulary * copies


def tokens_of_micro_batch(args: SimpleNamespace) -> int:
    """Return the maximum number of tokens that one device holds at once in training."""
    ring = args.ds.ring_attn_size
    longest = -(-args.data.max_len // ring)
    if args.train.dynamic_batch_enable:
        return max(args.train.max_tokens_per_gpu, longest)
    return args.train.micro_batch_size * longest


def training(args: SimpleNamespace, shape: ModelShape, cuda: bool) -> PhaseMemory:
    """Return the memory of an update."""
    size, tensor = BYTES[args.ds.param_dtype], args.ds.tensor_parallel_size
    tokens = tokens_of_micro_batch(args)
    states = _states_of(args, shape, shape.largest_layer // tensor, cuda)
    checkpointing = args.actor.gradient_checkpointing_enable
    parts = {
        "parameters, gradients, optimizer": states,
        f"activations of {tokens:,} tokens": activations(shape, tokens, size, checkpointing) / tensor,
        "logits": logits(shape, tokens, size),
    }
    parts["process"] = (trainer_process(args) if cuda else CPU_PROCESS) + (LORA_PROCESS if args.ds.lora.rank else 0)
    if cuda and share_devices(args) and args.vllm.enable_sleep:
        parts["sleeping engine"] = engine_process(args, shape)
    parts["reference model"] = reference_model(args, shape, cuda)
    return PhaseMemory("training", parts)


def reference_model(args: SimpleNamespace, shape: ModelShape, cuda: bool) -> float:
    """Return the bytes of the reference model, if any, on a device that it shares with the trainer."""
    if args.algo.kl.init_coef <= 0 or not (args.train.colocate_all or args.train.colocate_actor_ref):
        return 0.0
    weights = shape.parameters * BYTES[args.ds.param_dtype] / (shards(args) if args.ds.zero_stage == 3 else 1)
    return (0.0 if args.ref.offload else weights) + (trainer_process(args) if cuda else 0.0)


def resident_trainer(args: SimpleNamespace, shape: ModelShape, cuda: bool) -> float:
    """Return the bytes that trainer and reference model keep on a device shared with engines during generation."""
    if not share_devices(args):
        return 0.0
    size, ranks = BYTES[args.ds.param_dtype], shards(args)
    whole = shape.parameters / args.ds.tensor_parallel_size
    kept = whole * size / (ranks if args.ds.zero_stage == 3 else 1)
    if not args.ds.enable_sleep:
        kept = _states_of(args, shape, 0, cuda)
    return kept + (trainer_process(args) if cuda else 0.0) + reference_model(args, shape, cuda)


def engine_weights(args: SimpleNamespace, shape: ModelShape, cuda: bool) -> float:
    """Return the bytes of an engine's weights on one device; on a CPU there is also a packed copy (`PackedLinear`)."""
    copies = 1 if cuda else 2
    return copies * shape.parameters * BYTES[args.ds.param_dtype] / args.vllm.tensor_parallel_size


def kv_of_sequence(args: SimpleNamespace, shape: ModelShape) -> float:
    """Return the KV cache bytes of one sequence of `--data.max_len` on one device."""
    divided = min(args.vllm.tensor_parallel_size, shape.kv_heads)
    return shape.kv_of_token * BYTES[args.ds.param_dtype] * args.data.max_len / divided


def synchronisation(args: SimpleNamespace, shape: ModelShape, cuda: bool) -> PhaseMemory:
    """Return the memory while weights are sent to the engines: one full parameter and its copy at a time.

    With LoRA, W, B A, scale * B A and the merged sum exist at once.
    """
    size = BYTES[args.ds.param_dtype]
    largest = shape.vocabulary * shape.hidden
    parts = {"trainer": resident_trainer(args, shape, cuda), "largest parameter, twice": 2.0 * largest * size}
    if args.ds.lora.rank:
        merged = max((inputs * outputs for inputs, outputs in shape.adapted(args.ds.lora.target_modules)), default=0)
        parts["merging"] = 2.0 * merged * size
    if share_devices(args):
        parts["engine's weights"] = engine_weights(args, shape, cuda)
        if cuda:
            parts["engine's process"] = engine_process(args, shape)
    return PhaseMemory("synchronisation", parts)


def host(args: SimpleNamespace, shape: ModelShape, pinned: Callable[[float], float] = float) -> PhaseMemory:
    """Return the bytes of host memory that sleep, offloading and exports use on a GPU node.

    vLLM's `sleep(level=1)`, which OpenRLHF calls, copies weights to host memory and drops the KV cache
    (vllm/device_allocator/cumem.py). `--ds.enable_sleep` moves the 32-bit parameters (4 bytes), Adam's states (8) and
    the gradients to host memory and keeps those buffers (DeepSpeed's `offload_states`; the list of states is in
    openrlhf/utils/deepspeed/deepspeed_utils.py). `--ds.adam_offload` uses 16 bytes per parameter (DeepSpeed's
    estimators, without their factor of 1.5 for buffers). An export gathers the whole model on rank 0.

    Args:
        args: options of the run.
        shape: shape of the model.
        pinned: maps a size in bytes to the bytes that pinned memory uses for it (`power_of_two`).
    """
    size, ranks_here = BYTES[args.ds.param_dtype], args.actor.num_gpus_per_node
    of_rank = shape.parameters / args.ds.tensor_parallel_size / shards(args)
    trained = trained_parameters(args, shape) / args.ds.tensor_parallel_size / shards(args)
    parts: dict[str, float] = {}
    if share_devices(args) and args.vllm.enable_sleep:
        tensor = args.vllm.tensor_parallel_size
        backup = sum(count * pinned(ENGINE_BYTES * numbers / tensor) for count, numbers in shape.tensors)
        parts["weights of sleeping engines"] = ranks_here * backup
    if args.ds.adam_offload:
        parts["Adam's states, 32-bit parameters, gradients"] = ranks_here * 4 * pinned(4 * trained)
    elif args.ds.enable_sleep:
        gradients = pinned(BYTES[args.ds.grad_accum_dtype or args.ds.param_dtype] * trained)
        parts["Adam's states, 32-bit parameters, gradients"] = ranks_here * (3 * pinned(4 * trained) + gradients)
    if args.algo.kl.init_coef > 0 and args.ref.offload:
        parts["reference model"] = ranks_here * pinned(size * of_rank)
    if args.train.enable_ema:
        parts["moving average"] = ranks_here * pinned(size * of_rank)
    parts["whole model for an export (rank 0)"] = float(size * shape.parameters)
    return PhaseMemory("host", parts)


def power_of_two(size: float) -> float:
    """Return the bytes that PyTorch's pinned allocator uses for `size` bytes (ATen/core/CachingHostAllocator.h)."""
    return float(1 << (math.ceil(size) - 1).bit_length()) if size > 1 else size
