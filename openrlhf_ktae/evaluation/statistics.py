"""Intervals over problems."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

RESAMPLES = 2000  # the ends of a 95 % interval of 200 problems move by less than 0.3 points beyond this
SEED = 20250526  # fixed: the same results give the same interval


def mean_with_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float, float]:
    """Return mean, low and high end of the item bootstrap interval (percentiles of resampled means).

    Problems are drawn with replacement, so rollouts of one problem stay together: pass one value a problem.

    Raises:
        ValueError: no values.
    """
    items = np.asarray(values, dtype=np.float64)
    if items.size == 0:
        raise ValueError("values is empty: an interval needs at least one problem")
    draws = np.random.default_rng(SEED).integers(0, items.size, size=(RESAMPLES, items.size))
    tail = (1 - level) / 2
    low, high = np.quantile(items[draws].mean(axis=1), [tail, 1 - tail])
    return float(items.mean()), float(low), float(high)
