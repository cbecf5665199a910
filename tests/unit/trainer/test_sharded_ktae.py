"""KTAE shared by Ray tasks: a real local Ray, the same bits as in one process."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch

from openrlhf_ktae.ktae import KTAEConfig, compute_key_token_values

GROUPS, ROLLOUTS, TOKENS = 7, 6, 30
SPECIAL = (3,)


@pytest.fixture(scope="module")
def sharded(root):
    import ray

    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, address="local")
    from openrlhf_ktae.trainer.ppo_utils import sharded_ktae

    yield sharded_ktae
    ray.shutdown()


def batch(contiguous):
    rng = np.random.default_rng(0)
    rows = GROUPS * ROLLOUTS
    ids = rng.zipf(1.3, (rows, TOKENS)) % 40
    mask = np.arange(TOKENS) < rng.integers(0, TOKENS + 1, (rows, 1))
    scores = rng.choice([0.0, 1.0, np.nan], rows, p=[0.5, 0.45, 0.05])
    groups = np.repeat(np.arange(GROUPS) * 5 - 9, ROLLOUTS)
    ids[scores == 1, 0] = 99
    return [torch.from_numpy(part) for part in (ids, mask, scores, groups if contiguous else rng.permutation(groups))]


def assert_equal(found, expected):
    assert torch.equal(found.values_BT.view(torch.int32), expected.values_BT.view(torch.int32))
    assert expected.values_BT.any()
    for count in ("groups", "mixed_groups", "unknown_rollouts"):
        assert getattr(found, count) == getattr(expected, count) > 0
    assert torch.equal(found.correct_B, expected.correct_B)
    assert torch.equal(found.known_B, expected.known_B)


@pytest.mark.parametrize("variant", ["paper", "calibrated"])
@pytest.mark.parametrize("contiguous", [True, False])
@pytest.mark.parametrize("workers", [0, 1, 3])
def test_the_same_bits_whatever_the_number_of_tasks(sharded, variant, contiguous, workers):
    given, config = batch(contiguous), KTAEConfig(variant=variant)
    expected = compute_key_token_values(*given, config, SPECIAL)
    assert_equal(sharded.key_token_values(*given, config, SPECIAL, workers), expected)


@pytest.mark.parametrize("contiguous", [True, False])
@pytest.mark.parametrize(("workers", "shards"), [(0, 0), (1, 1), (2, 2), (5, 5), (7, 7), (50, 7)])
def test_shards_are_whole_groups_of_about_equal_size(sharded, contiguous, workers, shards):
    groups = batch(contiguous)[3].numpy()
    found = [np.arange(len(groups))[rows] for rows in sharded._shards(groups, workers)]
    assert len(found) == shards
    if found:
        assert sorted(np.concatenate(found).tolist()) == list(range(len(groups)))
        members = [set(groups[rows].tolist()) for rows in found]
        assert sum(map(len, members)) == GROUPS
        assert max(map(len, members)) - min(map(len, members)) <= 1


def test_tasks_are_used_unasked_from_a_size_on(sharded, monkeypatch):
    given, asked = batch(True), []
    monkeypatch.setattr(
        sharded,
        "_shards",
        lambda groups, workers, shards=sharded._shards: asked.append(workers) or shards(groups, workers),
    )
    for size in (given[0].numel() + 1, given[0].numel()):
        monkeypatch.setattr(sharded, "SHARD_POSITIONS", size)
        assert_equal(sharded.key_token_values(*given, KTAEConfig()), compute_key_token_values(*given))
    assert asked == [0, 2]


def test_a_task_refuses_by_name_as_this_process_does(sharded):
    ids, *rest = batch(True)
    with pytest.raises(ValueError, match="token_ids holds an id below 0"):
        sharded.key_token_values(ids - 1000, *rest, KTAEConfig(), (), 2)


def test_a_batch_without_rollouts(sharded):
    empty = [torch.zeros(0, 4, dtype=torch.long), torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.long)]
    assert sharded.key_token_values(*empty, KTAEConfig(), (), 2).values_BT.shape == (0, 4)
