"""Variant `calibrated`: the ingredients of KTAE arranged so that chance cannot look like a key token.

Legend: `T` correct and `F` wrong rollouts, `a` and `b` of them contain an id, `n = a + b`; arrays `*_TF` have
shape (T + 1, F + 1), indexed by (a, b). The derivation, in the order of the computation:

1. Evidence. Null hypothesis: the label has nothing to do with the id. Then, given n, the table follows the
   hypergeometric distribution, and Fisher's p says how surprising it is. Presence is all that is tested: an
   id that every rollout contains has p = 1 and K = 0, however often each uses it.
2. Strength S = (h1 F + h2 IG*) / (h1 + h2) * max(0, 1 - p / p_max), with F = exp(-2 p). Alone, F is 0.14
   at p = 1 and IG is above 0 for any imbalance: both reward noise, so the last factor closes at p_max. IG*
   is IG / H(label), made monotone: the largest among tables whose p is no smaller, since with unequal n
   the rarer table can have the larger IG. All factors lie in [0, 1] and fall with p, hence so does S: nothing
   outranks a more significant table, and an id seen once (p = 1 at 8 : 8) has S = 0.
3. Direction = sign(a/T - b/F) * v. The size of the effect is in S already (asin differences and IG both
   measure it), so presence gives the sign only. Frequencies, which are not tested, may not add evidence; they
   may take it away: v = min(1, TF_own / TF_other)^h3, TF_own on the side that presence favours. TF is BM25 of
   uses per rollout with half a count added on each side (Jeffreys) and with the mean length of a side's
   rollouts; unlike totals per side these do not depend on how many rollouts a side has.
4. V = value_range * tanh(S * direction / (2 * scale)), so |V| <= m := value_range * tanh(S / (2 * scale)).
5. Noise budget. Permuting the labels changes neither n nor the uses w of any id, so over all permutations
   E[mean |V| per token] <= E0 := sum_u w_u e(n_u) / sum_u w_u, with e(n) = sum_a P(a | n) m(a, n - a) exact
   and w_u / sum w the share of id u. K = lambda V with lambda = min(1, noise_budget * value_range / E0) is
   therefore at most noise_budget of the range on average when labels are noise: for every group, every text
   and all dependence between ids, because expectations add up and lambda does not change under permutation.
6. Flipping all labels swaps a with b and T with F: p, IG, S, E0 and lambda stay, the direction changes sign.

What follows for small groups: the smallest p is 1/3 at 2 : 2 and 1/8 at 1 : 7, so K is 0 there with the
default p_max = 0.1. Such groups hold no evidence about single ids.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from openrlhf_ktae.ktae.config import KTAEConfig

Array = NDArray[np.float64]

RANK_DIGITS = 9
"""Decimals of log p that decide which of two tables is less probable; closer ones rank as equal."""


def presence_sign(correct: int, wrong: int) -> Array:
    """Sign of a / T - b / F, in integers."""
    a, b = np.ogrid[0 : correct + 1, 0 : wrong + 1]
    return np.sign(a * wrong - b * correct).astype(np.float64)


def calibrated_strength(fisher_TF: Array, association_TF: Array, gain_TF: Array, config: KTAEConfig) -> Array:
    """S of step 2: between 0 and 1, a falling function of p alone, 0 from `p_max` on."""
    h1, h2 = config.number("h1"), config.number("h2")
    relative_gain_TF = best_gain_up_to(fisher_TF, gain_TF) / gain_TF.max()
    mixed_TF = (h1 * association_TF + h2 * relative_gain_TF) / ((h1 + h2) or 1.0)
    return mixed_TF * np.maximum(0.0, 1.0 - fisher_TF / config.number("p_max"))


def best_gain_up_to(fisher_TF: Array, gain_TF: Array) -> Array:
    """For each table the largest gain among those whose p is no smaller; equal p, equal gain."""
    with np.errstate(divide="ignore"):
        rank_TF = np.round(-np.log(fisher_TF), RANK_DIGITS)
    order = np.argsort(rank_TF, axis=None, kind="stable")
    rank = rank_TF.ravel()[order]
    best = np.maximum.accumulate(gain_TF.ravel()[order])
    best_TF = np.empty_like(gain_TF)
    best_TF.ravel()[order] = best[np.searchsorted(rank, rank, side="right") - 1]
    return best_TF


def expected_under_null(probability_TF: Array, size_TF: Array) -> Array:
    """e(n) of step 5: probability times size, summed over the tables with a + b = n; shape (T + F + 1,)."""
    flipped = (probability_TF * size_TF)[:, ::-1]
    wrong = flipped.shape[1] - 1
    # fsum rounds once, so the sum does not depend on which side is called correct.
    return np.array([math.fsum(flipped.diagonal(wrong - n).tolist()) for n in range(sum(flipped.shape) - 1)])
