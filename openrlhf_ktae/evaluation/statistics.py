"""Intervals over problems, estimators over samples, and paired tests.

Legend: `I` problems (items), `M` metrics, `R` resamples, `S` seeds. Everything random is seeded: the same results
give the same figures.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

RESAMPLES = 2000  # the ends of a 95 % interval of 200 problems move by less than 0.3 points beyond this
SEED = 20250526
DRAWS_AT_ONCE = 4_000_000  # 32 MB: memory does not grow with problems x resamples
EXACT_SIGNS = 14  # differences up to which all 2^n sign patterns are counted
SIGN_DRAWS = 20_000  # sign patterns that are drawn beyond


def resampled_means(values_IM: ArrayLike, seed: int = SEED) -> Floats:
    """Return means (R, M) over problems drawn with replacement; NaN takes no part in a metric's mean.

    Raises:
        ValueError: no problems.
    """
    table_IM = np.asarray(values_IM, dtype=np.float64)
    items = len(table_IM)
    if items == 0:
        raise ValueError("values is empty: an interval needs at least one problem")
    known_IM = ~np.isnan(table_IM)
    filled_IM = np.where(known_IM, table_IM, 0.0)
    with np.errstate(invalid="ignore"):
        parts = [counts @ filled_IM / (counts @ known_IM) for counts in _draw_counts(items, seed)]
    return np.concatenate(parts)


def _draw_counts(items: int, seed: int) -> Iterator[Floats]:
    """Yield (r, I) blocks: how often each problem is in each resample."""
    random = np.random.default_rng(seed)
    block = max(1, min(RESAMPLES, DRAWS_AT_ONCE // items))
    for start in range(0, RESAMPLES, block):
        draws = random.integers(0, items, size=(min(block, RESAMPLES - start), items))
        yield np.stack([np.bincount(row, minlength=items) for row in draws]).astype(np.float64)


def interval(resamples: ArrayLike, level: float = 0.95) -> tuple[float, float]:
    """Return the percentile interval of resampled figures."""
    tail = (1 - level) / 2
    low, high = np.nanquantile(np.asarray(resamples, dtype=np.float64), [tail, 1 - tail])
    return float(low), float(high)


def mean_with_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float, float]:
    """Return mean, low and high end of the item bootstrap interval (percentiles of resampled means).

    Problems are drawn with replacement, so rollouts of one problem stay together: pass one value a problem.

    Raises:
        ValueError: no values.
    """
    items = np.asarray(values, dtype=np.float64)
    low, high = interval(resampled_means(items[:, None]), level)
    return float(items.mean()), low, high


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Unbiased estimate of the chance that one of `k` samples is correct: 1 - C(n - c, k) / C(n, k).

    Chen et al. 2021, https://arxiv.org/abs/2107.03374, eq. 1.
    """
    if not 1 <= k <= samples:
        raise ValueError(f"k={k}: must be between 1 and the number of samples ({samples})")
    return 1.0 - math.comb(samples - correct, k) / math.comb(samples, k)


def majority_at_k(answers: Sequence[int], correct: Sequence[bool], k: int, draws: int = 200) -> float:
    """Chance that the most frequent answer among `k` samples is correct; ties are broken evenly.

    Args:
        answers: class of each sample's answer; a negative one is no answer and does not vote.
        correct: whether each sample is correct.
        k: votes. All subsets are alike, so k = 1 and k = n are exact; between them `draws` subsets are drawn.
        draws: number of subsets.
    """
    n = len(answers)
    classes, verdicts = np.asarray(answers), np.asarray(correct, dtype=bool)
    if k == 1:
        return float(verdicts.mean())
    random = np.random.default_rng(SEED)
    subsets = [np.arange(n)] if k == n else [random.permutation(n)[:k] for _ in range(draws)]
    return float(np.mean([_majority(classes[rows], verdicts[rows]) for rows in subsets]))


def _majority(classes: NDArray[np.int64], correct: NDArray[np.bool_]) -> float:
    voted = classes[classes >= 0]
    if voted.size == 0:
        return 0.0
    ids, counts = np.unique(voted, return_counts=True)
    right = set(classes[correct].tolist())
    winners = ids[counts == counts.max()].tolist()
    return sum(winner in right for winner in winners) / len(winners)


def mcnemar(first: ArrayLike, second: ArrayLike) -> tuple[int, int, float]:
    """Exact McNemar test on the same problems: (only first right, only second right, two-sided p).

    McNemar 1947; the exact form is a sign test on the discordant pairs.
    """
    from scipy import stats  # on first use: the trainer needs the bootstrap alone

    a, b = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    only_first, only_second = int((a & ~b).sum()), int((b & ~a).sum())
    discordant = only_first + only_second
    return only_first, only_second, float(stats.binomtest(only_first, discordant).pvalue) if discordant else 1.0


@dataclass(frozen=True)
class Difference:
    """Second minus first, over pairs."""

    mean: float
    low: float
    high: float
    p: float
    """Two-sided, of sign flips."""


def paired_bootstrap(first: ArrayLike, second: ArrayLike) -> Difference:
    """Return the mean difference over the same problems with its interval (resampling pairs) and p (sign flips).

    p counts problems that differ alone (see `sign_flip_test`); it is 1 where none does. Resamples would give far too
    small a p where few differ: hardly any resample is without them.
    """
    difference = np.asarray(second, dtype=np.float64) - np.asarray(first, dtype=np.float64)
    means = resampled_means(difference[:, None])[:, 0]
    low, high = interval(means)
    differing = difference[difference != 0]
    p = sign_flip_test(differing) if differing.size else 1.0
    return Difference(float(difference.mean()), low, high, p)


def sign_flip_test(differences: ArrayLike) -> float:
    """Two-sided p that paired differences (n,) have mean 0: share of sign patterns with as large a mean.

    All 2^n patterns up to n = 14 (no p is below 2 / 2^n), 20,000 drawn ones beyond (none is below 1 / 20,000). NaN
    takes no part; NaN for no differences.
    """
    values = np.asarray(differences, dtype=np.float64)
    values = values[~np.isnan(values)]
    if values.size == 0:
        return float("nan")
    rounding = 1e-9 * np.abs(values).sum()
    as_large = [np.abs(signs @ values) >= abs(values.sum()) - rounding for signs in _sign_patterns(values.size)]
    return float(np.mean(np.concatenate(as_large)))


def _sign_patterns(size: int) -> Iterator[Floats]:
    """Yield (r, size) blocks of signs, the pattern observed first: it belongs to the set, so p is above 0."""
    if size <= EXACT_SIGNS:
        yield np.array(list(product((1.0, -1.0), repeat=size)))
        return
    random = np.random.default_rng(SEED)
    block = max(1, min(SIGN_DRAWS, DRAWS_AT_ONCE // size))
    for start in range(0, SIGN_DRAWS, block):
        signs = random.choice((1.0, -1.0), size=(min(block, SIGN_DRAWS - start), size))
        if start == 0:
            signs[0] = 1.0
        yield signs


def t_interval(values: ArrayLike) -> tuple[float, float, float]:
    """Mean and 95 % interval over seeds (Student's t); the ends are NaN with fewer than two values."""
    from scipy import stats

    known = np.asarray(values, dtype=np.float64)
    known = known[~np.isnan(known)]
    if known.size == 0:
        return float("nan"), float("nan"), float("nan")
    mean = float(known.mean())
    if known.size < 2:
        return mean, float("nan"), float("nan")
    half = float(stats.t.ppf(0.975, known.size - 1) * stats.sem(known))
    return mean, mean - half, mean + half


def holm(ps: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number (Holm 1979); NaN stays NaN and does not count."""
    known = sorted((p, i) for i, p in enumerate(ps) if not math.isnan(p))
    corrected = [float("nan")] * len(ps)
    largest = 0.0
    for rank, (p, i) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * p))
        corrected[i] = largest
    return corrected
