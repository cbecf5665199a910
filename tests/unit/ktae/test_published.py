"""Variant `reference` against output of the published code, where that code is right.

data/published_code_advantages.npz holds what the code published with arXiv 2505.16826 returned for random ids:
NN_ids, NN_mask and NN_advantage (B, T), NN_reward and NN_uid (B) of case NN, and NN_comparable (B, T), which is false
where float32 rounding makes the published code wrong.
"""

from pathlib import Path

import numpy as np
import pytest

from openrlhf_ktae.ktae import KTAEConfig, compute_ktae_advantages

DATA = Path(__file__).parent / "data" / "published_code_advantages.npz"
CASES = 16
PUBLISHED_STD_EPSILON = 1e-6


@pytest.fixture(scope="module")
def published():
    return np.load(DATA)


def group_norm(rewards_B, group_ids_B):
    advantages_B = np.zeros(len(rewards_B))
    for group in np.unique(group_ids_B):
        rewards_G = rewards_B[group_ids_B == group]
        spread = rewards_G.std(ddof=1) + PUBLISHED_STD_EPSILON
        advantages_B[group_ids_B == group] = (rewards_G - rewards_G.mean()) / spread
    return advantages_B


@pytest.mark.parametrize("case", range(CASES))
def test_reference_reproduces_the_published_code_where_it_is_right(published, case):
    ids, mask, rewards, groups, expected, comparable = (
        published[f"{case:02d}_{name}"] for name in ("ids", "mask", "reward", "uid", "advantage", "comparable")
    )
    base = group_norm(rewards.astype(np.float64), groups)
    found = compute_ktae_advantages(ids, mask, rewards, groups, base, KTAEConfig(variant="reference")).numpy()
    assert comparable.any()
    assert np.abs(found - expected)[comparable].max() < 1e-4
    assert (found[mask == 0] == 0).all()
