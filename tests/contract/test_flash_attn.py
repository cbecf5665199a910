"""The flash-attn stub against the package's own functions, if it is installed (with or without its kernels)."""

from __future__ import annotations

import importlib.util
from importlib.metadata import PackageNotFoundError, distribution

import pytest
import torch

from openrlhf_ktae.backend import flash_attn_stub


@pytest.fixture(scope="module")
def real():
    """`flash_attn.bert_padding`, loaded from its file: the package imports kernels, which need a GPU build."""
    try:
        path = distribution("flash-attn").locate_file("flash_attn/bert_padding.py")
    except PackageNotFoundError:
        pytest.skip("flash-attn is not installed")
    spec = importlib.util.spec_from_file_location("real_bert_padding", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("shape", [(3, 7, 4), (1, 1, 2), (5, 16, 2, 3)])
def test_unpad_and_pad_match_flash_attn(real, shape):
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(shape, generator=generator)
    lengths = torch.randint(1, shape[1] + 1, shape[:1], generator=generator)
    mask = torch.arange(shape[1]) < lengths.unsqueeze(1)
    ours, theirs = (module.unpad_input(values, mask) for module in (flash_attn_stub, real))
    assert len(ours) == len(theirs) == 5
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(torch.as_tensor(one), torch.as_tensor(other))
        assert torch.as_tensor(one).dtype == torch.as_tensor(other).dtype
    padded = [module.pad_input(ours[0], ours[1], *shape[:2]) for module in (flash_attn_stub, real)]
    assert torch.equal(*padded)


def test_indexing_rows_gives_the_same_gradient(real):
    gradients = []
    for module in (flash_attn_stub, real):
        values = torch.arange(24.0).reshape(6, 4).requires_grad_(True)
        module.index_first_axis(values, torch.tensor([4, 1, 2])).square().sum().backward()
        gradients.append(values.grad)
    assert torch.equal(*gradients)


def test_the_stub_provides_everything_the_host_imports(host):
    from pathlib import Path

    import openrlhf

    folder = Path(openrlhf.__file__).parent
    lines = {
        line.strip()
        for path in folder.rglob("*.py")
        for line in path.read_text().splitlines()
        if line.strip().startswith(("from flash_attn", "import flash_attn"))
    }
    assert lines == {
        "from flash_attn.bert_padding import index_first_axis, pad_input, rearrange, unpad_input",
        "from flash_attn.utils.distributed import all_gather",
        "from flash_attn.ops.triton.cross_entropy import cross_entropy_loss",
    }
