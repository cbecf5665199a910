"""Odd inputs give finite results; invalid ones are refused by name."""

import numpy as np
import pytest
import torch
from ktae_batches import VARIANTS, advantages, literal

from openrlhf_ktae.ktae import KTAEConfig, compute_key_token_values, compute_ktae_advantages, explain_group

NAN = float("nan")


@pytest.fixture(params=VARIANTS)
def config(request):
    return KTAEConfig(variant=request.param)


def check(config, ids, mask, scores, groups=None, base=None):
    """Check that advantages are finite, 0 outside the mask and equal to the literal ones; return what K adds."""
    groups = np.zeros(len(ids), int) if groups is None else groups
    base = np.linspace(-1, 1, len(ids)) if base is None else base
    found = advantages(ids, mask, scores, groups, base, config)
    assert np.isfinite(found).all()
    assert (found[~np.asarray(mask, bool)] == 0).all()
    assert np.abs(found - literal(ids, mask, scores, groups, base, config)).max(initial=0) < 1e-6
    return found - np.where(mask, base[:, None], 0)


def whole(rows, positions=3):
    return np.arange(rows * positions).reshape(rows, positions), np.ones((rows, positions), bool)


@pytest.mark.parametrize("scores", [[1.0, 1.0], [0.0, 0.0], [NAN, NAN], [1.0, NAN], [0.0, NAN]])
def test_one_sided_groups_have_no_key_tokens(config, scores):
    assert np.abs(check(config, *whole(2), scores)).max() < 1e-7


def test_a_group_of_one(config):
    assert np.abs(check(config, *whole(1), [1.0])).max() == 0


def test_rows_without_response_tokens_count_as_rollouts(config):
    ids, mask = np.full((16, 2), 5), np.ones((16, 2), bool)
    ids[8:] = 6
    mask[[3, 12]] = False
    values = check(config, ids, mask, np.repeat([1.0, 0.0], 8))
    assert values[0, 0] > 0 > values[9, 0]
    assert (values[[3, 12]] == 0).all()


@pytest.mark.parametrize("empty", [slice(0, 8), slice(8, 16), slice(0, 16)])
def test_a_side_without_tokens(config, empty):
    ids, mask = whole(16)
    mask[empty] = False
    check(config, ids, mask, np.repeat([1.0, 0.0], 8))


def test_an_id_in_every_rollout_gets_no_value(config):
    ids, mask = np.full((16, 4), 9), np.ones((16, 4), bool)
    assert np.abs(check(config, ids, mask, np.repeat([1.0, 0.0], 8))).max() < 1e-6


def test_ids_up_to_the_32_bit_limit(config):
    ids, mask = np.full((16, 2), 2**31), np.ones((16, 2), bool)
    ids[:8, 1], ids[8:, 1] = 2**32 - 1, 0
    values = check(config, ids, mask, np.repeat([1.0, 0.0], 8))
    assert values[0, 1] > 0.3 > abs(values[0, 0])


def test_empty_batches(config):
    for rows, positions in ((4, 0), (0, 5), (0, 0)):
        ids = np.zeros((rows, positions), int)
        found = compute_ktae_advantages(ids, ids, np.zeros(rows), np.zeros(rows, int), np.zeros(rows), config)
        assert found.shape == (rows, positions)
        values = compute_key_token_values(ids, ids, np.zeros(rows), np.zeros(rows, int), config)
        assert values.shape == (rows, positions)


def test_scores_above_the_threshold_are_correct_even_if_infinite():
    ids, mask = np.repeat([[1], [2]], 2, axis=0), np.ones((4, 1), bool)
    found = compute_key_token_values(ids, mask, [np.inf, 0.1, 0.0, -np.inf], [0] * 4)
    assert found[:, 0].sign().tolist() == [1, 1, -1, -1]


def test_unknown_rollouts_are_ignored(config):
    rng = np.random.default_rng(0)
    ids, mask = rng.integers(0, 9, (18, 12)), np.ones((18, 12), bool)
    scores = np.repeat([1.0, 0.0, NAN], [8, 8, 2])
    values = compute_key_token_values(ids, mask, scores, np.zeros(18, int), config)
    alone = compute_key_token_values(ids[:16], mask[:16], scores[:16], np.zeros(16, int), config)
    assert torch.equal(values[:16], alone)
    assert not values[16:].any()
    check(config, ids, mask, scores)


def test_special_ids_get_no_value_and_change_no_others():
    rng = np.random.default_rng(0)
    ids, mask, groups = rng.integers(0, 6, (8, 9)), np.ones((8, 9), bool), np.zeros(8, int)
    scores = np.tile([1.0, 0.0], 4)
    plain = compute_key_token_values(ids, mask, scores, groups).numpy()
    for special, config in (((2, 77), KTAEConfig()), ((77,), KTAEConfig(excluded_ids=(2,)))):
        values = compute_key_token_values(ids, mask, scores, groups, config, special_token_ids=special)
        found = values.numpy()
        assert (found[ids == 2] == 0).all()
        assert (found[ids != 2] == plain[ids != 2]).all()
    assert np.abs(plain[ids == 2]).max() > 0


def test_centring_leaves_special_ids_at_zero_and_the_rest_at_mean_zero():
    rng = np.random.default_rng(0)
    ids, mask = rng.integers(0, 6, (8, 9)), rng.random((8, 9)) < 0.8
    values = compute_key_token_values(
        ids, mask, np.tile([1.0, 0.0], 4), np.zeros(8, int), KTAEConfig(centre=True), special_token_ids=(2,)
    ).numpy()
    assert (values[ids == 2] == 0).all()
    assert np.abs(values).max() > 0.1
    assert np.abs(values.sum(axis=1)).max() < 1e-6


@pytest.mark.parametrize("positions", [3, 50_000])
def test_a_group_with_very_many_distinct_ids(positions, config):
    ids = np.arange(4 * positions).reshape(4, positions) * 20_011 % 2**31
    ids[:2, 0] = 7
    found = advantages(ids, np.ones_like(ids), [1.0, 1.0, 0.0, 0.0], [0] * 4, np.zeros(4), config)
    assert np.isfinite(found).all()
    assert found[0, 0] == found[1, 0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"token_ids": np.zeros((4, 3))}, "token_ids is float64 of shape"),
        ({"token_ids": np.zeros(4, int)}, "give a .B, T. table of integers"),
        ({"action_mask": np.ones((4, 2))}, r"action_mask has shape \(4, 2\): give the shape of token_ids, \(4, 3\)"),
        ({"scores": [1.0]}, r"scores has shape \(1,\): give one number for each of the 4 rows"),
        ({"group_ids": [0, 0, 0]}, "group_ids has 3 entries: give one integer for each of the 4 rows"),
        ({"group_ids": [0.5] * 4}, "group_ids is float64"),
        ({"rollout_advantages": np.zeros((4, 3))}, "rollout_advantages has shape"),
        ({"special_token_ids": [None]}, r"special_token_ids=\[None\] must hold integers only"),
        ({"num_threads": 0}, "num_threads=0 must be at least 1"),
        ({"token_ids": np.full((4, 3), -100)}, "token_ids holds an id below 0"),
        ({"token_ids": np.full((4, 3), 2**32)}, "above 4294967295 under action_mask"),
    ],
)
def test_invalid_inputs_are_refused_by_name(change, message):
    good = {
        "token_ids": np.zeros((4, 3), int),
        "action_mask": np.ones((4, 3)),
        "scores": [1.0, 0.0, 1.0, 0.0],
        "group_ids": [0] * 4,
        "rollout_advantages": np.zeros(4),
    }
    compute_ktae_advantages(**good)
    with pytest.raises(ValueError, match=message):
        compute_ktae_advantages(**(good | change))


def test_explain_refuses_odd_ids_too():
    with pytest.raises(ValueError, match="token_ids holds an id below 0"):
        explain_group([[-1], [2]], [[1], [1]], [1.0, 0.0])
