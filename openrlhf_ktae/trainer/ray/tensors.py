"""Send tensors between Ray processes as plain memory.

Symptom: Ray pickles a CPU tensor as `torch.save` would, with three copies in 60 us. A step's rollouts contain hundreds
of thousands of small tensors. Here a tensor is sent as the bytes of its array, out of band if large. Ray's
`RAY_ENABLE_ZERO_COPY_TORCH_TENSORS` does the same, but received tensors are read-only. Remove when they are writable.
"""

from functools import cache
from typing import Any

import ray
import torch

SMALL = 1024
"""Tensors up to this many bytes are inlined in the message; a separate buffer costs more."""
DEFAULT = "default"


@cache
def send_tensors_plainly() -> None:
    """Make this process send tensors as plain memory; receivers only need to import this module."""
    ray.util.register_serializer(torch.Tensor, serializer=plain, deserializer=whole)


def plain(tensor: torch.Tensor) -> tuple[Any, ...]:
    """Return the parts from which `whole` rebuilds the tensor."""
    is_plain = tensor.device.type == "cpu" and tensor.layout == torch.strided and not tensor.requires_grad
    if not is_plain or tensor.is_quantized or tensor.is_conj() or tensor.is_neg() or tensor.is_nested:
        return DEFAULT, tensor.__reduce_ex__(5)
    if not tensor.numel():
        return tensor.dtype, tuple(tensor.shape), b""
    data = tensor.contiguous().view(-1).view(torch.uint8).numpy()
    return tensor.dtype, tuple(tensor.shape), data.tobytes() if data.nbytes <= SMALL else data


def whole(parts: tuple[Any, ...]) -> torch.Tensor:
    """Return the tensor, in its own memory."""
    if parts[0] == DEFAULT:
        make, arguments = parts[1][:2]
        return make(*arguments)
    dtype, shape, data = parts
    if not len(data):
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(data), dtype=dtype).view(shape)
