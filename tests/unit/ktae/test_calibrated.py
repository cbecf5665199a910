"""Guarantees of the variant `calibrated`; shares are of `value_range`."""

import itertools

import numpy as np
import pytest
from ktae_batches import table_group, worked_solutions, zipf_group

from openrlhf_ktae.ktae import KTAEConfig, compute_key_token_values, explain_group
from openrlhf_ktae.ktae.statistics import split_tables

CALIBRATED = KTAEConfig(variant="calibrated")
OPEN = KTAEConfig(variant="calibrated", p_max=1.0)
BUDGET = 0.01
ALL_8_TO_8 = [(a, b) for a in range(9) for b in range(9) if a + b]


def mean_size(ids, mask, scores, config=CALIBRATED):
    """Return the mean |K| over token occurrences, as a share of the range."""
    values = compute_key_token_values(ids, mask, scores, np.zeros(len(ids), int), config).numpy()
    return np.abs(values[mask]).mean() / config.number("value_range")


def by_table(tables, correct, wrong, filler, config=CALIBRATED):
    """Return K of ids with the given tables, all in one group."""
    found = explain_group(*table_group(tables, correct, wrong, filler), config)
    values = {(a, b): value for a, b, value in zip(found.a.tolist(), found.b.tolist(), found.value, strict=True)}
    return [values[table] for table in tables]


@pytest.fixture(scope="module")
def solutions():
    return worked_solutions(np.random.default_rng(0), 160)


def text_group(texts, rng, rollouts):
    chosen = [texts[text] for text in rng.choice(len(texts), rollouts, replace=False)]
    ids = np.zeros((rollouts, max(map(len, chosen))), np.int64)
    mask = np.zeros(ids.shape, bool)
    for row, text in enumerate(chosen):
        ids[row, : len(text)], mask[row, : len(text)] = text, True
    return ids, mask


def random_labels(rng, rollouts):
    return rng.permutation(np.arange(rollouts) < rng.integers(1, rollouts)).astype(float)


@pytest.mark.parametrize("rollouts", [8, 16, 32])
def test_permuted_labels_on_zipf_ids_leave_at_most_the_budget(rollouts):
    rng = np.random.default_rng(rollouts)
    sizes = []
    for _ in range(60):
        ids = zipf_group(rng, rollouts)
        sizes.append(mean_size(ids, np.ones(ids.shape, bool), random_labels(rng, rollouts)))
    assert np.mean(sizes) <= BUDGET
    assert np.max(sizes) > 0


@pytest.mark.parametrize("config", [CALIBRATED, OPEN], ids=["default", "open"])
@pytest.mark.parametrize("rollouts", [8, 16, 32])
def test_permuted_labels_on_worked_solutions_leave_at_most_the_budget(solutions, rollouts, config):
    """Without the noise budget, `open` leaves 8 to 10 times as much."""
    rng = np.random.default_rng(rollouts)
    drawn = [(text_group(solutions, rng, rollouts), random_labels(rng, rollouts)) for _ in range(60)]
    sizes = [mean_size(*group, labels, config) for group, labels in drawn]
    assert np.mean(sizes) <= BUDGET + np.std(sizes) / len(sizes) ** 0.5
    assert np.max(sizes) > 0


@pytest.mark.parametrize("budget", [0.01, 0.05, 0.3])
@pytest.mark.parametrize(("correct", "wrong"), [(3, 3), (2, 5), (4, 4), (2, 8)])
def test_the_mean_over_all_labelings_of_a_hostile_group_is_within_the_budget(correct, wrong, budget):
    rng = np.random.default_rng(0)
    rollouts = correct + wrong
    ids = rng.integers(0, 40, (rollouts, 30))  # most ids are in about half of the rollouts
    mask = rng.random(ids.shape) < rng.random((rollouts, 1))
    config = KTAEConfig(variant="calibrated", p_max=1.0, noise_budget=budget)
    labelings = itertools.combinations(range(rollouts), correct)
    sizes = [
        mean_size(ids, mask, np.isin(np.arange(rollouts), labeling).astype(float), config) for labeling in labelings
    ]
    assert np.mean(sizes) <= budget * (1 + 1e-6)
    assert np.mean(sizes) > 0


def test_the_narrow_curve_spends_at_most_the_budget_on_any_id():
    for rollouts in (8, 16, 32, 64):
        for correct in range(1, rollouts):
            assert split_tables(correct, rollouts - correct, CALIBRATED).narrow_null_n.max() <= BUDGET


@pytest.mark.parametrize("filler", [0, 1, 100])
@pytest.mark.parametrize("tables", [[(1, 0)], [(8, 0)], [(7, 1)], ALL_8_TO_8], ids=["one", "eight", "seven", "all"])
def test_strength_of_named_tables_in_any_group(tables, filler):
    found = dict(zip(tables, by_table(tables, 8, 8, filler), strict=True))
    assert abs(found.get((1, 0), 0.0)) <= 0.05
    assert found.get((8, 0), 1.0) >= 0.8
    assert found.get((7, 1), 1.0) >= 0.5
    assert found.get((0, 8), -1.0) <= -0.8
    assert found.get((1, 7), -1.0) <= -0.5


def test_a_singleton_is_zero_in_any_group_of_8_to_8():
    assert by_table([(1, 0), (0, 1), (8, 0)], 8, 8, 5)[:2] == [0.0, 0.0]


@pytest.mark.parametrize("config", [CALIBRATED, OPEN], ids=["default", "open"])
@pytest.mark.parametrize("rollouts", range(2, 18))
def test_no_table_outranks_a_more_significant_one(rollouts, config):
    for correct in range(1, rollouts):
        wrong = rollouts - correct
        tables = [(a, b) for a in range(correct + 1) for b in range(wrong + 1) if a + b]
        found = explain_group(*table_group(tables, correct, wrong, filler=3 * rollouts), config)
        for side in (1, -1):
            same = np.sign(found.a * wrong - found.b * correct) == side
            order = np.argsort(found.fisher[same], kind="stable")
            sizes = np.abs(found.value[same][order])
            assert (np.maximum.accumulate(sizes[::-1])[::-1] <= sizes + 1e-12).all()


def test_rare_ids_get_no_value_unlike_in_the_paper_variant():
    tables = [(1, 0), (6, 2)]
    assert by_table(tables, 8, 8, 50, KTAEConfig(variant="paper"))[0] > 0.35
    assert by_table(tables, 8, 8, 50)[0] == 0.0


def test_contradicting_frequencies_reduce_k_and_agreeing_ones_add_nothing():
    def separator(more_right, more_wrong):
        ids, mask = np.full((16, 40), 1), np.ones((16, 40), bool)
        ids[:7, 0] = ids[8:9, 0] = 2
        ids[0, : 1 + more_right], ids[8, : 1 + more_wrong] = 2, 2
        found = explain_group(ids, mask, np.repeat([1.0, 0.0], 8), CALIBRATED)
        return float(found.value[found.token_id == 2][0])

    assert separator(0, 0) == separator(20, 0)
    assert 0 < separator(0, 30) < 0.8 * separator(0, 0)


def test_weak_evidence_in_small_groups_gives_zero():
    assert by_table([(2, 0)], 2, 2, 5) == [0.0]
    assert by_table([(1, 0)], 1, 7, 5) == [0.0]
    assert by_table([(4, 0)], 4, 4, 50)[0] > 0.5


def test_zero_weights_give_zero_values():
    config = KTAEConfig(variant="calibrated", h1=0.0, h2=0.0)
    assert by_table([(8, 0)], 8, 8, 5, config) == [0.0]
