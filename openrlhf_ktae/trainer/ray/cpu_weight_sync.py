"""Weight synchronisation from the trainer to the engines over gloo, many tensors per call.

The host makes one Ray call and one NCCL broadcast per parameter. On a CPU the calls cost more than the bytes, so
parameters are sent in buckets: a manifest over Ray, the bytes in one broadcast. vLLM's engine process imports this
module, so its imports must stay light: neither the host nor DeepSpeed.
"""

from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from openrlhf_ktae.backend.cpu_memory import forget, trim
from openrlhf_ktae.backend.cpu_packed_linear import forget_packed

BUCKET_BYTES = 128 * 2**20
ALIGNMENT = 16  # bytes; every tensor of a bucket starts at a multiple, so that it can be viewed in any dtype
TIMEOUT = timedelta(minutes=10)


class Slot(NamedTuple):
    """Position of a parameter in a bucket; offset and size in bytes. Plain values, since vLLM sends it by msgpack."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int

    @property
    def torch_dtype(self) -> torch.dtype:
        """The torch dtype with this name."""
        return getattr(torch, self.dtype)


class GlooGroup:
    """A broadcast group of training rank 0 and all engine workers, separate from their default groups."""

    def __init__(self, host: str, port: int, rank: int, world_size: int) -> None:
        store = dist.TCPStore(host, port, world_size, is_master=rank == 0, timeout=TIMEOUT)
        self._group: Any = dist.ProcessGroupGloo(dist.PrefixStore("weights", store), rank, world_size, TIMEOUT)

    def broadcast(self, buffer: torch.Tensor) -> Any:
        """Start sending the uint8 `buffer` from rank 0 to all; as bytes, since gloo does not support bf16.

        Returns: work whose `wait()` returns when the buffer may be read or reused.
        """
        return self._group.broadcast(buffer, 0)


def buckets(sizes: Iterable[tuple[str, torch.dtype, tuple[int, ...]]]) -> Iterator[list[Slot]]:
    """Lay parameters out in buckets of at most `BUCKET_BYTES`; a larger parameter gets its own bucket."""
    bucket: list[Slot] = []
    end = 0
    for name, dtype, shape in sizes:
        nbytes = dtype.itemsize * torch.Size(shape).numel()
        if bucket and end + nbytes > BUCKET_BYTES:
            yield bucket
            bucket, end = [], 0
        bucket.append(Slot(name, str(dtype).removeprefix("torch."), tuple(shape), end, nbytes))
        end += -(-nbytes // ALIGNMENT) * ALIGNMENT
    if bucket:
        yield bucket


def new_buffer(bucket: list[Slot]) -> torch.Tensor:
    """Return an empty uint8 tensor that holds `bucket`."""
    return torch.empty(bucket[-1].offset + bucket[-1].nbytes, dtype=torch.uint8)


def view(buffer: torch.Tensor, slot: Slot) -> torch.Tensor:
    """Return the part of `buffer` at `slot`, as a tensor of its dtype and shape."""
    return buffer[slot.offset : slot.offset + slot.nbytes].view(slot.torch_dtype).view(tuple(slot.shape))


class CpuWorkerExtension:
    """Methods that vLLM mixes into its worker (`worker_extension_cls`); the host's own need NCCL."""

    model_config: Any
    model_runner: Any
    _received: frozenset[str] = frozenset()
    """Names of the model's parameters that ranks send."""

    def init_process_group(
        self, master_address: str, master_port: int, rank_offset: int, world_size: int, *_: Any
    ) -> None:
        """Join the group, called as the host's `WorkerWrap`; its name, backend and use of Ray are ignored."""
        rank = dist.get_rank() + rank_offset
        self._ktae_group = GlooGroup(master_address, master_port, rank, world_size)

    def update_weights_in_bucket(self, rows: list[Any]) -> None:
        """Receive one bucket and load it into the model.

        Raises ValueError if a parameter's dtype differs from the engine's.
        """
        bucket = [Slot(*row) for row in rows]
        for slot in bucket:
            if slot.torch_dtype != self.model_config.dtype:
                raise ValueError(f"{slot.name} is {slot.dtype}, the engine runs in {self.model_config.dtype}")
        buffer = new_buffer(bucket)
        self._ktae_group.broadcast(buffer).wait()
        loaded = self.model_runner.model.load_weights(weights=((slot.name, view(buffer, slot)) for slot in bucket))
        self._received |= frozenset(loaded or ())
        forget_packed(self.model_runner.model)

    def release_memory(self) -> None:
        """Release keys, values and weights, plain and packed. New weights invalidate cached prefixes.

        A parameter is kept until ranks have sent it once: it may be one that they never send.
        """
        model = self.model_runner.model
        forget_packed(model, free=True)
        forget(*self.model_runner.kv_caches)
        forget(*(parameter for name, parameter in model.named_parameters() if name in self._received))
        trim()

    def reseed(self, seed: int) -> None:
        """Seed this process as vLLM does at start: requests without a seed sample from its random generator."""
        from vllm.utils.torch_utils import set_random_seed

        set_random_seed(seed)
