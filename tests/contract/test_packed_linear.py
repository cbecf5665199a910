"""Packed linear layers with vLLM's own oneDNN operators."""

from __future__ import annotations

import psutil
import pytest
import torch

from openrlhf_ktae.backend.cpu_packed_linear import PackedLinear, forget_packed


@pytest.fixture(scope="module")
def ops():
    from vllm import _custom_ops

    if not _custom_ops._supports_onednn:
        pytest.skip("this build of vLLM has no oneDNN")
    return _custom_ops


def layer(ops, rows, columns, dtype=torch.float32):
    torch.manual_seed(0)
    linear = torch.nn.Linear(columns, rows, dtype=dtype).requires_grad_(False)
    linear.cpu_linear = PackedLinear(ops)
    return linear


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("batch", [(1,), (5,), (2, 3)])
@pytest.mark.parametrize("bias", [True, False])
def test_the_product_is_torchs(ops, dtype, tolerance, batch, bias):
    linear = layer(ops, 96, 64, dtype)
    x = torch.randn(*batch, 64, dtype=dtype)
    added = linear.bias if bias else None
    found = linear.cpu_linear(x, linear.weight, added)
    assert found.shape == (*batch, 96)
    torch.testing.assert_close(
        found, torch.nn.functional.linear(x, linear.weight, added), atol=tolerance, rtol=tolerance
    )


def test_new_weights_take_effect_after_forget_packed(ops):
    """Loading writes into the plain weight; only `forget_packed` invalidates the packed copy."""
    linear = layer(ops, 96, 64)
    model = torch.nn.Sequential(torch.nn.Sequential(linear), torch.nn.ReLU())
    x = torch.randn(5, 64)
    before = linear.cpu_linear(x, linear.weight, None)
    linear.weight.mul_(3.0)
    assert torch.equal(linear.cpu_linear(x, linear.weight, None), before), "nothing was packed: the test is void"
    forget_packed(model)
    torch.testing.assert_close(linear.cpu_linear(x, linear.weight, None), 3.0 * before)


def test_a_released_copy_is_gone_and_packed_again(ops):
    linear = layer(ops, 96, 64)
    x = torch.randn(5, 64)
    before = linear.cpu_linear(x, linear.weight, None)
    forget_packed(linear, free=True)
    assert linear.cpu_linear._packed is None
    assert torch.equal(linear.cpu_linear(x, linear.weight, None), before)


def test_packing_again_frees_the_older_copy(ops):
    linear = layer(ops, 1024, 1024)  # 4 MiB
    x = torch.randn(2, 1024)

    def pack(times):
        for _ in range(times):
            forget_packed(linear)
            linear.cpu_linear(x, linear.weight, None)
        return psutil.Process().memory_info().rss / 2**20

    before = pack(5)
    assert pack(50) - before < 60


def test_non_matrix_weights_use_torchs_product(ops):
    linear = PackedLinear(ops)
    weight, x = torch.randn(4), torch.randn(3, 4)
    assert torch.equal(linear(x, weight), torch.nn.functional.linear(x, weight))
