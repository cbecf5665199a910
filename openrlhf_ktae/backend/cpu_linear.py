"""Linear layers of a model in training on the CPU: oneDNN's product forward and backward, in place of torch's.

torch multiplies fp32 matrices with MKL. oneDNN, in the same build of torch, is up to three times as fast on one of
AMD's processors and a few per cent faster on another (`docs/log.md`). Parameters, their names and what is saved do not
change.
"""

from __future__ import annotations

from typing import Any

import torch

# From this many outputs an input on, rows without a gradient are left out: the layer is the last one, over the
# vocabulary, and the logits of prompts and padding have none. Elsewhere looking for them would cost more than it saves.
WIDE = 16


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
    """Return the rows of g (N, K) that are not zero; None where all are."""
    used = g.any(dim=-1)
    return None if used.all() else used.nonzero().squeeze(1)


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
