"""Properties that every registered estimator must have."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from credit_batches import batch, of_rollouts, rollouts

from openrlhf_ktae.credit import NEEDS, estimators

ALL = pytest.mark.parametrize("name", estimators())


def added(name, made, **layout):
    given = batch(made, **layout)
    return of_rollouts(estimators()[name](given).added_N, made, given)


def assert_same(found, expected, exact=True):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=0 if exact else 2e-7)


@ALL
@pytest.mark.parametrize("seed", range(3))
def test_padding_and_splitting_change_no_bit(name, seed):
    made = rollouts(size=8, seed=seed)
    expected = added(name, made)
    assert any(one.any() for one in expected)
    for layout in ({"more": 5}, {"splits": 7}, {"splits": len(made), "more": 1}):
        assert_same(added(name, made, **layout), expected)


@ALL
@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_rollouts_changes_nothing(name, seed):
    made = rollouts(size=8, seed=seed)
    order = np.random.default_rng(seed).permutation(len(made))
    expected = added(name, made)
    assert_same(added(name, [made[i] for i in order]), [expected[i] for i in order], exact=False)


@pytest.mark.parametrize("name", [name for name, one in estimators().items() if not one.across_groups])
def test_groups_do_not_see_each_other(name):
    """So credit can be computed group by group (except for `entropy_mask`, whose threshold is the batch's)."""
    made = rollouts(size=8, seed=2)
    alone = [r for r in made if r["group"] == 1]
    expected = [one for one, r in zip(added(name, made), made, strict=True) if r["group"] == 1]
    assert_same(added(name, alone), expected, exact=False)


@ALL
@pytest.mark.parametrize("score", [0.0, 1.0])
def test_a_one_sided_group_keeps_its_base(name, score):
    """Its advantages are 0. `mc_value` may still give credit, since continuations distinguish its tokens."""
    made = [r | {"score": score, "base": 0.0} for r in rollouts(unknown=0, seed=1)]
    found = added(name, made)
    assert all(np.isfinite(one).all() for one in found)
    assert name == "mc_value" or not any(one.any() for one in found)


@ALL
def test_an_unknown_verdict_gets_no_credit_and_is_ignored(name):
    made = rollouts(unknown=0.4, seed=4)
    unknown = [np.isnan(r["score"]) for r in made]
    assert 3 < sum(unknown) < len(made)
    found = added(name, made)
    assert not any(one.any() for one, out in zip(found, unknown, strict=True) if out)
    without = [r for r, out in zip(made, unknown, strict=True) if not out]
    assert_same(added(name, without), [one for one, out in zip(found, unknown, strict=True) if not out], exact=False)


@ALL
def test_a_group_of_one_keeps_its_base(name):
    made = rollouts(groups=5, size=1, unknown=0)
    found = added(name, made)
    assert all(np.isfinite(one).all() for one in found)
    assert name == "mc_value" or not any(one.any() for one in found)


@ALL
def test_credit_is_never_nan(name):
    """Covers probabilities of 1 and 0, zero entropy, missing verdicts, and a rollout without action tokens."""
    made = rollouts(seed=5)
    for i, rollout in enumerate(made):
        length = len(rollout["ids"])
        rollout["entropies"] = np.zeros(length, np.float32)
        rollout["sum_squares"] = np.ones(length, np.float32)
        rollout["log_probs"] = np.full(length, -np.inf if i % 2 else 0.0, np.float32)
    made[0]["mask"][:] = False
    nothing = [r | {"score": float("nan"), "base": 0.0} for r in made]
    for one in (made, nothing, made[:1]):
        given = batch(one)
        found = estimators()[name](given)
        assert found.added_N.isfinite().all()
        assert not found.added_N[~given.mask_N].any()
    assert not any(values.any() for values in added(name, nothing))


@ALL
def test_ids_of_32_bits_give_the_same_credit(name):
    given = batch([rollout | {"ids": rollout["ids"] * 70_000} for rollout in rollouts(seed=7)])  # 3 x 70,000^2 > 2^32
    narrow = replace(given, token_ids_N=given.token_ids_N.int())
    found, again = estimators()[name](given), estimators()[name](narrow)
    assert torch.equal(found.added_N, again.added_N)
    assert given.mask_N.any() and found.figures.keys() == again.figures.keys()
    assert all(torch.equal(found.figures[figure], again.figures[figure]) for figure in found.figures)


@ALL
def test_inputs_are_not_modified(name):
    made = rollouts(seed=6)
    given, again = batch(made), batch(made)
    estimators()[name](given)
    for field in ("token_ids_N", "mask_N", "base_N", "scores_B", "groups_B", *(f"{need}_N" for need in NEEDS)):
        assert torch.equal(getattr(given, field).nan_to_num(3.0), getattr(again, field).nan_to_num(3.0)), field


@ALL
def test_estimators_need_their_declared_inputs(name):
    given, one = batch(rollouts()), estimators()[name]
    only = replace(given, **{f"{need}_N": None for need in NEEDS if need not in one.needs})
    assert torch.equal(one(only).added_N, one(given).added_N)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("entropy_mask", {"share": 1.0}),
        ("entropy_bonus", {"alpha": 0.0}),
        ("prob_reweight", {"alpha": 0.0}),
        ("gtpo", {"alpha": 0.0}),
        ("ktae", {"weight": 0.0}),
    ],
)
def test_neutral_options_give_the_base(name, options):
    one = estimators()[name]
    assert not one(batch(rollouts()), one.options(**options)).added_N.any()
