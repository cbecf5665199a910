"""Linear layers for training on the CPU: oneDNN matrix products, forward and backward, instead of torch's.

torch multiplies fp32 matrices with MKL. oneDNN, in the same build of torch, is up to three times as fast on one AMD
processor and a few per cent faster on another (`docs/log.md`). Parameters, their names and saved files do not change.
"""

from __future__ import annotations

from typing import Any

import torch

# At this many outputs per input, rows without a gradient are skipped: this is the last layer, over the vocabulary, and
# logits of prompts and padding have no gradient. Elsewhere the search would cost more than it saves.
WIDE = 16


class OneDnnLinear(torch.nn.Linear):
    """`torch.nn.Linear` with its three products computed by oneDNN."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return `input` (..., in_features) times the weight, plus the bias."""
        product: torch.Tensor = _Product.apply(input, self.weight)
        return product if self.bias is None else product + self.bias


class _Product(torch.autograd.Function):
    """x (..., K) times w.T of w (N, K)."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        # Save the parameter itself: ZeRO-3 frees and gathers its data in place, before both forward and backward.
        ctx.save_for_backward(x, w)
        return multiply(x, w)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        x, w = ctx.saved_tensors
        rows_of_x, rows_of_g = _rows(x), _rows(gradients[0])
        used = _rows_with_gradient(rows_of_g) if w.size(0) >= WIDE * w.size(1) else None
        if used is not None:
            rows_of_x, rows_of_g = rows_of_x[used], rows_of_g[used]
        of_x = of_w = None
        if ctx.needs_input_grad[0]:
            of_x = multiply(rows_of_g, w.t())
            if used is not None:
                of_x = torch.zeros_like(_rows(x)).index_copy_(0, used, of_x)
            of_x = of_x.view(x.shape)
        if ctx.needs_input_grad[1]:
            of_w = multiply(rows_of_g.t(), rows_of_x.t())
        return of_x, of_w


def _rows(x: torch.Tensor) -> torch.Tensor:
    return x.reshape(-1, x.size(-1))


def _rows_with_gradient(g: torch.Tensor) -> torch.Tensor | None:
    """Return the nonzero rows of g (N, K); None if all rows are nonzero."""
    used = g.any(dim=-1)
    return None if used.all() else used.nonzero().squeeze(1)


def multiply(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """Return x (..., K) times w.T of w (N, K); both may be views."""
    if not x.numel():  # oneDNN refuses empty operands
        return x.matmul(w.t())
    return torch.ops.mkldnn._linear_pointwise(x, w, None, "none", [], "")


def use_onednn(model: torch.nn.Module) -> int:
    """Make the fp32 linear layers of `model` multiply with oneDNN; return how many do.

    Layers of other classes (tensor-parallel shards, adapters around a layer) and other dtypes are left unchanged.
    """
    if not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")):
        return 0
    chosen = [layer for layer in model.modules() if _has_plain_product(layer)]
    for layer in chosen:
        layer.__class__ = OneDnnLinear
    return len(chosen)


def _has_plain_product(layer: torch.nn.Module) -> bool:
    return type(layer) is torch.nn.Linear and layer.weight.dtype == torch.float32
