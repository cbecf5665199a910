"""Estimators against brute force, and tests against scipy or by hand."""

from __future__ import annotations

import math
import tracemalloc
from itertools import combinations

import numpy as np
import pytest
from scipy.stats import binomtest

from openrlhf_ktae.figures import statistics as st


def mean_with_interval(values, bounds=None):
    means = st.resampled_means(np.asarray(values)[:, None], bounds_M=[bounds])
    return float(np.mean(values)), *st.interval(means)


@pytest.mark.parametrize(("n", "c"), [(1, 0), (1, 1), (4, 0), (4, 1), (4, 4), (6, 2), (7, 3)])
def test_pass_at_k_is_the_mean_over_all_subsets(n, c):
    verdicts = [True] * c + [False] * (n - c)
    subsets = [list(combinations(verdicts, k)) for k in range(1, n + 1)]
    shares = [sum(any(one) for one in drawn) / len(drawn) for drawn in subsets]
    assert st.pass_at_every_k(n, c, n).tolist() == pytest.approx(shares)


def test_majority():
    assert st.majority_at_k([1, 1, 2], [True, True, False], 3) == 1
    assert st.majority_at_k([1, 1, 0], [False, False, True], 3) == 0
    assert st.majority_at_k([0, 1], [True, False], 2) == 0.5, "a tie is broken evenly"
    assert st.majority_at_k([-1, -1, 0], [False, False, True], 3) == 1, "missing answers have no vote"
    assert st.majority_at_k([-1, -1], [False, False], 2) == 0
    assert st.majority_at_k([0, 1, 2, 3], [True, False, False, False], 1) == 0.25


@pytest.mark.parametrize("seed", range(12))
def test_majority_is_the_mean_over_all_subsets(seed):
    random = np.random.default_rng(seed)
    answers = random.integers(-1, 4, size=random.integers(2, 10)).tolist()
    right = set(random.integers(0, 4, size=1 + seed % 2).tolist())
    correct = [answer in right for answer in answers]
    for k in range(2, len(answers) + 1):
        found = [vote([answers[i] for i in rows], right) for rows in combinations(range(len(answers)), k)]
        assert st.majority_at_k(answers, correct, k) == pytest.approx(np.mean(found), abs=1e-12)


def vote(answers, right):
    """Return the chance that the most frequent answer is right, in plain loops."""
    counts = {answer: answers.count(answer) for answer in answers if answer >= 0}
    winners = [answer for answer, count in counts.items() if count == max(counts.values())]
    return sum(answer in right for answer in winners) / len(winners) if winners else 0.0


def test_majority_of_many_samples_draws_with_replacement():
    """With 9,000 samples draws rarely repeat one; k = 3 by hand, for two answers with shares 1/3 and 2/3."""
    answers, correct = [0] * 3000 + [1] * 6000, [True] * 3000 + [False] * 6000
    by_hand = 3 * (1 / 3) ** 2 * (2 / 3) + (1 / 3) ** 3
    assert st.majority_at_k(answers, correct, 3) == pytest.approx(by_hand, abs=2e-4)
    assert st.majority_at_k(answers, correct, 4096) == pytest.approx(0, abs=1e-9)
    singles = [0, *range(1, 2000)]
    assert st.majority_at_k(singles, [answer == 0 for answer in singles], 1000) == pytest.approx(1 / 2000, abs=1e-5)


def test_pass_at_k_of_many_samples_is_exact():
    exact = [1 - math.comb(197, k) / math.comb(200, k) for k in range(1, 201)]
    assert st.pass_at_every_k(200, 3, 200).tolist() == pytest.approx(exact)


def test_equal_shares_get_the_exact_binomial_interval():
    """Scipy's Clopper-Pearson interval; a bootstrap would give [0, 0]."""
    for wrong in (1, 30):
        exact = binomtest(0, wrong).proportion_ci(method="exact")
        low, high = mean_with_interval([0.0] * wrong, bounds=st.SHARE)[1:]
        assert (low, high) == (0, pytest.approx(exact.high, abs=1e-4))
        low, high = mean_with_interval([1.0] * wrong, bounds=st.SHARE)[1:]
        assert (low, high) == (pytest.approx(1 - exact.high, abs=1e-4), 1)
    mean, low, high = mean_with_interval([0.5] * 30, bounds=st.SHARE)
    assert (mean - low, high - mean) == (
        pytest.approx(exact.high / 2, abs=1e-4),
        pytest.approx(exact.high / 2, abs=1e-4),
    )
    assert mean_with_interval([20.0] * 30) == (20, 20, 20), "a length is not bounded"
    spread = [0.0] * 29 + [1.0]
    assert mean_with_interval(spread, bounds=st.SHARE) == mean_with_interval(spread)


def test_equal_results_still_have_an_interval():
    mean, low, high, p = st.paired_bootstrap([1.0, 0.0] * 15, [1.0, 0.0] * 15)
    assert (mean, p) == (0, 1)
    assert (low, high) == (pytest.approx(-0.1157, abs=1e-4), pytest.approx(0.1157, abs=1e-4))


def test_interval_covers_the_truth_in_about_95_percent():
    random = np.random.default_rng(1)
    inside = 0
    for _ in range(200):
        _, low, high = mean_with_interval(random.binomial(1, 0.6, size=150).tolist())
        inside += low <= 0.6 <= high
    assert 180 <= inside <= 199


def test_resampling_in_blocks_gives_the_same_means(monkeypatch):
    values = np.random.default_rng(2).random((50, 3))
    whole = st.resampled_means(values)
    monkeypatch.setattr(st, "DRAWS_AT_ONCE", 1000)
    assert np.array_equal(st.resampled_means(values), whole)


def test_problems_without_a_metric_are_left_out_of_its_mean():
    means = st.resampled_means([[1.0, np.nan], [3.0, 5.0], [2.0, np.nan]])
    assert set(np.unique(means[:, 1][~np.isnan(means[:, 1])])) == {5.0}
    assert np.all((means[:, 0] >= 1) & (means[:, 0] <= 3))


def test_mcnemar_by_hand():
    first, second = [1] * 6 + [0] * 1 + [1] * 9, [0] * 6 + [1] * 1 + [1] * 9
    only_first, only_second, p = st.mcnemar(first, second)
    assert (only_first, only_second) == (6, 1)
    assert p == pytest.approx(2 * (1 + 7) / 2**7)
    assert st.mcnemar([1, 0], [1, 0]) == (0, 0, 1.0)


def test_paired_bootstrap_detects_what_unpaired_intervals_hide():
    random = np.random.default_rng(3)
    first = random.random(300)
    second = first + 0.02 + 0.01 * random.standard_normal(300)
    _, low, _, p = st.paired_bootstrap(first, second)
    assert low > 0.015
    assert p < 0.01
    _, low, high, p = st.paired_bootstrap(first, first + 0.1 * random.standard_normal(300))
    assert low < 0 < high
    assert p > 0.05


@pytest.mark.parametrize(
    ("differences", "p"),
    [
        ([1 / 8] * 5, 2 / 2**5),
        ([1 / 8] * 3, 2 / 2**3),
        ([1 / 8, -1 / 8, 1 / 4], 6 / 2**3),
        ([1 / 8] * 14, 2 / 2**14),
        ([], 1.0),
    ],
)
def test_few_differing_problems_cannot_give_a_small_p(differences, p):
    """30 problems with 8 samples; by hand, each sign pattern of the n that differ has probability 2^-n."""
    first = np.full(30, 0.5)
    second = first + np.pad(differences, (0, 30 - len(differences)))
    assert st.paired_bootstrap(first, second)[3] == pytest.approx(p)


def test_sign_flips_drawn_in_blocks_give_the_same_p(monkeypatch):
    values = np.random.default_rng(4).normal(0.2, 1, size=50)
    whole = st.sign_flip_test(values)
    assert 0 < whole < 1
    monkeypatch.setattr(st, "DRAWS_AT_ONCE", 1000)
    assert st.sign_flip_test(values) == whole


def test_sign_flips_of_many_problems_need_little_memory():
    tracemalloc.start()
    st.sign_flip_test(np.random.default_rng(5).normal(size=2000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 150e6


def test_sign_flips_tolerate_rounding_of_a_sum_of_0():
    assert st.sign_flip_test([-2 / 3, 1 / 3, 1, -2 / 3]) == 1


def test_sign_flips():
    assert st.sign_flip_test([1.0, 2.0, 3.0]) == pytest.approx(2 / 8)
    assert st.sign_flip_test([1.0, -1.0]) == 1
    assert st.sign_flip_test([1.0] * 20) < 0.001
    assert math.isnan(st.sign_flip_test([float("nan")]))


def test_t_interval():
    mean, low, high = st.t_interval([1.0, 2.0, 3.0])
    assert (mean, round(high - low, 3)) == (2.0, round(2 * 4.3027 / math.sqrt(3), 3))
    assert math.isnan(st.t_interval([1.0])[1])


def test_holm():
    assert st.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    corrected = st.holm([0.01, float("nan")])
    assert corrected[0] == 0.01
    assert math.isnan(corrected[1])
