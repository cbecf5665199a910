"""Intervals over problems, estimators over samples, and paired tests.

Legend: `I` problems (items), `M` metrics, `R` resamples, `S` seeds. Everything random is seeded: the same results
give the same figures.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

RESAMPLES = 2000  # the ends of a 95 % interval of 200 problems move by less than 0.3 points beyond this
SEED = 20250526
DRAWS_AT_ONCE = 4_000_000  # 32 MB: memory does not grow with problems x resamples
EXACT_SIGNS = 14  # differences up to which all 2^n sign patterns are counted
SIGN_DRAWS = 20_000  # sign patterns that are drawn beyond
Bounds = tuple[float, float]
SHARE: Bounds = (0.0, 1.0)
DIFFERENCE: Bounds = (-1.0, 1.0)
NODES = 64  # of the integral over ties: exact up to 128 of them, to 5e-5 up to 5,000
NEGLIGIBLE = 1e-15  # a chance that no figure shows
DEVIATIONS = 16  # of a sum of independent counts: further out there is nothing (chance below 1e-50)


def resampled_means(values_IM: ArrayLike, seed: int = SEED, bounds_M: Sequence[Bounds | None] | None = None) -> Floats:
    """Return means (R, M) over problems drawn with replacement; NaN takes no part in a metric's mean.

    Resampling equal values says that nothing else is possible. Where a metric has bounds (a share: 0 and 1) and all its
    values are equal, the means are those of `unseen_means` instead.

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
    means_RM = np.concatenate(parts)
    for metric, bounds in enumerate(bounds_M or ()):
        known = table_IM[known_IM[:, metric], metric]
        if bounds is not None and known.size and known.min() == known.max():
            means_RM[:, metric] = unseen_means(float(known[0]), known.size, bounds, seed)
    return means_RM


def unseen_means(value: float, items: int, bounds: Bounds, seed: int = SEED) -> Floats:
    """Return means (R,) that fit `items` problems which all have the same `value`.

    A share e of other problems goes unseen with chance (1 - e)^n. Half of the means have them at the lower bound, half
    at the upper one, and a mean further out than e has chance (1 - e)^n on either side. Where `value` is a bound the
    95 % interval is that of Clopper and Pearson 1934: 0 to 1 - 0.025^(1/n) where all n are wrong.
    """
    random = np.random.default_rng(seed)
    pairs = RESAMPLES // 2
    even = np.arange(pairs) / (RESAMPLES - 1)  # so that the ends of `interval` fall on the exact ones
    unseen = 1.0 - even ** (1.0 / items)
    means = [value + unseen * (end - value) for end in bounds]
    return random.permutation(np.concatenate(means))


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


def mean_with_interval(
    values: Sequence[float], level: float = 0.95, bounds: Bounds | None = None
) -> tuple[float, float, float]:
    """Return mean, low and high end of the item bootstrap interval (percentiles of resampled means).

    Problems are drawn with replacement, so rollouts of one problem stay together: pass one value a problem. With
    `bounds`, equal values get the interval of `unseen_means`.

    Raises:
        ValueError: no values.
    """
    items = np.asarray(values, dtype=np.float64)
    low, high = interval(resampled_means(items[:, None], bounds_M=[bounds]), level)
    return float(items.mean()), low, high


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Unbiased estimate of the chance that one of `k` samples is correct: 1 - C(n - c, k) / C(n, k).

    Chen et al. 2021, https://arxiv.org/abs/2107.03374, eq. 1.
    """
    if not 1 <= k <= samples:
        raise ValueError(f"k={k}: must be between 1 and the number of samples ({samples})")
    return 1.0 - math.comb(samples - correct, k) / math.comb(samples, k)


def pass_at_every_k(samples: int, correct: int, most: int) -> Floats:
    """Return `pass_at_k` for k = 1 to `most`, in time linear in `most`: C(n - c, k) / C(n, k) as a running product."""
    k = np.arange(most)
    return 1.0 - np.cumprod(np.maximum(samples - correct - k, 0) / (samples - k))


def majority_at_k(answers: Sequence[int], correct: Sequence[bool], k: int) -> float:
    """Chance that the most frequent answer among `k` samples is correct; ties are broken evenly.

    All subsets of k samples are alike. The chance depends on how many samples have each answer alone and is summed, not
    drawn (`_chance_to_win`).

    Args:
        answers: class of each sample's answer; a negative one is no answer and does not vote.
        correct: whether each sample is correct.
        k: votes.
    """
    if k == 1:
        return sum(correct) / len(correct)
    counts = Counter(answer for answer in answers if answer >= 0)
    silent = len(answers) - counts.total()
    right = {answer for answer, verdict in zip(answers, correct, strict=True) if verdict and answer >= 0}
    chance = 0.0
    for answer in right:
        others = Counter(counts)
        votes = others.pop(answer)
        chance += _chance_to_win(votes, tuple(sorted(Counter(others.values()).items())), silent, k)
    return chance


@lru_cache(maxsize=4096)  # few samples of many problems have few compositions
def _chance_to_win(votes: int, others: tuple[tuple[int, int], ...], silent: int, k: int) -> float:
    """Chance that an answer of `votes` samples wins among `k` samples drawn without replacement.

    Each sample is taken on its own with chance k / n; given that k are taken, that is the same. Then the votes of
    answers are independent, and for each number m of votes for ours, the others have at most m and k - m together: the
    coefficient of z^(k - m) in a product of polynomials, one for each answer, read from their values on a circle. With
    t others that have m too ours wins with chance 1 / (1 + t), the integral of y^t from 0 to 1, so that a factor y
    counts ties.

    Args:
        votes: samples with our answer.
        others: (samples, number of answers that have so many).
        silent: samples without an answer.
        k: votes that are drawn.
    """
    n = votes + silent + sum(count * number for count, number in others)
    if k == n:
        beaten = any(count > votes for count, _ in others)
        return 0.0 if beaten else 1.0 / (1 + dict(others).get(votes, 0))
    p = k / n
    size = min(n + 1, DEVIATIONS * math.ceil(math.sqrt(n * p * (1 - p)) + 2))
    circle_Z = np.exp(2j * np.pi * np.arange(size) / size)
    ours, silence_Z = _binomial(votes, p), (1 - p + p * circle_Z) ** silent
    all_taken = _binomial(n, p)[k]
    chances = [_binomial(count, p) for count, _ in others]
    below = [np.zeros(size, complex) for _ in others]
    total = 0.0
    for m in range(min(k, int(np.flatnonzero(ours > NEGLIGIBLE)[-1])) + 1):
        power_Z = circle_Z**m
        at = [chance[m] * power_Z if m < chance.size else None for chance in chances]
        if m and ours[m] > NEGLIGIBLE:
            ties = sum(number for (count, number) in others if count >= m)
            y_Y, weights_Y = _gauss(min(NODES, 1 + min(ties, k // m) // 2))
            product_YZ = np.tile(silence_Z, (y_Y.size, 1))
            for less, equal, (_, number) in zip(below, at, others, strict=True):
                product_YZ *= (less if equal is None else less + y_Y[:, None] * equal) ** number
            total += ours[m] * float(np.mean((weights_Y @ product_YZ) * circle_Z ** (m - k)).real)
        for less, equal in zip(below, at, strict=True):
            if equal is not None:
                less += equal
    return total / float(all_taken)


def _binomial(n: int, p: float) -> Floats:
    """Chances of 0 to n successes in n trials, 0 < p < 1."""
    i = np.arange(n)
    steps = np.log((n - i) / (i + 1)) + math.log(p / (1 - p))
    return np.exp(n * math.log1p(-p) + np.concatenate([[0.0], np.cumsum(steps)]))


@lru_cache(maxsize=NODES)
def _gauss(nodes: int) -> tuple[Floats, Floats]:
    """Nodes and weights of the integral from 0 to 1."""
    x, weights = np.polynomial.legendre.leggauss(nodes)
    return (x + 1) / 2, weights / 2


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
    low, high = interval(resampled_means(difference[:, None], bounds_M=[DIFFERENCE])[:, 0])
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
