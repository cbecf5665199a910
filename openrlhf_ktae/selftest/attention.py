"""flash-attn against PyTorch's attention: outputs and gradients in bf16, dense and packed; and its cross-entropy.

Shapes: `B` rows, `T` positions, `H` heads, `D` dimensions of a head, `N` positions of all packed rows.

Both are compared with attention in fp32. As in flash-attn's own tests, a kernel's error may be up to `FACTOR` times
the error of PyTorch's bf16 attention, which comes from rounding inputs and outputs.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

FACTOR = 3.0
LEAST = 1e-3  # absolute tolerance, in case bf16 happens to be exact
SHAPES = ((2, 128, 4, 32), (2, 257, 4, 64), (1, 512, 2, 128))  # B, T, H, D; the quickstart has D = 32
LENGTHS = (7, 64, 1, 129)  # of the packed rows
VOCABULARY = 1000

Dense = Callable[[Any, Any, Any], Any]
"""Causal attention: q, k, v (B, T, H, D) -> (B, T, H, D)."""
Packed = Callable[[Any, Any, Any, Any, int], Any]
"""Causal attention of packed rows: q, k, v (N, H, D), cumulative lengths (B + 1), longest length -> (N, H, D)."""
CrossEntropy = Callable[[Any, Any], Any]
"""logits (N, V) in fp32 and labels (N) -> losses (N)."""


def flash_attn() -> tuple[Dense, Packed, CrossEntropy]:
    """Return flash-attn's functions."""
    from flash_attn import flash_attn_func, flash_attn_varlen_func
    from flash_attn.ops.triton.cross_entropy import cross_entropy_loss

    return (
        lambda q, k, v: flash_attn_func(q, k, v, causal=True),
        lambda q, k, v, ends, longest: flash_attn_varlen_func(
            q, k, v, ends, ends, max_seqlen_q=longest, max_seqlen_k=longest, causal=True
        ),
        lambda logits, labels: cross_entropy_loss(logits, labels)[0],
    )


def compare(dense: Dense, packed: Packed, cross_entropy: CrossEntropy, device: str) -> tuple[dict[str, Any], list[str]]:
    """Return the largest errors (kernel, PyTorch) of each case's output and gradients, and messages on large ones."""
    figures: dict[str, Any] = {}
    wrong = []
    for name, kernel, ours, shape in _cases(dense, packed, device):
        errors = _errors(kernel, ours, shape, device)
        figures[name] = errors
        for what, (error, usual) in errors.items():
            if not error <= max(FACTOR * usual, LEAST):  # NaN also fails
                wrong.append(f"{name}: {what} is off by {error:.2g}, PyTorch's attention by {usual:.2g}")
    error = _cross_entropy_error(cross_entropy, device)
    figures["cross-entropy"] = error
    if not error <= LEAST:
        wrong.append(f"cross-entropy: off by {error:.2g}")
    return figures, wrong


def sdpa(q: Any, k: Any, v: Any) -> Any:
    """PyTorch's causal attention on (B, T, H, D)."""
    q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))
    return scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)


def sdpa_packed(q: Any, k: Any, v: Any, ends: Any, longest: int) -> Any:
    """PyTorch's causal attention, row by row."""
    rows = zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True)
    return torch.cat([sdpa(q[None, a:b], k[None, a:b], v[None, a:b])[0] for a, b in rows])


def _cases(dense: Dense, packed: Packed, device: str) -> Iterator[tuple[str, Dense, Dense, tuple[int, ...]]]:
    for batch, length, heads, size in SHAPES:
        yield f"B{batch} T{length} H{heads} D{size}", dense, sdpa, (batch, length, heads, size)
    ends = torch.tensor([0, *LENGTHS], device=device).cumsum(0).to(torch.int32)

    def with_ends(function: Packed) -> Dense:
        return lambda q, k, v: function(q, k, v, ends, max(LENGTHS))

    for size in (32, 64):
        name = f"packed {'+'.join(map(str, LENGTHS))} D{size}"
        yield name, with_ends(packed), with_ends(sdpa_packed), (sum(LENGTHS), 4, size)


def _errors(kernel: Dense, ours: Dense, shape: tuple[int, ...], device: str) -> dict[str, tuple[float, float]]:
    """Return the largest errors (kernel, PyTorch) against fp32, for the output and the three gradients."""
    generator = torch.Generator().manual_seed(0)
    exact, upstream = (torch.randn(n, *shape, generator=generator).to(device, torch.bfloat16) for n in (3, 1))

    def run(function: Dense, dtype: torch.dtype) -> list[torch.Tensor]:
        inputs = [tensor.to(dtype).requires_grad_() for tensor in exact]
        output = function(*inputs)
        gradients = torch.autograd.grad(output, inputs, upstream[0].to(dtype))
        return [tensor.float() for tensor in (output, *gradients)]

    truth, theirs, usual = run(ours, torch.float32), run(kernel, torch.bfloat16), run(ours, torch.bfloat16)

    def off(found: list[torch.Tensor]) -> list[float]:
        return [float((a - b).detach().abs().max()) for a, b in zip(found, truth, strict=True)]

    return dict(zip(("output", "dq", "dk", "dv"), zip(off(theirs), off(usual), strict=True), strict=True))


def _cross_entropy_error(cross_entropy: CrossEntropy, device: str) -> float:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(33, VOCABULARY, generator=generator).to(device)
    labels = torch.randint(0, VOCABULARY, (33,), generator=generator).to(device)
    truth = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    return float((cross_entropy(logits.clone(), labels).float() - truth).abs().max())
