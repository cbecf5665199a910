"""KTAE in plain loops, for reading and for checking the fast version; it shares nothing but the options.

Follow `literal_advantages` downwards: a group's rollouts are lists of ids, each id gets one contingency
table, and every formula stands where it is used. Exact fractions for probabilities, floats for the rest.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from fractions import Fraction
from functools import cache

from openrlhf_ktae.ktae.config import KTAEConfig

Rollout = list[int]


def literal_advantages(
    token_ids: Sequence[Sequence[int]],
    action_mask: Sequence[Sequence[int]],
    scores: Sequence[float],
    group_ids: Sequence[int],
    rollout_advantages: Sequence[float],
    config: KTAEConfig | None = None,
    special_token_ids: Iterable[int] = (),
) -> list[list[float]]:
    """What `compute_ktae_advantages` returns, as nested lists of Python floats."""
    config = (config or KTAEConfig()).resolved()
    without_value = {*special_token_ids, *config.excluded_ids}
    advantages = [[0.0] * len(row) for row in token_ids]
    for group in set(group_ids):
        rows = [row for row, its_group in enumerate(group_ids) if its_group == group]
        known = [row for row in rows if not math.isnan(scores[row])]
        rollouts = [[o for o, acted in zip(token_ids[r], action_mask[r], strict=True) if acted] for r in known]
        correct = [scores[row] > config.correct_threshold for row in known]
        values = group_values(rollouts, correct, config)
        for row in rows:
            spoken = [t for t, acted in enumerate(action_mask[row]) if acted]
            valued = [t for t in spoken if row in known and token_ids[row][t] not in without_value]
            k = {t: values[token_ids[row][t]] for t in valued}
            mean = sum(k.values()) / len(k) if config.centre and k else 0.0
            for t in spoken:
                advantages[row][t] = rollout_advantages[row]
            for t in valued:
                advantages[row][t] += config.weight * (k[t] - mean)
    return advantages


def group_values(rollouts: list[Rollout], correct: list[bool], config: KTAEConfig) -> dict[int, float]:
    """K of every id of one group, before `weight`; `config` must be resolved."""
    right = [rollout for rollout, label in zip(rollouts, correct, strict=True) if label]
    wrong = [rollout for rollout, label in zip(rollouts, correct, strict=True) if not label]
    ids = {o for rollout in rollouts for o in rollout}
    if not right or not wrong:
        return dict.fromkeys(ids, 0.0)
    values = {o: id_value(o, right, wrong, config) for o in ids}
    if config.variant == "calibrated":
        factor = noise_factor(right, wrong, config)
        values = {o: factor * value for o, value in values.items()}
    return values


def id_value(o: int, right: list[Rollout], wrong: list[Rollout], config: KTAEConfig) -> float:
    """K = value_range * tanh(x / (2 scale)), which is range * 2 * (sigmoid(x / scale) - 1/2)."""
    a, b = (sum(o in rollout for rollout in side) for side in (right, wrong))
    x = strength(a, b, len(right), len(wrong), config) * direction(o, a, b, right, wrong, config)
    if x / config.number("scale") < -700:
        return -config.number("value_range")
    sigmoid = 1 / (1 + math.exp(-x / config.number("scale")))
    return config.number("value_range") * 2 * (sigmoid - 0.5)


def strength(a: int, b: int, n_right: int, n_wrong: int, config: KTAEConfig) -> float:
    """h1 F + h2 IG; in `calibrated` normalised, monotone in p, and faded out towards p_max."""
    h1, h2 = config.number("h1"), config.number("h2")
    p = fisher(a, b, n_right, n_wrong, config.fisher)
    association = 0.0 if p == 1 else math.exp(-2 * p)
    if config.variant != "calibrated":
        return h1 * association + h2 * information_gain(a, b, n_right, n_wrong)
    p_max = config.number("p_max")
    if p >= p_max:
        return 0.0
    tables = [(x, y) for x in range(n_right + 1) for y in range(n_wrong + 1)]
    no_rarer = [(x, y) for x, y in tables if fisher(x, y, n_right, n_wrong, config.fisher) >= p]
    gain = max(information_gain(x, y, n_right, n_wrong) for x, y in no_rarer) / entropy(n_right, n_wrong)
    return (h1 * association + h2 * gain) / ((h1 + h2) or 1) * (1 - p / p_max)


def direction(o: int, a: int, b: int, right: list[Rollout], wrong: list[Rollout], config: KTAEConfig) -> float:
    """Presence part with the frequency part: a sum, in `calibrated` the sign times a veto."""
    share_right, share_wrong = Fraction(a, len(right)), Fraction(b, len(wrong))
    uses = [sum(rollout.count(o) for rollout in side) for side in (right, wrong)]
    length = [sum(len(rollout) for rollout in side) for side in (right, wrong)]
    h3 = config.number("h3")
    if config.variant == "calibrated":
        sizes = [len(right), len(wrong)]
        frequency = [(use + 0.5) / (size + 1) for use, size in zip(uses, sizes, strict=True)]
        mean_length = [tokens / size for tokens, size in zip(length, sizes, strict=True)]
        tf_right, tf_wrong = bm25(frequency, mean_length, config)
        if share_right > share_wrong:
            return min(1.0, tf_right / tf_wrong) ** h3
        return -(min(1.0, tf_wrong / tf_right) ** h3) if share_right < share_wrong else 0.0
    frequency = [float(use) for use in uses]
    if config.term_frequency == "relative":
        frequency = [use / tokens if tokens else 0.0 for use, tokens in zip(uses, length, strict=True)]
    tf_right, tf_wrong = bm25(frequency, [float(tokens) for tokens in length], config)
    epsilon = config.number("ratio_epsilon")
    presence = math.asin(math.sqrt(share_right)) - math.asin(math.sqrt(share_wrong))
    return presence + h3 * (tf_right / (tf_wrong + epsilon) - tf_wrong / (tf_right + epsilon))


def bm25(frequency: list[float], length: list[float], config: KTAEConfig) -> list[float]:
    """(k1 + 1) tf / (k1 (1 - b + b len / len_avg) + tf) of both sides."""
    k1, b, average = config.k1, config.b, sum(length) / 2
    saturated = []
    for tf, tokens in zip(frequency, length, strict=True):
        saturated.append((k1 + 1) * tf / (k1 * (1 - b + b * tokens / average) + tf) if tf else 0.0)
    return saturated


def noise_factor(right: list[Rollout], wrong: list[Rollout], config: KTAEConfig) -> float:
    """At most 1: keeps the expectation of mean |K| over all ways to label the rollouts within the budget."""
    sizes = len(right), len(wrong)
    expected = 0.0
    for o in {o for rollout in right + wrong for o in rollout}:
        n = sum(o in rollout for rollout in right + wrong)
        uses = sum(rollout.count(o) for rollout in right + wrong)
        for a in range(max(0, n - sizes[1]), min(sizes[0], n) + 1):
            x = strength(a, n - a, *sizes, config) / config.number("scale")
            expected += uses * float(fisher(a, n - a, *sizes, "point")) * abs(math.tanh(x / 2))
    tokens = sum(len(rollout) for rollout in right + wrong)
    return min(1.0, config.number("noise_budget") * tokens / expected) if expected else 1.0


@cache
def fisher(a: int, b: int, n_right: int, n_wrong: int, kind: str) -> Fraction:
    """Probability of the table given its margins; two-sided: of all tables that are no more probable."""
    present = a + b
    weight = math.comb(n_right, a) * math.comb(n_wrong, b)
    weights = [math.comb(n_right, x) * math.comb(n_wrong, present - x) for x in range(present + 1)]
    tail = weight if kind == "point" else sum(other for other in weights if other <= weight)
    return Fraction(tail, math.comb(n_right + n_wrong, present))


@cache
def information_gain(a: int, b: int, n_right: int, n_wrong: int) -> float:
    """H(Y) - H(Y | presence) in bits."""
    c, d = n_right - a, n_wrong - b
    total = n_right + n_wrong
    given_presence = (a + b) / total * entropy(a, b) + (c + d) / total * entropy(c, d)
    return entropy(n_right, n_wrong) - given_presence


def entropy(yes: int, no: int) -> float:
    """Entropy in bits of a label that `yes` and `no` rollouts carry."""
    shares = [count / (yes + no) for count in (yes, no) if count]
    return -sum(share * math.log2(share) for share in shares)
