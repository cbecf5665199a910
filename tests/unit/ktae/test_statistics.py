"""Statistics of contingency tables against scipy, literal formulas and handmade numbers."""

import literal_ktae as literal
import numpy as np
import pytest
from scipy.stats import fisher_exact, hypergeom

from openrlhf_ktae.ktae import KTAEConfig
from openrlhf_ktae.ktae.statistics import LARGEST_GROUP, fisher_tables, information_gain, split_tables

TOLERANCE = 1e-9
EVERY_TABLE_UP_TO = 12
SAMPLE = 1500
LARGEST = 64
SCIPY_TIES = 1e-11
"""Relative; scipy's probabilities of equally probable tables differ by less."""


def scipy_p(a, b, correct, wrong):
    return fisher_exact([[a, b], [correct - a, wrong - b]]).pvalue


def tables_of(correct, wrong):
    return [(a, b) for a in range(correct + 1) for b in range(wrong + 1)]


@pytest.mark.parametrize("rollouts", range(2, EVERY_TABLE_UP_TO + 1))
def test_two_sided_fisher_equals_scipy_on_every_table_of_a_small_group(rollouts):
    for correct in range(1, rollouts):
        wrong = rollouts - correct
        _, found = fisher_tables(correct, wrong)
        expected = [scipy_p(a, b, correct, wrong) for a, b in tables_of(correct, wrong)]
        assert np.abs(found.ravel() - expected).max() <= TOLERANCE


def test_two_sided_fisher_equals_scipy_on_a_sample_up_to_64_rollouts():
    rng = np.random.default_rng(0)
    for _ in range(SAMPLE):
        rollouts = rng.integers(EVERY_TABLE_UP_TO + 1, LARGEST + 1)
        correct = int(rng.integers(1, rollouts))
        wrong = int(rollouts - correct)
        a, b = int(rng.integers(0, correct + 1)), int(rng.integers(0, wrong + 1))
        expected = scipy_p(a, b, correct, wrong)
        assert split_tables(correct, wrong, KTAEConfig()).fisher_TF[a, b] == pytest.approx(expected, abs=TOLERANCE)


@pytest.mark.parametrize("rollouts", range(EVERY_TABLE_UP_TO + 1, LARGEST + 1))
def test_fisher_on_every_table_up_to_64_rollouts_follows_from_scipys_distribution(rollouts):
    for correct in range(1, rollouts):
        wrong = rollouts - correct
        a, b = np.ogrid[0 : correct + 1, 0 : wrong + 1]
        chance = hypergeom.pmf(a, rollouts, correct, a + b)
        probability, two_sided = fisher_tables(correct, wrong)
        assert np.abs(probability - chance).max() <= TOLERANCE
        flipped, found = chance[:, ::-1], two_sided[:, ::-1]
        for n in range(rollouts + 1):
            one_margin = flipped.diagonal(wrong - n)
            no_likelier = one_margin[None, :] <= one_margin[:, None] * (1 + SCIPY_TIES)
            assert np.abs(no_likelier @ one_margin - found.diagonal(wrong - n)).max() <= TOLERANCE


@pytest.mark.parametrize(("correct", "wrong"), [(32, 32), (5, 59), (33, 34), (100, 200)])
def test_point_probability_is_hypergeometric(correct, wrong):
    a, b = np.ogrid[0 : correct + 1, 0 : wrong + 1]
    expected = hypergeom.pmf(a, correct + wrong, correct, a + b)
    assert np.abs(fisher_tables(correct, wrong)[0] - expected).max() <= TOLERANCE


@pytest.mark.parametrize(("correct", "wrong"), [(40, 40), (33, 34), (100, 28)])
def test_large_groups_use_logarithms_and_still_equal_scipy(correct, wrong):
    _, found = fisher_tables(correct, wrong)
    for a, b in [(0, 0), (correct, 0), (7, 9), (20, 20), (3, 25), (correct, wrong)]:
        assert found[a, b] == pytest.approx(scipy_p(a, b, correct, wrong), abs=TOLERANCE)


def test_p_of_one_is_exact_so_association_is_zero():
    for correct in range(1, 16):
        tables = split_tables(correct, 16 - correct, KTAEConfig())
        one = np.isclose(tables.fisher_TF, 1.0, rtol=0, atol=1e-12)
        assert one.any()
        assert (tables.fisher_TF[one] == 1.0).all()
        assert (tables.association_TF[one] == 0.0).all()


@pytest.mark.parametrize("rollouts", [2, 3, 8, 16, 31])
def test_information_gain_equals_the_literal_one(rollouts):
    for correct in range(1, rollouts):
        found = information_gain(correct, rollouts - correct)
        for a, b in tables_of(correct, rollouts - correct):
            assert found[a, b] == pytest.approx(literal.information_gain(a, b, correct, rollouts - correct), abs=1e-12)


def test_information_gain_of_a_perfect_separator_is_the_entropy_of_the_label():
    assert information_gain(8, 8)[8, 0] == 1.0
    assert information_gain(4, 12)[4, 0] == pytest.approx(0.8112781244591328)


@pytest.mark.parametrize("variant", ["paper", "reference", "calibrated"])
@pytest.mark.parametrize(("correct", "wrong"), [(8, 8), (3, 13), (1, 7), (40, 41)])
def test_every_statistic_is_bit_symmetric_under_a_label_flip(variant, correct, wrong):
    config = KTAEConfig(variant=variant)
    one, other = split_tables(correct, wrong, config), split_tables(wrong, correct, config)
    for name in ("fisher_TF", "association_TF", "gain_TF", "strength_TF"):
        assert (getattr(one, name) == getattr(other, name).T).all(), name
    assert (one.presence_TF == -other.presence_TF.T).all()
    assert (one.open_null_n == other.open_null_n).all()
    assert (one.narrow_null_n == other.narrow_null_n).all()


def test_too_large_a_group_is_refused():
    with pytest.raises(ValueError, match="group_ids puts 4097 labelled rollouts in one group"):
        split_tables(LARGEST_GROUP, 1, KTAEConfig())
