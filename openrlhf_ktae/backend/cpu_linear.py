"""Linear layers of a model in training on the CPU: oneDNN's product forward and backward, in place of torch's.

torch multiplies fp32 matrices with MKL, which has no AVX-512 kernel for AMD's processors; oneDNN, in the same build of
torch, is two to three times as fast there (`docs/log.md`). Parameters, their names and what is saved do not change.
"""

from __future__ import annotations

from typing import Any

import torch


class OneDnnLinear(torch.nn.Linear):
    """`torch.nn.Linear`, its three products by oneDNN."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return `input` (..., in_features) times the weight, plus the bias."""
        product: torch.Tensor = _Product.apply(input, self.weight)
        return product if self.bias is None else product + self.bias


class _Product(torch.autograd.Function):
    """x (..., K) times w.T of w (N, K)."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        # The parameter itself is saved: ZeRO-3 frees and gathers its data under it, before forward and backward alike.
        ctx.save_for_backward(x, w)
        return multiply(x, w)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        x, w = ctx.saved_tensors
        (g,) = gradients
        for_x = multiply(g, w.t()) if ctx.needs_input_grad[0] else None
        if not ctx.needs_input_grad[1]:
            return for_x, None
        rows_of_g, rows_of_x = g.reshape(-1, g.size(-1)), x.reshape(-1, x.size(-1))
        return for_x, multiply(rows_of_g.t(), rows_of_x.t())


def multiply(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """Return x (..., K) times w.T of w (N, K); both may be views."""
    if not x.numel():  # oneDNN refuses a product without rows, or over nothing
        return x.matmul(w.t())
    return torch.ops.mkldnn._linear_pointwise(x, w, None, "none", [], "")


def use_onednn(model: torch.nn.Module) -> int:
    """Let the fp32 linear layers of `model` multiply with oneDNN; returns how many do.

    Layers of other classes (tensor-parallel shards, adapters around a layer) and other dtypes keep their own product.
    """
    if not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")):
        return 0
    chosen = [layer for layer in model.modules() if _has_plain_product(layer)]
    for layer in chosen:
        layer.__class__ = OneDnnLinear
    return len(chosen)


def _has_plain_product(layer: torch.nn.Module) -> bool:
    return type(layer) is torch.nn.Linear and layer.weight.dtype == torch.float32
