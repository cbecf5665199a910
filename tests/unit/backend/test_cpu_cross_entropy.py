"""Token log-probabilities on a CPU: bit-identical to the host's, with fewer logits-sized tensors."""

from __future__ import annotations

import builtins

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from openrlhf_ktae.backend.cpu_cross_entropy import CHUNK


@pytest.fixture
def log_probs():
    """The host's function as patched by the CPU backend."""
    from openrlhf_ktae.backend.cpu_patches import activate

    activate()
    from openrlhf.models.utils import log_probs_from_logits

    return log_probs_from_logits


@pytest.fixture
def no_flash_attn(monkeypatch):
    """Switch to the host's fallback for a `flash_attn` without cross-entropy."""
    take = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name == "flash_attn.ops.triton.cross_entropy":
            raise ImportError(name)
        return take(name, *args, **kwargs)

    def switch():
        monkeypatch.setattr(builtins, "__import__", refuse)

    return switch


class Large(TorchDispatchMode):
    """Collects new allocations of at least `elements` elements; `summed` is the largest input of a logsumexp."""

    def __init__(self, elements):
        super().__init__()
        self.elements, self.memories, self.summed = elements, [], 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function is torch.ops.aten.logsumexp.default:  # it copies its input internally, which dispatch does not show
            self.summed = max(self.summed, args[0].numel())
        known = {m.data_ptr() for m in self.memories} | {
            a.untyped_storage().data_ptr() for a in args if isinstance(a, torch.Tensor)
        }
        if isinstance(result, torch.Tensor) and result.numel() >= self.elements:
            memory = result.untyped_storage()  # kept alive so that no later tensor reuses its address
            if memory.data_ptr() not in known:
                self.memories.append(memory)
        return result


def both_ways(function, shape, vocabulary):
    """Return log-probabilities, their gradient, and the large tensors allocated for them."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(*shape, vocabulary, generator=generator).requires_grad_(True)
    labels = torch.randint(0, vocabulary, shape, generator=generator)
    weights = torch.randn(shape, generator=generator) * (torch.rand(shape, generator=generator) > 0.3)
    with Large(logits.numel()) as large:
        values = function(logits, labels)
        (gradient,) = torch.autograd.grad((values * weights).sum(), logits)
    return values.detach(), gradient, large


@pytest.mark.parametrize(("shape", "vocabulary"), [((1, 1), 2), ((3, 7), 190), ((1, 22), 49152), ((5, 300), 4096)])
def test_values_and_gradients_are_the_hosts_to_the_bit(log_probs, no_flash_attn, shape, vocabulary):
    values, gradient, ours = both_ways(log_probs, shape, vocabulary)
    no_flash_attn()
    host_values, host_gradient, hosts = both_ways(log_probs, shape, vocabulary)
    assert torch.equal(values, host_values)
    assert torch.equal(gradient, host_gradient)
    assert len(ours.memories) == 1, "only the gradient is as large as the logits"
    assert ours.summed <= CHUNK
    assert len(hosts.memories) > 1, "the host allocates more"


def test_logits_are_not_modified(log_probs):
    logits = torch.randn(2, 5, 11, requires_grad=True)
    before = logits.detach().clone()
    log_probs(logits, torch.randint(0, 11, (2, 5))).sum().backward()
    assert torch.equal(logits.detach(), before), "the host computes entropies from them"


def test_a_rollout_without_tokens(log_probs):
    logits = torch.randn(2, 0, 11, requires_grad=True)
    values = log_probs(logits, torch.zeros(2, 0, dtype=torch.long))
    values.sum().backward()
    assert values.shape == (2, 0)
    assert logits.grad.shape == (2, 0, 11)
