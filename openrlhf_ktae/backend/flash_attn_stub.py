"""Functions that the host imports from `flash_attn`, for machines without it: plain torch, or those of other libraries.

A last one raises. The host's `models/ring_attn_utils.py` imports five of them at module level and calls them only for
packed samples and ring attention. The modules are installed without their parent `flash_attn`, so that libraries that
check for flash-attention (transformers, vLLM, torch) still find it missing.

Shapes: `B` rows, `T` positions, `N` positions that are not padding, `...` further dimensions.
Semantics follow the documentation of `flash_attn.bert_padding` and `flash_attn.ops.triton.cross_entropy`, for the
arguments that the host uses.
"""

import importlib.util
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

PADDING, CROSS_ENTROPY = "flash_attn.bert_padding", "flash_attn.ops.triton.cross_entropy"
DISTRIBUTED = "flash_attn.utils.distributed"


def is_installed() -> bool:
    """Whether flash-attention 2 is installed with its kernels: without them `import flash_attn` fails."""
    return all(importlib.util.find_spec(name) is not None for name in ("flash_attn", "flash_attn_2_cuda"))


def provide() -> None:
    """Install the stub unless the real package is installed; called early in each process of a run."""
    if not is_installed():
        install()


def index_first_axis(values: Any, indices: Any) -> Any:
    """Return rows `indices` (N,) of `values` (B*T, ...)."""
    return values[indices]


def unpad_input(hidden_states: Any, attention_mask: Any) -> tuple[Any, Any, Any, int, Any]:
    """Select the positions of `hidden_states` (B, T, ...) where `attention_mask` (B, T) is set.

    Returns: values (N, ...), their flat indices (N,), cumulative lengths (B + 1,), longest length, lengths (B,).
    """
    from transformers.modeling_flash_attention_utils import _unpad_input

    return _unpad_input(hidden_states, attention_mask)


def pad_input(values: Any, indices: Any, batch: int, seqlen: int) -> Any:
    """Undo `unpad_input`: (N, ...) -> (B, T, ...), with zeros for padding."""
    from transformers.modeling_flash_attention_utils import _pad_input

    return _pad_input(values, indices, batch, seqlen)


def cross_entropy_loss(logits: Any, labels: Any) -> tuple[Any, Any]:
    """Return cross-entropies (N,) of `logits` (N, V) and `labels` (N,), and zeros for an unused second term."""
    from openrlhf_ktae.backend.cpu_cross_entropy import CrossEntropy

    losses = CrossEntropy.apply(logits, labels)
    return losses, losses.new_zeros(len(losses))


def all_gather(*_: Any, **__: Any) -> Any:
    """Raise: the host gathers only for ring attention, which is refused before a run starts without flash-attn."""
    raise RuntimeError("ring attention needs flash_attn, which is not installed; use --ds.ring_attn_size 1")


def install() -> None:
    """Register the stub modules so that the host's imports find them."""
    import einops

    functions: dict[str, dict[str, Any]] = {
        PADDING: {
            "index_first_axis": index_first_axis,
            "pad_input": pad_input,
            "rearrange": einops.rearrange,  # which `flash_attn.bert_padding` re-exports
            "unpad_input": unpad_input,
        },
        CROSS_ENTROPY: {"cross_entropy_loss": cross_entropy_loss},
        DISTRIBUTED: {"all_gather": all_gather},
    }
    for name, members in functions.items():
        module = ModuleType(name, __doc__)
        module.__spec__ = ModuleSpec(name, loader=None)
        module.__dict__.update(members)
        sys.modules[name] = module
