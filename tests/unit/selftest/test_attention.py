"""The comparison of attention kernels accepts correct ones and detects wrong ones."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

from openrlhf_ktae.selftest.attention import LENGTHS, compare, sdpa, sdpa_packed


def eager(q, k, v):
    """Causal attention from plain bf16 products, which round in another order than PyTorch's kernel."""
    scores = torch.einsum("bthd,bshd->bhts", q, k) * q.shape[-1] ** -0.5
    hidden = torch.ones(q.shape[1], q.shape[1], dtype=torch.bool).triu(1)
    shares = scores.float().masked_fill(hidden, -torch.inf).softmax(-1).to(q.dtype)
    return torch.einsum("bhts,bshd->bthd", shares, v)


def looks_ahead(q, k, v):
    q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))
    return scaled_dot_product_attention(q, k, v).transpose(1, 2)


def forgets_the_ends(q, k, v, ends, longest):
    return sdpa(q[None], k[None], v[None])[0]


class WrongGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor):
        return tensor.clone()

    @staticmethod
    def backward(ctx, gradient):
        return 1.05 * gradient


def losses(logits, labels):
    return cross_entropy(logits, labels, reduction="none")


def test_right_kernels_pass():
    figures, wrong = compare(eager, sdpa_packed, losses, "cpu")
    assert wrong == []
    assert set(figures) == {
        "B2 T128 H4 D32",
        "B2 T257 H4 D64",
        "B1 T512 H2 D128",
        "packed 7+64+1+129 D32",
        "packed 7+64+1+129 D64",
        "cross-entropy",
    }
    assert len(LENGTHS) == 4
    error, usual = figures["B2 T128 H4 D32"]["dq"]
    assert 0 < error < 0.1
    assert 0 < usual < 0.1


@pytest.mark.parametrize(
    ("kernels", "named"),
    [
        ((looks_ahead, sdpa_packed, losses), "B2 T128 H4 D32: output is off by"),
        ((sdpa, forgets_the_ends, losses), "packed 7+64+1+129 D32: output is off by"),
        ((lambda q, k, v: sdpa(q, WrongGradient.apply(k), v), sdpa_packed, losses), "B2 T128 H4 D32: dk is off by"),
        ((lambda q, k, v: sdpa(q, k, v) * torch.nan, sdpa_packed, losses), "B2 T128 H4 D32: output is off by nan"),
        ((sdpa, sdpa_packed, lambda logits, labels: losses(logits, labels) * 1.01), "cross-entropy: off by"),
    ],
)
def test_wrong_kernels_are_found(kernels, named):
    _, wrong = compare(*kernels, "cpu")
    assert wrong[0].startswith(named), wrong
