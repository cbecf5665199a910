"""The compiled sums over a batch against plain ones."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from openrlhf_ktae.ktae import credit_sums, repeated_grams


@pytest.mark.parametrize("first", [0, 2**31])
def test_sums_match_plain_arrays(first):
    rng = np.random.default_rng(0)
    widths = [7, 0, 30, 12]
    edges = np.concatenate([[0], np.cumsum(widths)])
    ids, mask = rng.integers(0, 6, edges[-1]) + first, rng.random(edges[-1]) < 0.7
    k, a = (rng.normal(size=edges[-1]).astype(np.float32) for _ in range(2))
    sums = credit_sums(*map(torch.from_numpy, (np.where(mask, ids, -5), mask, k, a)), edges)
    assert sums.k_mass == pytest.approx(np.abs(k[mask]).sum())
    assert sums.a_mass == pytest.approx(np.abs(a[mask]).sum())
    assert sums.flips == (a[mask] * (a + k)[mask] < 0).sum() > 0
    assert sums.tokens == mask.sum()
    for row, (start, end) in enumerate(itertools.pairwise(edges)):
        assert sums.sums_B[row] == pytest.approx(k[start:end][mask[start:end]].sum(), abs=1e-6)
        assert sums.tokens_B[row] == mask[start:end].sum()
    for largest in (True, False):
        for n in (0, 2, 6, 99):
            rows = [
                (o, float(k[mask & (ids == o)].mean(dtype=np.float64)), (mask & (ids == o)).sum()) for o in set(ids)
            ]
            rows.sort(key=lambda row: (-row[1] if largest else row[1], row[0]))
            found = sums.top(n, largest)
            assert [(o, uses) for o, _, uses in found] == [(o, uses) for o, _, uses in rows[:n]]
            assert [mean for _, mean, _ in found] == pytest.approx([mean for _, mean, _ in rows[:n]])


@pytest.mark.parametrize("first", [0, 2**31])
def test_ids_of_equal_mean_come_in_ascending_order(first):
    ids, mask = torch.tensor([1, 2, 3, 1, 4, 3]) + first, torch.tensor([1, 1, 1, 1, 1, 0], dtype=torch.bool)
    values = torch.tensor([0.5, -0.1, 0.2, 0.1, 0.2, 9.0])
    sums = credit_sums(ids, mask, values, values, [0, 3, 6])
    assert [(o - first, uses) for o, _, uses in sums.top(3)] == [(1, 2), (3, 1), (4, 1)]
    assert [mean for _, mean, _ in sums.top(3)] == pytest.approx([0.3, 0.2, 0.2])
    assert sums.top(1, largest=False)[0][0] == 2 + first
    assert len(sums.top(99)) == 4
    assert credit_sums(ids, torch.zeros_like(mask), values, values, [0, 3, 6]).top(5) == []


@pytest.mark.parametrize("n", [1, 2, 4])
def test_repeated_grams_match_a_set(n):
    rng = np.random.default_rng(1)
    widths = [0, 1, 3, 200, 50, 900]
    edges = np.concatenate([[0], np.cumsum(widths)])
    ids, mask = rng.integers(0, 4, edges[-1]) + 2**40, rng.random(edges[-1]) < 0.9
    repeated = total = 0
    for start, end in itertools.pairwise(edges):
        row = ids[start:end][mask[start:end]].tolist()
        grams = [tuple(row[i : i + n]) for i in range(len(row) - n + 1)]
        repeated, total = repeated + len(grams) - len(set(grams)), total + len(grams)
    assert repeated_grams(torch.from_numpy(ids), torch.from_numpy(mask), edges, n) == (repeated, total)
    assert repeated
    assert repeated_grams(torch.from_numpy(ids), torch.zeros(edges[-1], dtype=torch.bool), edges, n) == (0, 0)
