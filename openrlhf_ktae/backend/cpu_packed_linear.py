"""Linear layers of an engine on the CPU: oneDNN's packed copy of each matrix, repacked after weight updates.

If MKL has no kernel for the processor (AMD with AVX-512), oneDNN's product in fp32 is about three times as fast as
torch's. Packing costs less than one token of a batch. vLLM's engine process imports this.
"""

from typing import Any

import torch

PRIMITIVES = 32  # shapes for which a layer caches code, as in vLLM


class PackedLinear:
    """The function vLLM calls as `layer.cpu_linear(x, weight, bias)`: x @ weight.T + bias.

    The plain weight stays in the layer, where new values are loaded into it; `stale` means that the packed copy is
    outdated.
    """

    def __init__(self, ops: Any) -> None:
        """`ops` is `vllm._custom_ops`; nothing is packed before the first call."""
        self._ops = ops
        self._packed: Any = None
        self.stale = True

    def __call__(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """Return the product (..., N) of `x` (..., K) and `weight` (N, K)."""
        if self.stale:
            self._packed = self._pack(weight)
            self.stale = False
        if self._packed is None:
            return torch.nn.functional.linear(x, weight, bias)
        return self._ops.onednn_mm(self._packed, x, bias)

    def _pack(self, weight: torch.Tensor) -> Any:
        """Return oneDNN's handle; None if it does not support the weight."""
        if weight.ndim != 2 or not self._ops._supports_onednn:
            return None
        try:
            return self._ops.create_onednn_mm(weight.t(), PRIMITIVES)
        except RuntimeError:
            return None


def forget_packed(model: torch.nn.Module, free: bool = False) -> None:
    """Make every layer of `model` repack its weight before the next use; with `free`, drop the packed copies now."""
    for layer in model.modules():
        linear = getattr(layer, "cpu_linear", None)
        if isinstance(linear, PackedLinear):
            linear.stale = True
            if free:
                linear._packed = None
