"""Linear layers for training on the CPU: each shape's products, forward and backward, by oneDNN or by torch's MKL.

In the same build of torch, oneDNN in fp32 is up to three times as fast on AMD's processors, and slower on some of
Intel's (`docs/log.md`). So both are timed when a model loads. Parameters, their names and saved files do not change.
"""

import inspect
import time
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any, NamedTuple

import torch

from openrlhf_ktae.backend.cpu_cross_entropy import losses_of, to_gradient

# From this many outputs per input, rows without a gradient are skipped. Only the last layer, over the vocabulary, is so
# wide, and logits of prompts and padding have no gradient. In others the search would cost more than it saves.
WIDE = 16
MULTIPLICATIONS = 2.5e8  # of a timed product
FEWEST_ROWS = 32  # of a product: kernels for fewer rows round differently
LEAD = 1.1  # torch replaces oneDNN if it is this many times as fast: two measurements then rarely disagree


class Asked(NamedTuple):
    """A pass's request to the last layer: log-probabilities of `labels` (b, T) where `wanted` (b, T)."""

    labels: torch.Tensor
    wanted: torch.Tensor
    temperature: float


class ChosenLinear(torch.nn.Linear):
    """`torch.nn.Linear` whose three products, forward and backward, are computed by `multiply`."""

    multiply: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    asked: Asked | None = None
    """Set for a pass that needs log-probabilities (b, T, 1) of labels instead of logits."""

    def forward(self, input: torch.Tensor, up: torch.Tensor | None = None) -> torch.Tensor:
        """Return `input` (..., in_features) times the weight, plus the bias; if asked, log-probabilities (b, T, 1).

        With `up`, the input is SiLU(`input`) * up.
        """
        if up is not None:
            gated: torch.Tensor = _GatedProduct.apply(input, up, self.weight, self.multiply)
            return gated
        if self.asked is not None:
            scores: torch.Tensor = _LogProbs.apply(input, self.weight, self.multiply, self.asked)
            return scores
        product: torch.Tensor = _Product.apply(input, self.weight, self.multiply)
        return product if self.bias is None else product + self.bias


class _Product(torch.autograd.Function):
    """x (..., K) times w.T, for w (N, K)."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, w: torch.Tensor, multiply: Callable[..., torch.Tensor]) -> torch.Tensor:
        # Save the parameter itself: ZeRO-3 frees and gathers its data in place, before both forward and backward.
        ctx.save_for_backward(x, w)
        ctx.multiply = multiply
        return multiply(x, w)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[torch.Tensor | None, torch.Tensor | None, None]:
        x, w = ctx.saved_tensors
        g = _rows(gradients[0])
        used = _rows_with_gradient(g) if w.size(0) >= WIDE * w.size(1) else None
        return *_gradients(ctx, x, w, g if used is None else g[used], used), None


def _gradients(
    ctx: Any, x: torch.Tensor, w: torch.Tensor, g: torch.Tensor, rows: torch.Tensor | None
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Return the gradients of x (..., K) and w (N, K) from g (n, N), the gradient of `rows` (n,), or of all (None)."""
    rows_of_x, of_x, of_w = _rows(x), None, None
    if ctx.needs_input_grad[0]:
        of_x = ctx.multiply(g, w.t())
        if rows is not None:
            of_x = torch.zeros_like(rows_of_x).index_copy_(0, rows, of_x)
        of_x = of_x.view(x.shape)
    if ctx.needs_input_grad[1]:
        of_w = ctx.multiply(g.t(), (rows_of_x if rows is None else rows_of_x[rows]).t())
    return of_x, of_w


class _GatedProduct(torch.autograd.Function):
    """SiLU(gate) * up (..., K) times w.T of w (N, K); saves gate and up, where autograd saves four tensors."""

    @staticmethod
    def forward(
        ctx: Any, gate: torch.Tensor, up: torch.Tensor, w: torch.Tensor, multiply: Callable[..., torch.Tensor]
    ) -> torch.Tensor:
        ctx.save_for_backward(gate, up, w)
        ctx.multiply = multiply
        return multiply(torch.nn.functional.silu(gate).mul_(up), w)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[torch.Tensor | None, ...]:
        gate, up, w = ctx.saved_tensors
        g, active = _rows(gradients[0]), torch.nn.functional.silu(gate)
        of_w = ctx.multiply(g.t(), _rows(active * up).t()) if ctx.needs_input_grad[2] else None
        of_x = ctx.multiply(g, w.t()).view(gate.shape)
        of_up = active.mul_(of_x)
        return torch.ops.aten.silu_backward(of_x.mul_(up), gate), of_up, of_w, None


GATED = "self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))"


def save_less_of_gates(model: torch.nn.Module) -> int:
    """Let feed-forward layers written as `GATED`, with SiLU, save less for backward; return their number."""
    found = 0
    for layer in model.modules():
        parts = [getattr(layer, name, None) for name in ("gate_proj", "up_proj", "down_proj")]
        if any(type(part) is not ChosenLinear for part in parts) or parts[2].bias is not None:  # type: ignore[union-attr]
            continue
        silu = type(getattr(layer, "act_fn", None)).__name__ in ("SiLU", "SiLUActivation")
        if silu and GATED in inspect.getsource(type(layer).forward):
            layer.forward = partial(_gated, layer)
            found += 1
    return found


def _gated(layer: Any, x: torch.Tensor) -> torch.Tensor:
    result: torch.Tensor = layer.down_proj(layer.gate_proj(x), layer.up_proj(x))
    return result


class _LogProbs(torch.autograd.Function):
    """The last layer and its log-probabilities. Logits exist only where wanted, and become their gradient."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, w: torch.Tensor, multiply: Callable[..., torch.Tensor], asked: Asked
    ) -> torch.Tensor:
        wanted = asked.wanted.reshape(-1)
        if wanted.sum() < FEWEST_ROWS:
            wanted = torch.ones_like(wanted)
        ctx.rows = wanted.nonzero().squeeze(1)
        logits, ctx.labels = multiply(_rows(x)[ctx.rows], w), asked.labels.reshape(-1)[ctx.rows]
        if asked.temperature != 1.0:
            logits.div_(asked.temperature)
        losses, normalizers = losses_of(logits, ctx.labels)
        ctx.save_for_backward(x, w)
        ctx.multiply, ctx.temperature = multiply, asked.temperature
        if any(ctx.needs_input_grad):
            ctx.logits, ctx.normalizers = logits, normalizers
        return -losses.new_zeros(len(wanted)).index_copy_(0, ctx.rows, losses).view(*asked.labels.shape, 1)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[torch.Tensor | None, torch.Tensor | None, None, None]:
        x, w = ctx.saved_tensors
        weights, logits = -gradients[0].reshape(-1)[ctx.rows], ctx.logits
        ctx.logits = None  # they become their gradient
        used = (weights != 0).nonzero().squeeze(1)
        g = to_gradient(logits, ctx.labels, ctx.normalizers, weights, used)
        del logits
        if ctx.temperature != 1.0:
            g.div_(ctx.temperature)
        return *_gradients(ctx, x, w, g, ctx.rows[used]), None, None


def is_wide(layer: Any) -> bool:
    """Whether `asked` keeps results bit-identical; narrower layers also multiply rows without a gradient."""
    return isinstance(layer, ChosenLinear) and layer.bias is None and layer.out_features >= WIDE * layer.in_features


def _rows(x: torch.Tensor) -> torch.Tensor:
    return x.reshape(-1, x.size(-1))


def _rows_with_gradient(g: torch.Tensor) -> torch.Tensor | None:
    """Return the indices of nonzero rows of g (n, N); None if all rows are nonzero."""
    used = g.any(dim=-1)
    return None if used.all() else used.nonzero().squeeze(1)


def by_onednn(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """Return x (..., K) times w.T, for w (N, K), by oneDNN; both may be views."""
    if not x.numel():  # oneDNN refuses empty operands
        return x.matmul(w.t())
    return torch.ops.mkldnn._linear_pointwise(x, w, None, "none", [], "")


def by_torch(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """Return the same product, computed by torch."""
    return x.matmul(w.t())


Shape = tuple[int, int]
"""Outputs and inputs of a layer."""


def measured_leads(model: torch.nn.Module) -> dict[Shape, float]:
    """Return, for each shape that `use_faster_products` would change, how many times as fast torch is as oneDNN."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so that other busy processes do not slow one kernel down
    try:
        return {shape: _lead_of_torch(*shape) for shape in {_shape(layer) for layer in _layers(model)}}
    finally:
        torch.set_num_threads(threads)


def use_faster_products(model: torch.nn.Module, leads: Mapping[Shape, float]) -> int:
    """Make the fp32 linear layers of `model` use oneDNN, or torch where it is clearly faster; return their number.

    Layers of other classes (tensor-parallel shards, adapters around a layer) and other dtypes are left unchanged.
    """
    chosen = _layers(model)
    for layer in chosen:
        layer.__class__ = ChosenLinear
        layer.multiply = by_torch if leads.get(_shape(layer), 0.0) > LEAD else by_onednn
    return len(chosen)


def described(leads: Mapping[Shape, float]) -> dict[str, str]:
    """Return each shape's kernel, and how many times as fast as the other kernel it was."""
    return {
        f"{outputs} x {inputs}": f"torch, {lead:.2f} x oneDNN" if lead > LEAD else f"oneDNN, {1 / lead:.2f} x torch"
        for (outputs, inputs), lead in sorted(leads.items())
    }


@cache  # runs of one process get the same kernels
def _lead_of_torch(outputs: int, inputs: int) -> float:
    rows = int(min(max(MULTIPLICATIONS / (outputs * inputs), 32), 1024))
    x, w, g = torch.ones(rows, inputs), torch.ones(outputs, inputs), torch.ones(rows, outputs)

    def seconds(multiply: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> float:
        started = time.thread_time()
        multiply(x, w), multiply(g, w.t()), multiply(g.t(), x.t())
        return time.thread_time() - started

    with torch.no_grad():
        rounds = [(seconds(by_onednn), seconds(by_torch)) for _ in range(3)]
    onednn, plain = map(min, zip(*rounds, strict=True))
    return onednn / plain


def _layers(model: torch.nn.Module) -> list[Any]:
    if not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")):
        return []
    linear = (layer for layer in model.modules() if type(layer) is torch.nn.Linear)
    return [layer for layer in linear if layer.weight.dtype == torch.float32]


def _shape(layer: Any) -> Shape:
    return layer.out_features, layer.in_features
