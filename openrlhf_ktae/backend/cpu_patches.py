"""Every patch of another library that the CPU backend needs: one function each.

Each names its symptom, its place in the library, and when to remove it. A patch takes effect when its module is
imported, or at once if it is already loaded, so a process that never needs torch never imports it.
Patches of Ray are contexts around its start.
`activate` runs in the driver and, through Ray's `worker_process_setup_hook`, in every Ray worker. `activate_in_vllm`
is an entry point of the group `vllm.general_plugins`, which vLLM calls in each process of an engine.
"""

import os
import warnings
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
from wrapt import register_post_import_hook

from openrlhf_ktae.backend import flash_attn_stub
from openrlhf_ktae.base.temporarily import temporarily
from openrlhf_ktae.processes import forks
from openrlhf_ktae.processes.setup import below_the_driver, end_with_the_parent

CPU = "cpu"
# Set by the CPU backend for its engines: JSON of engine arguments. It distinguishes them from engines on GPUs.
ENGINE_VARIABLE = "OPENRLHF_KTAE_CPU_ENGINE"
ENGINE_THREADS_VARIABLE = "OPENRLHF_KTAE_CPU_ENGINE_THREADS"
INTERFACE_VARIABLE = "GLOO_SOCKET_IFNAME"
_active = False


class PatchDoesNotApply(RuntimeError):
    """The library no longer has the attributes that the patch replaces."""


def activate() -> None:
    """Apply all patches to this process; a second call does nothing."""
    global _active
    if _active:
        return
    _active = True
    os.environ.setdefault("DS_ACCELERATOR", CPU)
    meet_on_the_cluster()
    warnings.filterwarnings("ignore", message=".*pin_memory.*")
    provide_flash_attn()
    register_post_import_hook(answer_for_cuda, "torch")
    register_post_import_hook(skip_compiled_collectives, "deepspeed.comm.torch")
    register_post_import_hook(wait_for_every_gather, "deepspeed.runtime.zero.partition_parameters")
    register_post_import_hook(copy_states_less, "deepspeed.runtime.zero.stage3")
    register_post_import_hook(mesh_on_cpu, "openrlhf.utils.deepspeed.deepspeed")
    register_post_import_hook(replay_buffer_on_cpu, "openrlhf.trainer.ppo_utils.replay_buffer")
    register_post_import_hook(accept_fp32, "openrlhf.utils.utils")


def activate_in_vllm() -> None:
    """Set up an engine process; apply the patches if the CPU backend started the engine."""
    below_the_driver()
    end_with_the_parent()
    if ENGINE_VARIABLE in os.environ:
        register_for_engines()
        import torch

        torch.set_num_threads(int(os.environ[ENGINE_THREADS_VARIABLE]))  # a fork has read OMP_NUM_THREADS before


def register_for_engines() -> None:
    """Patch vLLM's modules when they are imported."""
    register_post_import_hook(keep_weights_writable, "vllm.model_executor.layers.utils")
    register_post_import_hook(sample_with_uniform_numbers, "vllm.v1.sample.ops.topk_topp_sampler")


def meet_on_the_cluster() -> None:
    """Symptom: processes on several nodes cannot connect: gloo listens on the host name's address, often loopback.

    Upstream: torch 2.13.0, `ProcessGroupGloo::createDefaultDevice`. Remove when gloo uses the address of the store.
    The user's setting wins. On one node nothing is set: loopback works and survives network changes.
    """
    import ray

    if INTERFACE_VARIABLE in os.environ or not ray.is_initialized():
        return
    if sum(node["Alive"] for node in ray.nodes()) > 1:
        interface = interface_of(ray.util.get_node_ip_address())
        if interface:
            os.environ[INTERFACE_VARIABLE] = interface


def interface_of(address: str) -> str | None:
    """Return the name of this machine's network interface with the IP `address`; None if there is none."""
    found = psutil.net_if_addrs().items()
    return next((name for name, addresses in found if any(one.address == address for one in addresses)), None)


def provide_flash_attn() -> None:
    """Symptom: `openrlhf.models.ring_attn_utils` imports `flash_attn` at module level; no CPU build exists.

    The host also uses flash_attn's cross-entropy. Its fallback makes six or seven tensors of the logits' size.
    Upstream: OpenRLHF 0.11.2, models/ring_attn_utils.py, models/utils.py, `log_probs_from_logits`. Remove when the host
    imports it only where it is used, and has a cross-entropy for CPUs.
    """
    flash_attn_stub.provide()


def answer_for_cuda(torch: Any) -> None:
    """Symptom: the host calls `torch.cuda.current_device` and friends, which raise without a driver.

    Upstream: OpenRLHF 0.11.2, trainer/ray/launcher.py, ppo_actor.py, utils/distributed_util.py, utils/deepspeed/.
    Remove when the host asks `torch.accelerator` instead.
    """
    _require(torch.cuda, "current_device", "current_stream", "empty_cache", "set_device", "synchronize")

    def no_operation() -> Any:
        # One function object per name: torch._dynamo keeps them in a table and refuses duplicates.
        return lambda *_, **__: None

    torch.cuda.current_device = lambda: CPU
    for name in ("current_stream", "empty_cache", "set_device", "synchronize"):
        setattr(torch.cuda, name, no_operation())


def skip_compiled_collectives(module: Any) -> None:
    """Symptom: DeepSpeed compiles a C++ extension for tensor-parallel inference at first use (a minute or more).

    Upstream: DeepSpeed 0.19.6, comm/torch.py, `build_shm_op`. Training never calls it: gloo does the collectives.
    Remove when DeepSpeed builds it only for inference.
    """
    _require(module, "build_shm_op")
    module.build_shm_op = lambda: None


def wait_for_every_gather(module: Any) -> None:
    """Symptom: with two ranks and ZeRO-3, a small parameter is occasionally garbage or NaN after an update.

    DeepSpeed starts several gathers and awaits only the last. A GPU stream completes in order; gloo's threads do not.
    Upstream: DeepSpeed 0.19.6, runtime/zero/partition_parameters.py, `Init._allgather_params_coalesced`. Remove when
    it waits for every handle.
    """
    _require(module, "Init", "dist")
    _require(module.Init, "_allgather_params_coalesced")
    original, dist = module.Init._allgather_params_coalesced, module.dist
    names = ("all_gather_into_tensor", "all_gather")

    def _allgather_params_coalesced(self: Any, *args: Any, **kwargs: Any) -> None:
        handles = []

        def remembering(launch: Any) -> Any:
            def launched(*args: Any, **kwargs: Any) -> Any:
                handles.append(launch(*args, **kwargs))
                return handles[-1]

            return launched

        with temporarily(dist, **{name: remembering(getattr(dist, name)) for name in names}):
            original(self, *args, **kwargs)
        for handle in handles:
            if handle is not None:
                handle.wait()

    module.Init._allgather_params_coalesced = _allgather_params_coalesced


def copy_states_less(module: Any) -> None:
    """Symptom: ZeRO-3 has fp32 parameters twice on a CPU, and copies all gradients four times.

    DeepSpeed compares a tensor's device with a string, which is never equal, so parameters are not recognised as their
    own 32-bit copy. A single rank concatenates gradients, divides them by one and sends them to itself in each
    micro-batch. Before a step, gradients that are already adjacent in one buffer are concatenated.
    Upstream: DeepSpeed 0.19.6, runtime/zero/stage3.py, `_create_fp32_partitions`, `__avg_scatter_grads`,
    `_prepare_fp32_grad_for_sub_group`. Remove when it uses the tensors themselves where it can.
    """
    _require(module, "reduce_scatter_coalesced", "dist", "torch", "DeepSpeedZeroOptimizer_Stage3")
    optimizer = module.DeepSpeedZeroOptimizer_Stage3
    _require(optimizer, "_prepare_fp32_grad_for_sub_group", "_create_fp32_partitions")
    reduce, prepare = module.reduce_scatter_coalesced, optimizer._prepare_fp32_grad_for_sub_group
    create = optimizer._create_fp32_partitions

    def reduce_scatter_coalesced(tensors: Any, group: Any = None) -> Any:
        if module.dist.get_world_size(group) > 1:
            return reduce(tensors, group)
        return [tensor.view(-1) for tensor in tensors]

    def _prepare_fp32_grad_for_sub_group(self: Any, sub_group_id: int) -> None:
        copied = self.flatten
        with temporarily(self, flatten=lambda tensors: _joined(tensors) if _adjoin(tensors) else copied(tensors)):
            prepare(self, sub_group_id)

    def _create_fp32_partitions(self: Any) -> None:
        with temporarily(self, device=module.torch.device(self.device)):
            create(self)

    module.reduce_scatter_coalesced = reduce_scatter_coalesced
    optimizer._create_fp32_partitions = _create_fp32_partitions
    optimizer._prepare_fp32_grad_for_sub_group = _prepare_fp32_grad_for_sub_group


def _adjoin(tensors: Any) -> bool:
    """Whether each flat tensor starts in memory where the one before it ends."""
    one = len({(tensor.untyped_storage().data_ptr(), tensor.dtype) for tensor in tensors}) == 1
    flat = all(tensor.dim() == 1 and tensor.is_contiguous() for tensor in tensors)
    return one and flat and all(a.storage_offset() + a.numel() == b.storage_offset() for a, b in pairwise(tensors))


def _joined(tensors: Any) -> Any:
    """Return adjacent tensors as one view."""
    return tensors[0].as_strided((sum(tensor.numel() for tensor in tensors),), (1,))


def mesh_on_cpu(module: Any) -> None:
    """Symptom: `init_device_mesh("cuda", ...)` finds no device.

    Upstream: OpenRLHF 0.11.2, utils/deepspeed/deepspeed.py, `setup_distributed`. Remove when the host takes the
    device type from the accelerator.
    """
    _require(module, "init_device_mesh")
    original = module.init_device_mesh
    module.init_device_mesh = lambda device, *args, **kwargs: original(CPU, *args, **kwargs)


def replay_buffer_on_cpu(module: Any) -> None:
    """Symptom: `torch.device(f"cuda:{current_device()}")` in the constructor of `NaiveReplayBuffer`.

    Upstream: OpenRLHF 0.11.2, trainer/ppo_utils/replay_buffer.py. Remove when it uses `current_device()` itself.
    """
    _require(module, "NaiveReplayBuffer")
    original = module.NaiveReplayBuffer.__init__

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        with temporarily(module.torch.cuda, current_device=lambda: 0):
            original(self, *args, **kwargs)
        self.target_device = module.torch.device(CPU)

    module.NaiveReplayBuffer.__init__ = __init__


def accept_fp32(module: Any) -> None:
    """Symptom: `--ds.param_dtype fp32` is unknown; bf16 is slow on CPUs without AVX-512.

    Upstream: OpenRLHF 0.11.2, utils/utils.py, `convert_to_torch_dtype`. Remove when the host supports fp32.
    """
    _require(module, "convert_to_torch_dtype")
    original = module.convert_to_torch_dtype

    def convert_to_torch_dtype(param_dtype: str) -> Any:
        return module.torch.float32 if param_dtype == "fp32" else original(param_dtype)

    module.convert_to_torch_dtype = convert_to_torch_dtype


def keep_weights_writable(module: Any) -> None:
    """Symptom: new weights do not reach the engine, or `'Parameter' object has no attribute 'weight_loader'`.

    After loading, vLLM's CPU layers keep a packed copy of each matrix and drop or ignore the parameter. Here the
    parameter stays, and `cpu_packed_linear` repacks it after each write.
    Upstream: vLLM 0.29.0, model_executor/layers/utils.py, `dispatch_cpu_unquantized_gemm`. Remove when loading
    weights into a running CPU engine repacks them.
    """
    from openrlhf_ktae.backend.cpu_packed_linear import PackedLinear

    _require(module, "dispatch_cpu_unquantized_gemm", "ops")
    _require(module.ops, "create_onednn_mm", "onednn_mm", "_supports_onednn")

    def dispatch_cpu_unquantized_gemm(layer: Any, remove_weight: bool) -> None:
        layer.cpu_linear = PackedLinear(module.ops)

    module.dispatch_cpu_unquantized_gemm = dispatch_cpu_unquantized_gemm


def sample_with_uniform_numbers(module: Any) -> None:
    """Symptom: a token of 64 rollouts and 49,152 ids is sampled in 89 ms (60 if compiled) instead of 26 (one thread).

    vLLM compiles this function for speed, but nothing is compiled in a CPU run (`CpuBackend.environment`). Exponential
    random numbers are slow to draw. The logarithm of a uniform number has their distribution, up to its resolution of
    2^-24: ids with a probability below 1e-7 are drawn even less often.
    Upstream: vLLM 0.29.0, v1/sample/ops/topk_topp_sampler.py, `compiled_random_sample`. Remove when torch draws
    exponential numbers as fast.
    """
    _require(module, "compiled_random_sample")

    def random_sample(logits: Any) -> Any:
        probs = logits.softmax(dim=-1, dtype=module.torch.float32)
        return probs.div_(module.torch.rand_like(probs).log_()).argmin(dim=-1)  # the logarithm is negative

    module.compiled_random_sample = random_sample


def fork_cores(module: Any) -> None:
    """Symptom: vLLM's core spends seven seconds on imports that the engine's actor has already done.

    Upstream: vLLM 0.29.0, utils/system_utils.py, `get_mp_context`; in a Ray actor it always spawns. Remove when it
    accepts a context.
    """
    _require(module, "get_mp_context")
    original = module.get_mp_context
    module.get_mp_context = lambda: forks.ForkedContext() if forks.VARIABLE in os.environ else original()


def forked_workers() -> AbstractContextManager[None]:
    """Symptom: Ray starts each worker as a new process, which spends seconds on imports that others have already done.

    In this context the workers of a new cluster are forks, if there is a server (`processes/forks.py`). Ray joins the
    script's name to its own folder; an absolute path replaces that folder.
    Upstream: Ray 2.55.0, _private/node.py. Remove when Ray accepts a script for its workers.
    """
    from ray._private import ray_constants

    _require(ray_constants, "SETUP_WORKER_FILENAME")
    if forks.VARIABLE not in os.environ:
        return nullcontext()
    script = Path(forks.__file__).absolute().with_name("ray_worker.py")
    return temporarily(ray_constants, SETUP_WORKER_FILENAME=str(script))


def without_services(verbose: bool) -> AbstractContextManager[None]:
    """Symptom: a cluster runs three processes of 60 MB that nothing here uses; in this context Ray does not start them.

    They are the autoscaler's monitor, the dashboard server (Ray starts it even without a dashboard, and waits for it)
    and, unless the run is `verbose`, the log monitor.
    Upstream: Ray 2.55.0, _private/node.py. Remove when `ray.init` has options for them.
    """
    from ray._private.node import Node

    def not_started(self: Any, **_: Any) -> None:
        self._webui_url = ""

    names = ("start_monitor", "start_api_server", *(() if verbose else ("start_log_monitor",)))
    _require(Node, *names)
    return temporarily(Node, **dict.fromkeys(names, not_started))


def _require(owner: Any, *names: str) -> None:
    missing = [name for name in names if not hasattr(owner, name)]
    if missing:
        raise PatchDoesNotApply(f"{owner.__name__} has no {', '.join(missing)}: the library has changed")
