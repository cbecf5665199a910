"""Statistics of one id in one group, tabulated by how many rollouts of each side contain it.

Legend: `T` correct and `F` wrong rollouts of a group; `a` of the correct and `b` of the wrong ones contain
the id; `n = a + b`. Arrays `*_TF` have shape (T + 1, F + 1) and are indexed by (a, b). A group has few
rollouts, so every possible table is computed once, in float64, and kept.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openrlhf_ktae.ktae.calibrated import expected_under_null, narrow_curve, open_curve, presence_sign
from openrlhf_ktae.ktae.config import KTAEConfig

Array = NDArray[np.float64]

EXACT_GROUP = 66
"""Up to this size a group's binomial coefficients fit in signed 64-bit integers, so the sums behind p are exact."""
TIE_TOLERANCE = 1e-9
"""In larger groups, tables whose probabilities differ relatively by less than this count as equally probable."""
KEPT_TABLES = 1024
"""Splits (T, F) kept in memory: every split of the usual group sizes."""
KEPT_GROUP = 256
"""Tables of larger groups (over 0.5 MB each) are not cached."""
LARGEST_GROUP = 4096
"""Most labelled rollouts of a group; tables of this size take 200 MB and 3 s."""


@dataclass(frozen=True)
class SplitTables:
    """All inputs of K except the frequencies, for every table (a, b) of one split (T, F)."""

    fisher_TF: Array
    association_TF: Array
    gain_TF: Array
    strength_TF: Array
    """Factor of the direction: h1 F + h2 IG; in `calibrated` the open curve."""
    presence_TF: Array
    """Presence part of the direction; in `calibrated` only the sign."""
    narrow_TF: Array
    """The narrow curve of `calibrated`. This and the arrays below are empty in other variants."""
    open_null_n: Array
    """Expected size of K on the open curve for an id in n rollouts when labels are unrelated to it; (T + F + 1,)."""
    narrow_null_n: Array
    """The same on the narrow curve."""

    def packed(self) -> Array:
        """Return the arrays that the compiled loops read, end to end."""
        parts = (self.strength_TF, self.presence_TF, self.narrow_TF, self.open_null_n, self.narrow_null_n)
        return np.concatenate([part.ravel() for part in parts])


def split_tables(correct: int, wrong: int, config: KTAEConfig) -> SplitTables:
    """Return the tables of a group with `correct` and `wrong` rollouts, both at least 1.

    Raises ValueError if the group is larger than `LARGEST_GROUP`.
    """
    if correct + wrong > LARGEST_GROUP:
        raise ValueError(
            f"group_ids puts {correct + wrong} labelled rollouts in one group: give each prompt its own id, "
            f"or split the group (at most {LARGEST_GROUP})"
        )
    return (_kept_tables if correct + wrong <= KEPT_GROUP else _new_tables)(correct, wrong, config)


def _new_tables(correct: int, wrong: int, config: KTAEConfig) -> SplitTables:
    probability_TF, two_sided_TF = fisher_tables(correct, wrong)
    fisher_TF = two_sided_TF if config.fisher == "two_sided" else probability_TF
    association_TF = np.where(fisher_TF != 1.0, np.exp(-2.0 * fisher_TF), 0.0)
    gain_TF = information_gain(correct, wrong)
    statistics = (fisher_TF, association_TF, gain_TF)
    if config.variant != "calibrated":
        strength_TF = config.number("h1") * association_TF + config.number("h2") * gain_TF
        return SplitTables(*statistics, strength_TF, presence_direction(correct, wrong), *np.zeros((3, 0)))
    open_TF, narrow_TF = open_curve(*statistics, config), narrow_curve(fisher_TF, config)
    nulls = (expected_under_null(probability_TF, curve_TF) for curve_TF in (open_TF, narrow_TF))
    return SplitTables(*statistics, open_TF, presence_sign(correct, wrong), narrow_TF, *nulls)


_kept_tables = lru_cache(maxsize=KEPT_TABLES)(_new_tables)


def fisher_tables(correct: int, wrong: int) -> tuple[Array, Array]:
    """Return the probability of each table given its margins, and the two-sided p: the sum over tables no more likely.

    The p equals that of `scipy.stats.fisher_exact`. Up to `EXACT_GROUP` rollouts the sums are of exact integers.
    """
    exact = correct + wrong <= EXACT_GROUP
    probability_TF = np.empty((correct + 1, wrong + 1))
    two_sided_TF = np.empty_like(probability_TF)
    for n in range(correct + wrong + 1):
        a = np.arange(max(0, n - wrong), min(correct, n) + 1)
        weights: NDArray[Any]
        if exact:
            ways = [math.comb(correct, k) * math.comb(wrong, n - k) for k in a.tolist()]
            weights = np.array(ways, dtype=np.int64)
        else:
            logs = _log_choose(correct)[a] + _log_choose(wrong)[n - a]
            weights = np.exp(logs - logs.max())
        ordered = np.sort(weights)
        cumulative = np.cumsum(ordered)
        limit = weights if exact else weights * (1.0 + TIE_TOLERANCE)
        tail = cumulative[np.searchsorted(ordered, limit, side="right") - 1]
        probability_TF[a, n - a] = weights / cumulative[-1]
        two_sided_TF[a, n - a] = tail / cumulative[-1]
    return probability_TF, two_sided_TF


@lru_cache(maxsize=KEPT_TABLES)
def _log_choose(total: int) -> Array:
    log_factorial = np.array([math.lgamma(k + 1) for k in range(total + 1)])
    return log_factorial[-1] - log_factorial - log_factorial[::-1]


def entropy(yes: Array, no: Array) -> Array:
    """Entropy in bits of a label with `yes` and `no` rollouts, symmetric to the bit; 0 without rollouts."""
    total = np.maximum(yes + no, 1)
    return -(_share_log_share(yes / total) + _share_log_share(no / total))


def _share_log_share(share: Array) -> Array:
    return share * np.log2(np.where(share > 0, share, 1.0))


def information_gain(correct: int, wrong: int) -> Array:
    """H(label) - H(label | presence) in bits, never below 0."""
    a, b = np.ogrid[0.0 : correct + 1, 0.0 : wrong + 1]
    c, d = correct - a, wrong - b
    total = correct + wrong
    conditional = (a + b) / total * entropy(a, b) + (c + d) / total * entropy(c, d)
    return np.maximum(entropy(np.array(float(correct)), np.array(float(wrong))) - conditional, 0.0)


def presence_direction(correct: int, wrong: int) -> Array:
    """asin(sqrt(a / T)) - asin(sqrt(b / F))."""
    a, b = np.ogrid[0 : correct + 1, 0 : wrong + 1]
    return np.arcsin(np.sqrt(a / correct)) - np.arcsin(np.sqrt(b / wrong))
