"""The host's policy actor and strategy on a CPU: gloo instead of NCCL, torch's Adam instead of DeepSpeed's kernel."""

import time
from typing import Any

import deepspeed
import ray
import torch
from openrlhf.models import actor as host_actor
from openrlhf.trainer.ray import ppo_actor as host

from openrlhf_ktae.backend.cpu_linear import (
    Asked,
    described,
    is_wide,
    measured_leads,
    save_less_of_gates,
    use_faster_products,
)
from openrlhf_ktae.backend.cpu_memory import forget, trim
from openrlhf_ktae.backend.cpu_norms import save_less_of_norms
from openrlhf_ktae.base.free_port import free_port
from openrlhf_ktae.base.temporarily import temporarily
from openrlhf_ktae.memory.phases import CPU_BUCKET, share_devices
from openrlhf_ktae.record.directory import add_version
from openrlhf_ktae.trainer.lora import KTAEDeepspeedStrategy, model_weights, parts_of
from openrlhf_ktae.trainer.ray.cpu_weight_sync import GlooGroup, Slot, buckets, new_buffer, view
from openrlhf_ktae.trainer.ray.ppo_actor import KTAEActorPPOTrainer, KTAEPolicyModelActor

GIVING_UP_SECONDS = 5.0  # for gloo to notice that a peer is gone


class CpuDeepspeedStrategy(KTAEDeepspeedStrategy):
    """The host's strategy; DeepSpeed uses torch's AdamW, because its own kernel takes minutes to compile."""

    def prepare(self, *args: Any) -> Any:
        """Prepare models as the host does; then let linear layers use the faster kernel, the same on all ranks.

        With full determinism they use oneDNN on every processor.
        """
        prepared = super().prepare(*args)
        for entry in args:
            model = entry[0] if isinstance(entry, tuple) else entry
            if model is not None:
                use_faster_products(model, {} if self.args.train.full_determinism_enable else self._leads(model))
                save_less_of_gates(model)
                save_less_of_norms(model)
        return prepared

    def _leads(self, model: torch.nn.Module) -> dict[tuple[int, int], float]:
        """Measure the kernels on rank 0, and record the result."""
        found: list[Any] = [None]
        if torch.distributed.get_rank() == 0:
            found = [measured_leads(model)]
            add_version(self.args.run.dir, "matrix_products", described(found[0]))
        torch.distributed.broadcast_object_list(found)
        leads: dict[tuple[int, int], float] = found[0]
        return leads

    def get_ds_train_config(self, optim_dict: Any = None, **kwargs: Any) -> dict[str, Any]:
        """Return the host's DeepSpeed configuration with `torch_adam` and small gradient buckets."""
        config = super().get_ds_train_config(optim_dict, **kwargs)
        config["zero_optimization"]["reduce_bucket_size"] = CPU_BUCKET
        optimizer = config.get("optimizer")
        if optimizer and optimizer["type"] == "AdamW":
            optimizer["params"] = {**optimizer["params"], "torch_adam": True, "fused": True}
        return config


class CpuActor(host_actor.Actor):
    """The host's model. Logits of prompts and padding are not computed, and the tensor of logits is not copied."""

    def forward(self, sequences: Any, action_mask: Any = None, attention_mask: Any = None, **kwargs: Any) -> Any:
        """Return log-probabilities (b, T) as the host does; with `return_output` also the output, without logits."""
        model: Any = self.model
        head = getattr(model, "module", model).get_output_embeddings()
        whole = kwargs.get("return_entropy") or self.packing_samples or not is_wide(head)
        if whole or action_mask is None:
            return super().forward(sequences, action_mask, attention_mask, **kwargs)
        labels = torch.roll(sequences, shifts=-1, dims=1)
        wanted = torch.nn.functional.pad(action_mask.bool(), (labels.size(1) - 1 - action_mask.size(1), 1))
        found = {"log_probs_from_logits": lambda log_probs, _: log_probs.squeeze(-1)}
        with (
            temporarily(head, asked=Asked(labels, wanted, self.temperature)),
            temporarily(self, temperature=1.0),
            temporarily(host_actor, **found),
        ):
            return super().forward(sequences, action_mask, attention_mask, **kwargs)


class CpuActorPPOTrainer(KTAEActorPPOTrainer):
    """The same update loop; only the sending of weights differs."""

    _model_update_group: GlooGroup | None = None
    """Rank 0 and the engines; None after losing an engine, until they reconnect."""
    _broadcast: Any = None
    """The broadcast in progress."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs, dataloader_pin_memory=False)

    def ppo_train(self, kl_ctl: float) -> dict[str, Any]:
        """Update as the host does. Engines release memory before; afterwards this process returns what it freed."""
        shared = share_devices(self.args) and torch.distributed.get_rank() == 0
        released = [engine.release_memory.remote() for engine in (shared and self.vllm_engines) or ()]
        status = super().ppo_train(kl_ctl)
        if released:  # before weights arrive; sending them detects a dead engine
            ray.wait(released, num_returns=len(released))
        gradients = getattr(self.actor.model.optimizer, "grad_partitions_flat_buffer", None)
        if gradients is not None and gradients.is_cpu:
            forget(gradients)  # the first micro-batch overwrites them
        trim()
        return status

    def _meet_engines(self, backend: str) -> None:
        """Create the broadcast group of rank 0 and all engines."""
        address = ray.util.get_node_ip_address()
        port = free_port()
        world_size = len(self.vllm_engines) + 1
        refs = [
            engine.init_process_group.remote(address, port, rank, world_size, "openrlhf_ktae", "gloo", False)
            for rank, engine in enumerate(self.vllm_engines, start=1)
        ]
        self._model_update_group = GlooGroup(address, port, 0, world_size)
        ray.get(refs)

    def _send_weights(self) -> None:
        """Send all parameters, one bucket per call; every rank takes part in gathering shards."""
        parameters = model_weights(self.actor.model.module)
        if self.args.ds.tensor_parallel_size > 1:
            self._send_one_by_one(parameters)
        else:
            self._send_in_buckets(parameters, sharded=self.args.ds.zero_stage == 3)
        if self.args.vllm.enable_prefix_caching and self._sending is not None:
            self._sending.tell("reset_prefix_cache")
            self._sending.received()
        torch.distributed.barrier()

    def _send_in_buckets(self, parameters: dict[str, Any], sharded: bool) -> None:
        sizes = ((name, p.dtype, tuple(p.ds_shape if sharded else p.shape)) for name, p in parameters.items())
        for bucket in buckets(sizes):
            members = [parameters[slot.name] for slot in bucket]
            with deepspeed.zero.GatheredParameters(parts_of(members), enabled=sharded):
                self._send(bucket, members)

    def _send_one_by_one(self, parameters: dict[str, Any]) -> None:
        """Send one parameter at a time: tensor-parallel shards have their full shape only once gathered."""
        gather = deepspeed.module_inject.layers.GatherReplacedLayerParams
        for name, parameter in parameters.items():
            with gather([parameter], self.actor.model.module, enabled=True):
                (bucket,) = buckets([(name, parameter.dtype, tuple(parameter.shape))])
                self._send(bucket, [parameter])

    def _send(self, bucket: list[Slot], members: list[Any]) -> None:
        """Send one bucket from rank 0; send nothing once an engine has died."""
        if self._sending is None:
            return
        self._sending.tell("update_weights_in_bucket", bucket)
        if self._sending.lost is None:
            buffer = new_buffer(bucket)
            for slot, parameter in zip(bucket, members, strict=True):
                view(buffer, slot).copy_(parameter.data)
            with self._sending.guarded():
                assert self._model_update_group is not None, "nothing is sent between losing an engine and reconnecting"
                self._broadcast = self._model_update_group.broadcast(buffer)
        self._sending.received()  # first: after an engine's failure the broadcast would never complete
        if self._sending.lost is None:
            with self._sending.guarded():
                self._broadcast.wait()
        self._broadcast = None  # it keeps the group alive

    def _leave_group(self) -> None:
        """Close the connections, if the broadcast is over.

        gloo fails at the first dead peer; the live engines after it would wait for this bucket until the timeout.
        """
        if is_over(self._broadcast):
            self._broadcast = self._model_update_group = None


def is_over(sending: Any) -> bool:
    """Whether a broadcast, if any, ends within `GIVING_UP_SECONDS`, even by failing; only then can the group close."""
    end = time.monotonic() + GIVING_UP_SECONDS
    while sending is not None and not sending.is_completed() and time.monotonic() < end:
        time.sleep(0.01)
    return sending is None or bool(sending.is_completed())


class CpuPolicyModelActor(KTAEPolicyModelActor):
    """The policy actor with the update loop above."""

    update_loop = CpuActorPPOTrainer

    def init_model_from_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Load as the host does; send the weights if reused engines still have those of an earlier run."""
        host.Actor = CpuActor
        super().init_model_from_pretrained(*args, **kwargs)
        trim()
        engines = self.vllm_engines or []
        wanted = [False]
        if engines and torch.distributed.get_rank() == 0:
            wanted = [any(ray.get([engine.wants_weights.remote() for engine in engines]))]
        torch.distributed.broadcast_object_list(wanted)
        if wanted[0]:
            self.broadcast_to_vllm()
