"""Intervals over problems, estimators over samples, and paired tests.

Legend: `I` problems (items), `M` metrics, `R` resamples. All randomness is seeded, so equal inputs give equal figures.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import product

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

RESAMPLES = 2000  # with more, the ends of a 95 % interval over 200 problems move by less than 0.3 points
SEED = 20250526
DRAWS_AT_ONCE = 4_000_000  # 32 MB: bounds memory for any problems x resamples
EXACT_SIGNS = 14  # up to this many differences, all 2^n sign patterns are enumerated
SIGN_DRAWS = 20_000  # sign patterns drawn at random for more differences than that
Bounds = tuple[float, float]
SHARE: Bounds = (0.0, 1.0)
DIFFERENCE: Bounds = (-1.0, 1.0)
NODES = 64  # of the integral over ties: exact for up to 128 tied answers, within 5e-5 for up to 5,000
NEGLIGIBLE = 1e-15  # a probability too small to change any figure
DEVIATIONS = 16  # standard deviations of a sum of independent counts; values beyond have a probability below 1e-50


def resampled_means(values_IM: ArrayLike, seed: int = SEED, bounds_M: Sequence[Bounds | None] | None = None) -> Floats:
    """Return means (R, M) over problems drawn with replacement; a metric's mean ignores NaN.

    Resampling equal values would give an interval of zero width. So the means of a metric with equal values and with
    bounds (0 and 1 for a share) come from `unseen_means` instead. Raises ValueError without problems.
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
    """Return means (R,) consistent with `items` problems that all have the same `value`.

    A share e of different problems goes unseen with probability (1 - e)^n. Half of the means put them at the lower
    bound, half at the upper one; on either side, a share above e has probability (1 - e)^n. If `value` is a bound, the
    95 % interval is that of Clopper and Pearson 1934, for example 0 to 1 - 0.025^(1/n) if all n are wrong.
    """
    random = np.random.default_rng(seed)
    pairs = RESAMPLES // 2
    even = np.arange(pairs) / (RESAMPLES - 1)  # makes the ends of `interval` exact
    unseen = 1.0 - even ** (1.0 / items)
    means = [value + unseen * (end - value) for end in bounds]
    return random.permutation(np.concatenate(means))


def _draw_counts(items: int, seed: int) -> Iterator[Floats]:
    """Yield (r, I) blocks: the count of each problem in each resample."""
    random = np.random.default_rng(seed)
    block = max(1, min(RESAMPLES, DRAWS_AT_ONCE // items))
    for start in range(0, RESAMPLES, block):
        draws = random.integers(0, items, size=(min(block, RESAMPLES - start), items))
        yield np.stack([np.bincount(row, minlength=items) for row in draws]).astype(np.float64)


def interval(resamples: ArrayLike, level: float = 0.95) -> tuple[float, float]:
    """Return the percentile interval of resampled figures; NaN among them is ignored."""
    tail = (1 - level) / 2
    low, high = np.nanquantile(np.asarray(resamples, dtype=np.float64), [tail, 1 - tail])
    return float(low), float(high)


def pass_at_every_k(samples: int, correct: int, most: int) -> Floats:
    """Return unbiased estimates of pass@k, the chance that any of k samples is correct, for k = 1 to `most`: (most,).

    1 - C(n - c, k) / C(n, k) (Chen et al. 2021, https://arxiv.org/abs/2107.03374, eq. 1) as a running product.
    """
    k = np.arange(most)
    return 1.0 - np.cumprod(np.maximum(samples - correct - k, 0) / (samples - k))


def majority_at_k(answers: Sequence[int], correct: Sequence[bool], k: int) -> float:
    """Return the chance that the most frequent answer among `k` samples is correct; ties are broken evenly.

    All subsets of k samples are equally likely. The chance depends only on the number of samples per answer. It is
    computed exactly, not by sampling (`_chance_to_win`).

    Args:
        answers: class of each sample's answer; a negative one means no answer, and the sample does not vote.
        correct: whether each sample is correct.
        k: number of votes.
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


@lru_cache(maxsize=4096)  # with few samples, many problems share a composition
def _chance_to_win(votes: int, others: tuple[tuple[int, int], ...], silent: int, k: int) -> float:
    """Return the chance that an answer of `votes` samples wins among `k` samples drawn without replacement.

    Take each sample independently with probability k / n; given that k are taken, this is equivalent. The answers'
    vote counts are then independent. If ours has m votes, it wins if each other answer has at most m and all others
    have k - m in total. The chance is the coefficient of z^(k - m) in a product of one polynomial per answer, computed
    from its values on a circle. If t others tie at m, ours wins with probability 1 / (1 + t), the integral of y^t from
    0 to 1, so a factor y counts ties.

    Args:
        votes: number of samples with our answer.
        others: (samples, number of answers with that many samples).
        silent: number of samples without an answer.
        k: number of votes drawn.
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
    """Return the probabilities of 0 to n successes in n trials, 0 < p < 1."""
    i = np.arange(n)
    steps = np.log((n - i) / (i + 1)) + math.log(p / (1 - p))
    return np.exp(n * math.log1p(-p) + np.concatenate([[0.0], np.cumsum(steps)]))


@lru_cache(maxsize=NODES)
def _gauss(nodes: int) -> tuple[Floats, Floats]:
    """Return Gauss-Legendre nodes and weights on [0, 1]."""
    x, weights = np.polynomial.legendre.leggauss(nodes)
    return (x + 1) / 2, weights / 2


def mcnemar(first: ArrayLike, second: ArrayLike) -> tuple[int, int, float]:
    """Return (only first right, only second right, two-sided p) of the exact McNemar test on the same problems.

    McNemar 1947; the exact form is a sign test on the discordant pairs.
    """
    from scipy import stats  # lazy: the trainer only needs the bootstrap

    a, b = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    only_first, only_second = int((a & ~b).sum()), int((b & ~a).sum())
    discordant = only_first + only_second
    return only_first, only_second, float(stats.binomtest(only_first, discordant).pvalue) if discordant else 1.0


def paired_bootstrap(first: ArrayLike, second: ArrayLike) -> tuple[float, float, float, float]:
    """Return second minus first over the same problems: mean, low and high (resampled pairs), two-sided p (sign flips).

    p uses only problems that differ (see `sign_flip_test`) and is 1 if none does. If few differ, a bootstrap p would be
    far too small, because hardly any resample misses all of them.
    """
    difference = np.asarray(second, dtype=np.float64) - np.asarray(first, dtype=np.float64)
    low, high = interval(resampled_means(difference[:, None], bounds_M=[DIFFERENCE])[:, 0])
    differing = difference[difference != 0]
    p = sign_flip_test(differing) if differing.size else 1.0
    return float(difference.mean()), low, high, p


def sign_flip_test(differences: ArrayLike) -> float:
    """Return the two-sided p of mean 0 for paired differences (n,): the share of sign patterns with as large a |mean|.

    Up to n = 14 all 2^n patterns are used (smallest p 2 / 2^n); for more, 20,000 are drawn (smallest p 1 / 20,000).
    NaN is ignored; without differences, p is NaN.
    """
    values = np.asarray(differences, dtype=np.float64)
    values = values[~np.isnan(values)]
    if values.size == 0:
        return float("nan")
    rounding = 1e-9 * np.abs(values).sum()
    as_large = [np.abs(signs @ values) >= abs(values.sum()) - rounding for signs in _sign_patterns(values.size)]
    return float(np.mean(np.concatenate(as_large)))


def _sign_patterns(size: int) -> Iterator[Floats]:
    """Yield (r, size) blocks of signs. The first is the observed pattern, so p is above 0."""
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
    """Return mean, low and high of the 95 % interval over seeds (Student's t); NaN ends with fewer than two values."""
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
    """Return p-values corrected for multiple tests (Holm 1979); NaN stays NaN and is not counted."""
    known = sorted((p, i) for i, p in enumerate(ps) if not math.isnan(p))
    corrected = [float("nan")] * len(ps)
    largest = 0.0
    for rank, (p, i) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * p))
        corrected[i] = largest
    return corrected
