"""Transformations that must leave advantages bit-identical, and one that must flip the sign of K."""

import numpy as np
import pytest
import torch
from ktae_batches import VARIANTS, advantages, table_group

from openrlhf_ktae.ktae import KTAEConfig, compute_key_token_values, compute_ktae_advantages
from openrlhf_ktae.ktae.batch import above

CONFIGS = [
    *(KTAEConfig(variant=variant) for variant in VARIANTS),
    KTAEConfig(variant="calibrated", centre=True, noise_budget=0.001),
    KTAEConfig(variant="paper", centre=True, weight=0.7, excluded_ids=(3,)),
]
GROUPS, ROLLOUTS, TOKENS = 6, 8, 40


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    rows = GROUPS * ROLLOUTS
    ids = rng.zipf(1.3, (rows, TOKENS)) % 60
    mask = np.arange(TOKENS) < rng.integers(0, TOKENS + 1, (rows, 1))
    mask &= rng.random((rows, TOKENS)) < 0.9
    scores = rng.choice([0.0, 1.0, np.nan], rows, p=[0.5, 0.45, 0.05])
    groups = rng.permutation(np.repeat(np.arange(GROUPS) * 7 - 3, ROLLOUTS))
    ids[scores == 1, 0] = 99
    return ids, mask, scores, groups, rng.normal(size=rows)


@pytest.fixture(params=CONFIGS, ids=lambda config: f"{config.variant}-{'centred' if config.centre else 'plain'}")
def config(request):
    return request.param


def test_order_of_rows_and_groups(batch, config):
    order = np.random.default_rng(1).permutation(len(batch[2]))
    shuffled = advantages(*(part[order] for part in batch), config)
    assert (shuffled == advantages(*batch, config)[order]).all()


def test_names_of_groups(batch, config):
    ids, mask, scores, groups, base = batch
    assert (advantages(ids, mask, scores, 1000 - groups, base, config) == advantages(*batch, config)).all()


@pytest.mark.parametrize(("left", "right"), [(0, 9), (70, 0), (3, 5)])
def test_padding(batch, config, left, right):
    ids, mask, *rest = batch
    pad = ((0, 0), (left, right))
    padded = advantages(np.pad(ids, pad, constant_values=-100), np.pad(mask, pad), *rest, config)
    assert (padded[:, left : left + TOKENS] == advantages(*batch, config)).all()
    assert (np.delete(padded, np.s_[left : left + TOKENS], axis=1) == 0).all()


def test_unpadded_rows(batch, config):
    ids, mask, scores, groups, _ = batch
    widths = np.where(mask.any(axis=1), TOKENS - mask[:, ::-1].argmax(axis=1), 0)  # up to each row's last token
    kept = np.arange(TOKENS) < widths[:, None]
    edges = np.concatenate([[0], np.cumsum(widths)])
    table = compute_key_token_values(ids, mask, scores, groups, config, (2,))
    for threads in (1, 3):
        ragged = compute_key_token_values(
            ids[kept], mask[kept], scores, groups, config, (2,), num_threads=threads, row_edges=edges
        )
        assert torch.equal(ragged, table[torch.from_numpy(kept)])
        assert ragged.any()


@pytest.mark.parametrize("edges", [[], [1, 4], [0, 3], [0, 5, 4]])
def test_invalid_edges_are_refused(edges):
    with pytest.raises(ValueError, match=r"row_edges of .* must rise from 0 to the length of token_ids, 4"):
        compute_key_token_values(np.arange(4), np.ones(4), [1.0], [0], row_edges=edges)


def test_duplicating_the_batch_under_new_groups(batch, config):
    ids, mask, scores, groups, base = batch
    twice = (np.concatenate([part, part]) for part in (ids, mask, scores))
    found = advantages(*twice, np.concatenate([groups, groups + 100]), np.concatenate([base, base]), config)
    once = advantages(*batch, config)
    assert (found == np.concatenate([once, once])).all()


def test_splitting_between_groups(batch, config):
    whole = advantages(*batch, config)
    for cut in range(1, GROUPS):
        first = np.isin(batch[3], np.unique(batch[3])[:cut])
        for part in (first, ~first):
            assert (advantages(*(given[part] for given in batch), config) == whole[part]).all()


@pytest.mark.parametrize("threads", [2, 3, 64])
def test_number_of_threads(batch, config, threads):
    assert (advantages(*batch, config, num_threads=threads) == advantages(*batch, config, num_threads=1)).all()


def test_label_flip_flips_the_sign_exactly(batch, config):
    ids, mask, scores, groups, _ = batch
    values = compute_key_token_values(ids, mask, scores, groups, config)
    flipped = compute_key_token_values(ids, mask, 1.0 - scores, groups, config)
    assert values.abs().max() > 0
    assert torch.equal(flipped, -values)


@pytest.mark.parametrize("variant", VARIANTS)
def test_label_flip_with_unequal_sides(variant):
    ids, mask, scores = table_group([(a, b) for a in range(4) for b in range(14)], 3, 13, filler=30)
    config, groups = KTAEConfig(variant=variant), np.zeros(16, int)
    values = compute_key_token_values(ids, mask, scores, groups, config)
    flipped = compute_key_token_values(ids, mask, 1.0 - scores, groups, config)
    assert torch.equal(flipped, -values)


def test_renaming_token_ids_changes_nothing(batch, config):
    ids, *rest = batch
    names = np.random.default_rng(2).permutation(2**31 - np.arange(100) * 1_000_003)
    renamed = KTAEConfig(**{**vars(config), "excluded_ids": tuple(int(names[o]) for o in config.excluded_ids)})
    assert (advantages(names[ids], *rest, renamed) == advantages(*batch, config)).all()


def test_weight_zero_gives_the_rollout_advantages_bit_for_bit(batch):
    ids, mask, scores, groups, base = batch
    for kind in (torch.float32, torch.bfloat16, torch.float64):
        base_B = torch.tensor(base).to(kind)
        found = compute_ktae_advantages(ids, mask, scores, groups, base_B, KTAEConfig(weight=0.0))
        expected = torch.where(torch.tensor(mask), base_B.float()[:, None], 0.0)
        assert torch.equal(found.view(torch.int32), expected.view(torch.int32))
    assert not compute_key_token_values(ids, mask, scores, groups, KTAEConfig(weight=0.0)).any()


def test_values_are_the_difference_between_advantages_and_base(batch, config):
    ids, mask, scores, groups, base = batch
    values = compute_key_token_values(ids, mask, scores, groups, config)
    added = advantages(*batch, config) - np.where(mask, base[:, None], 0.0)
    assert np.abs(values.numpy() - added).max() < 1e-6
    assert not values[~torch.tensor(mask)].any()


@pytest.mark.parametrize("kind", [torch.int32, torch.int16, torch.uint8, torch.int64])
@pytest.mark.parametrize("mask_kind", [torch.bool, torch.int64, torch.float32, torch.bfloat16])
def test_kinds_of_tensors(batch, kind, mask_kind):
    ids, mask, scores, groups, base = (torch.tensor(part) for part in batch)
    for score_kind in (torch.float32, torch.bfloat16, torch.float64):
        found = compute_ktae_advantages(ids.to(kind), mask.to(mask_kind), scores.to(score_kind), groups.to(kind), base)
        assert found.dtype == torch.float32
        assert (found.numpy() == advantages(*batch)).all()


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_a_score_equal_to_the_threshold_is_wrong_in_every_type(kind):
    for threshold in (0.1, 0.3, 0.5, 0.7):
        assert not above(torch.tensor([threshold], dtype=kind), threshold).any()
        assert above(torch.tensor([threshold + 0.01], dtype=kind), threshold).all()


def test_strided_and_graph_attached_inputs(batch):
    ids, mask, scores, groups, base = (torch.tensor(part) for part in batch)
    strided = ids.t().contiguous().t()
    assert not strided.is_contiguous()
    found = compute_ktae_advantages(strided, mask, scores.requires_grad_(), groups, base.requires_grad_())
    assert not found.requires_grad
    assert (found.numpy() == advantages(*batch)).all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_inputs_give_cuda_results(batch):
    on_device = [torch.tensor(part).cuda() for part in batch]
    found = compute_ktae_advantages(*on_device)
    assert found.is_cuda
    assert (found.cpu().numpy() == advantages(*batch)).all()
    assert compute_key_token_values(*on_device[:4]).is_cuda
