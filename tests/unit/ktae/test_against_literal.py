"""The fast version against literal loops: random batches, odd inputs, every option.

Over 10,000 examples with KTAE_TEST_ALL, a tenth of that without.
"""

import os

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from ktae_batches import VARIANTS, advantages, literal, random_batch, random_config

from openrlhf_ktae.ktae import KTAEConfig

TOLERANCE = 1e-6
SHARE = 10 if "KTAE_TEST_ALL" in os.environ else 1
QUICK = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}


def assert_equal(batch, config, special=()):
    fast = advantages(*batch, config, special_token_ids=special)
    assert fast.dtype == np.float32
    assert np.isfinite(fast).all()
    slow = literal(*batch, config, special)
    assert np.abs(fast - slow).max(initial=0.0) <= TOLERANCE * np.maximum(1.0, np.abs(slow)).max(initial=1.0)


@settings(max_examples=950 * SHARE, **QUICK)
@given(seed=st.integers(0, 2**32 - 1))
def test_equal_on_random_batches_and_options(seed):
    rng = np.random.default_rng(seed)
    assert_equal(random_batch(rng), random_config(rng), special=(3, 1003))


SCORES = st.sampled_from([0.0, 1.0, float("nan"), 0.5, -1.0])


@settings(max_examples=60 * SHARE, **QUICK)
@given(
    variant=st.sampled_from(VARIANTS),
    ids=arrays(np.int64, (6, 5), elements=st.integers(0, 2**31)),
    repeated=arrays(np.bool_, (6, 5)),
    mask=arrays(np.bool_, (6, 5)),
    scores=st.lists(SCORES, min_size=6, max_size=6),
    groups=st.lists(st.integers(0, 1), min_size=6, max_size=6),
)
def test_equal_on_batches_that_shrink(variant, ids, repeated, mask, scores, groups):
    ids[repeated] = 2**31
    assert_equal((ids, mask, np.array(scores), groups, np.ones(6)), KTAEConfig(variant=variant))


@pytest.mark.parametrize("variant", VARIANTS)
def test_equal_on_groups_of_the_usual_size(variant):
    rng = np.random.default_rng(0)
    for rollouts in (16, 33):
        ids = rng.zipf(1.3, (2 * rollouts, 60)) % 300
        mask = np.arange(60) < rng.integers(0, 61, (2 * rollouts, 1))
        groups = rng.permutation(np.repeat([7, -3], rollouts))
        scores = (rng.random(2 * rollouts) < 0.4).astype(float)
        ids[scores == 1, 0] = 299
        assert_equal((ids, mask, scores, groups, rng.normal(size=2 * rollouts)), KTAEConfig(variant=variant))


def test_the_random_batches_are_not_trivial():
    rng = np.random.default_rng(1)
    batches = [random_batch(rng) for _ in range(300)]
    moved = [advantages(*batch[:4], np.zeros(len(batch[2])), KTAEConfig()).any() for batch in batches]
    assert np.mean(moved) > 0.3
