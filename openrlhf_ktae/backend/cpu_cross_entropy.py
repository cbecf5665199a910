"""Cross-entropy without flash-attn that allocates only one tensor of the logits' size: their gradient.

Logits are by far the largest tensors of an update (rollouts x positions x vocabulary), and Linux clears the pages of
each new one. The host's plain path makes six or seven per micro-batch, and is three times slower (`docs/log.md`).
"""

from collections.abc import Iterator
from typing import Any

import torch

CHUNK = 2**20  # logits at a time, so that intermediate results stay in the processor's cache
GPU_CHUNK = 2**27  # logits at a time on a GPU, which needs large kernels: half a GiB in fp32


class CrossEntropy(torch.autograd.Function):
    """-log softmax(logits)[label] of each row; values and gradients equal those of torch's own functions."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return losses (N,) of `logits` (N, V) and `labels` (N,)."""
        losses, normalizers = losses_of(logits, labels)
        ctx.save_for_backward(logits, labels, normalizers)
        return losses

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[torch.Tensor, None]:
        """Return softmax(logits) - onehot(labels), each row times the gradient of its loss."""
        logits, labels, normalizers = ctx.saved_tensors
        weights = gradients[0].unsqueeze(1)
        result = torch.empty_like(logits)
        for rows in _chunks(logits):
            torch.sub(logits[rows], normalizers[rows].unsqueeze(1), out=result[rows]).exp_().mul_(weights[rows])
        return result.scatter_add_(1, labels.unsqueeze(1), -weights), None


def losses_of(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return losses (N,) and logsumexp (N,) of `logits` (N, V)."""
    normalizers = logits.new_empty(len(logits))
    for rows in _chunks(logits):
        normalizers[rows] = torch.logsumexp(logits[rows], dim=-1)
    return normalizers - logits.gather(1, labels.unsqueeze(1)).squeeze(1), normalizers


def to_gradient(
    logits: torch.Tensor, labels: torch.Tensor, normalizers: torch.Tensor, weights: torch.Tensor, used: torch.Tensor
) -> torch.Tensor:
    """Overwrite `logits` (N, V) with the gradient of `weights` (N,) times losses; return its rows `used`, (n, V)."""
    scratch = logits.new_empty(_rows_at_once(logits), logits.size(1))
    for first in range(0, len(used), len(scratch)):  # rows move to the front, and never overwrite rows still to be read
        rows = used[first : first + len(scratch)]
        chunk = torch.index_select(logits, 0, rows, out=scratch[: len(rows)])
        chunk.sub_(normalizers[rows].unsqueeze(1)).exp_().mul_(weights[rows].unsqueeze(1))
        chunk.scatter_add_(1, labels[rows].unsqueeze(1), -weights[rows].unsqueeze(1))
        logits[first : first + len(rows)].copy_(chunk)
    return logits[: len(used)]


def _rows_at_once(logits: torch.Tensor) -> int:
    return max(1, (CHUNK if logits.is_cpu else GPU_CHUNK) // logits.size(1))


def _chunks(logits: torch.Tensor) -> Iterator[slice]:
    count = _rows_at_once(logits)
    return (slice(first, first + count) for first in range(0, len(logits), count))
