"""RMS norms for training on the CPU that save only their input; autograd would also save the normalized one."""

import inspect
from functools import partial
from typing import Any

import torch

FORM = "return self.weight * hidden_states.to(input_dtype)"


def save_less_of_norms(model: torch.nn.Module) -> int:
    """Let fp32 RMS norms written like those of Llama and Qwen2 save less for backward; return their number.

    Values and gradients stay the same to the bit.
    """
    found = [layer for layer in model.modules() if _is_plain_norm(layer)]
    for layer in found:
        layer.forward = partial(_normed, layer)
    return len(found)


def _is_plain_norm(layer: Any) -> bool:
    named = type(layer).__name__.endswith("RMSNorm") and hasattr(layer, "variance_epsilon")
    return named and layer.weight.dtype == torch.float32 and FORM in inspect.getsource(type(layer).forward)


def _normed(layer: Any, hidden_states: torch.Tensor) -> torch.Tensor:
    result: torch.Tensor = _Norm.apply(hidden_states, hidden_states, layer.weight, layer.variance_epsilon)
    return result


class _Norm(torch.autograd.Function):
    """x (..., K) divided by its root mean square, times w (K,).

    x is passed twice and gets two gradients, because autograd adds the gradients of product and mean one by one.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, _: torch.Tensor, w: torch.Tensor, epsilon: float) -> torch.Tensor:
        factor = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + epsilon)
        ctx.save_for_backward(x, w, factor)
        return (x * factor).mul_(w)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[torch.Tensor | None, ...]:
        (x, w, factor), (g,) = ctx.saved_tensors, gradients
        of_w = (x * factor).mul_(g).sum_to_size(w.shape) if ctx.needs_input_grad[2] else None
        if not ctx.needs_input_grad[0]:
            return None, None, of_w, None
        of_product = g * w
        of_mean = (of_product * x).sum(-1, keepdim=True).mul_(-0.5).mul_(factor.pow(3)).div_(x.size(-1))
        return of_product.mul_(factor), (2 * x).mul_(of_mean), of_w, None
