"""Plain torch in place of five functions that the host takes from `flash_attn`, for CPU machines; a sixth refuses.

Shapes: `B` rows, `T` positions, `N` positions that are no padding, `...` further dimensions.
Semantics follow the documentation of `flash_attn.bert_padding` and `flash_attn.ops.triton.cross_entropy`, for the
arguments that the host gives.
"""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

NAMES = (
    "flash_attn",
    "flash_attn.bert_padding",
    "flash_attn.ops",
    "flash_attn.ops.triton",
    "flash_attn.ops.triton.cross_entropy",
    "flash_attn.utils",
    "flash_attn.utils.distributed",
)


def index_first_axis(values: Any, indices: Any) -> Any:
    """Return rows `indices` (N,) of `values` (B*T, ...)."""
    return values[indices]


def unpad_input(hidden_states: Any, attention_mask: Any) -> tuple[Any, Any, Any, int, Any]:
    """Take the positions of `hidden_states` (B, T, ...) where `attention_mask` (B, T) is set.

    Returns: values (N, ...), their flat indices (N,), cumulated lengths (B + 1,), longest length, lengths (B,).
    """
    import torch

    lengths = attention_mask.sum(dim=-1, dtype=torch.int32)
    indices = torch.nonzero(attention_mask.flatten(), as_tuple=False).flatten()
    cumulated = torch.nn.functional.pad(torch.cumsum(lengths, dim=0, dtype=torch.int32), (1, 0))
    values = hidden_states.reshape(-1, *hidden_states.shape[2:])[indices]
    return values, indices, cumulated, int(lengths.max()), lengths


def pad_input(values: Any, indices: Any, batch: int, seqlen: int) -> Any:
    """Undo `unpad_input`: (N, ...) -> (B, T, ...), zero where there was padding."""
    padded = values.new_zeros((batch * seqlen, *values.shape[1:]))
    padded[indices] = values
    return padded.reshape(batch, seqlen, *values.shape[1:])


def rearrange(tensor: Any, pattern: str, **sizes: int) -> Any:
    """`einops.rearrange`, which `flash_attn.bert_padding` re-exports."""
    import einops

    return einops.rearrange(tensor, pattern, **sizes)


def cross_entropy_loss(logits: Any, labels: Any) -> tuple[Any, Any]:
    """Return cross-entropies (N,) of `logits` (N, V) and `labels` (N,), and zeros: a term that nobody asks for."""
    from openrlhf_ktae.backend.cpu_cross_entropy import CrossEntropy

    losses = CrossEntropy.apply(logits, labels)
    return losses, losses.new_zeros(len(losses))


def all_gather(*_: Any, **__: Any) -> Any:
    """Refuse: the host gathers only under ring attention, which the CPU backend refuses before it starts."""
    raise RuntimeError("ring attention needs flash_attn, which is not installed; use --ds.ring_attn_size 1")


def install() -> None:
    """Put the stub where `import flash_attn` finds it."""
    for name in NAMES:
        module = ModuleType(name, __doc__)
        module.__spec__ = ModuleSpec(name, loader=None, is_package=True)
        module.__path__ = []
        sys.modules[name] = module
    padding = sys.modules["flash_attn.bert_padding"]
    padding.__dict__.update(
        index_first_axis=index_first_axis, pad_input=pad_input, rearrange=rearrange, unpad_input=unpad_input
    )
    sys.modules["flash_attn.ops.triton.cross_entropy"].__dict__["cross_entropy_loss"] = cross_entropy_loss
    sys.modules["flash_attn.utils.distributed"].__dict__["all_gather"] = all_gather
