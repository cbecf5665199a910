"""Variant `calibrated`: the ingredients of KTAE arranged so that chance cannot look like a key token.

Legend: `T` correct and `F` wrong rollouts, of which `a` and `b` contain an id, `n = a + b`; arrays `*_TF` have
shape (T + 1, F + 1), indexed by (a, b). Sizes of K are shares of `value_range`. The derivation:

1. Evidence. Null hypothesis: the label is independent of the id. Then, given n, the table follows the
   hypergeometric distribution, and Fisher's p says how surprising it is. Only presence is tested: an
   id that every rollout contains has p = 1 and K = 0, however often each rollout uses it.
2. Open curve m1 = tanh(S / (2 * scale)), S = (h1 F + h2 IG*) / (h1 + h2) * max(0, 1 - p / p_max), with
   F = exp(-2 p). Without the last factor, noise would be rewarded: F is 0.14 at p = 1, and IG is above 0 for any
   imbalance. The factor is 0 from p_max on. IG* is IG / H(label), made monotone: the largest among tables whose p is
   no smaller, since with unequal n the table of larger p can have the larger IG. All factors lie in [0, 1] and
   fall as p rises, and so does m1.
3. Narrow curve m0 = max(0, 1 - (p / p0)^2), p0 = min(1.5 * noise_budget, p_max). A p-value is at most x with
   probability at most x, so under the null E[m0] <= integral of m0 over p = 2/3 p0 <= noise_budget, whatever n:
   every id of every group may always spend this much.
4. Noise budget. Permuting labels changes neither n nor the uses w of any id. With P(a | n) exact,
   e_i(n) = sum_a P(a | n) m_i(a, n - a) and E_i = sum_u w_u e_i(n_u) / sum_u w_u bound the mean |K| per token
   over all permutations of the group's labels. Where E_1 <= noise_budget the size of K is m1. Elsewhere it is
   (1 - x) m0 + x m1 with the x that makes (1 - x) E_0 + x E_1 = noise_budget (x = 0 and m0 scaled down if even
   E_0 is larger: only with `point`, whose probabilities are not p-values). The mix does not change under
   permutation, and expectations add up, so the bound holds for every group and text and for any dependence
   between ids. The mix falls as p rises, as m0 and m1 do: no table outranks a more significant one of its
   group, and an id seen once (p = 1 at 8 : 8) has K = 0.
5. Direction = sign(a/T - b/F) * v. The size of the effect is already in m (asin differences and IG both
   measure it), so presence gives only the sign. Frequencies are not tested, so they may not add evidence; they
   may remove it: v = min(1, TF_own / TF_other)^h3, TF_own on the side that presence favours. TF is BM25 of
   uses per rollout with half a count added on each side (Jeffreys) and with the mean length of a side's
   rollouts; unlike totals per side these do not depend on how many rollouts a side has.
6. Flipping all labels swaps a with b and T with F: p, IG, E_0 and E_1 do not change, the direction changes sign.

Centring is off by default: the noise bound limits what K adds to a rollout by chance; the rest is evidence.

Consequence for small groups: the smallest p is 1/3 at 2 : 2 and 1/8 at 1 : 7, so K is 0 there with the
default p_max = 0.1. Such groups contain no evidence about single ids.
"""

import math

import numpy as np
from numpy.typing import NDArray

from openrlhf_ktae.ktae.config import KTAEConfig

Array = NDArray[np.float64]

NARROW_PER_BUDGET = 1.5
"""p0 / noise_budget in step 3: the area under 1 - (p / p0)^2 is 2/3 p0."""
RANK_DIGITS = 9
"""Decimals of log p that decide which of two tables is less probable; closer ones rank as equal."""


def presence_sign(correct: int, wrong: int) -> Array:
    """Sign of a / T - b / F, in integers."""
    a, b = np.ogrid[0 : correct + 1, 0 : wrong + 1]
    return np.sign(a * wrong - b * correct).astype(np.float64)


def open_curve(fisher_TF: Array, association_TF: Array, gain_TF: Array, config: KTAEConfig) -> Array:
    """Return m1 of step 2: between 0 and 1, falling as p rises, 0 from `p_max` on."""
    h1, h2 = config.number("h1"), config.number("h2")
    relative_gain_TF = best_gain_up_to(fisher_TF, gain_TF) / gain_TF.max()
    mixed_TF = (h1 * association_TF + h2 * relative_gain_TF) / ((h1 + h2) or 1.0)
    gate_TF = np.maximum(0.0, 1.0 - fisher_TF / config.number("p_max"))
    return np.tanh(mixed_TF * gate_TF / (2.0 * config.number("scale")))


def narrow_curve(fisher_TF: Array, config: KTAEConfig) -> Array:
    """Return m0 of step 3: between 0 and 1, falling as p rises, with an area of at most `noise_budget`."""
    end = min(NARROW_PER_BUDGET * config.number("noise_budget"), config.number("p_max"))
    return np.maximum(0.0, 1.0 - (fisher_TF / end) ** 2)


def best_gain_up_to(fisher_TF: Array, gain_TF: Array) -> Array:
    """Return for each table the largest gain among tables whose p is at least as large; equal p gives equal gain."""
    with np.errstate(divide="ignore"):
        rank_TF = np.round(-np.log(fisher_TF), RANK_DIGITS)
    order = np.argsort(rank_TF, axis=None, kind="stable")
    rank = rank_TF.ravel()[order]
    best = np.maximum.accumulate(gain_TF.ravel()[order])
    best_TF = np.empty_like(gain_TF)
    best_TF.ravel()[order] = best[np.searchsorted(rank, rank, side="right") - 1]
    return best_TF


def expected_under_null(probability_TF: Array, size_TF: Array) -> Array:
    """Return e(n) of step 4: probability times size, summed over the tables with a + b = n; shape (T + F + 1,)."""
    flipped = (probability_TF * size_TF)[:, ::-1]
    wrong = flipped.shape[1] - 1
    # fsum rounds once, so the sum does not depend on which side is called correct.
    return np.array([math.fsum(flipped.diagonal(wrong - n).tolist()) for n in range(sum(flipped.shape) - 1)])
