"""KTAE in plain loops, for reading and for checking the fast version. The two share only the options.

Start at `literal_advantages`: a group's rollouts are lists of ids, each id gets one contingency
table, and every formula is written where it is used. Probabilities are exact fractions, all else is floats.
"""

import math
from collections.abc import Iterable, Sequence
from fractions import Fraction
from functools import cache

from openrlhf_ktae.ktae.config import KTAEConfig

Rollout = list[int]

LARGEST_EXPONENT = 700
"""exp of more than this overflows."""


def literal_advantages(
    token_ids: Sequence[Sequence[int]],
    action_mask: Sequence[Sequence[int]],
    scores: Sequence[float],
    group_ids: Sequence[int],
    rollout_advantages: Sequence[float],
    config: KTAEConfig | None = None,
    special_token_ids: Iterable[int] = (),
) -> list[list[float]]:
    """Return the result of `compute_ktae_advantages` as nested lists of Python floats."""
    config = (config or KTAEConfig()).resolved()
    without_value = {*special_token_ids, *config.excluded_ids}
    advantages = [[0.0] * len(row) for row in token_ids]
    for group in set(group_ids):
        rows = [row for row, its_group in enumerate(group_ids) if its_group == group]
        known = [row for row in rows if not math.isnan(scores[row])]
        rollouts = [[o for o, acted in zip(token_ids[r], action_mask[r], strict=True) if acted] for r in known]
        correct = [scores[row] > config.correct_threshold for row in known]
        values = group_values(rollouts, correct, config)
        failures = sum(not label for label in correct)
        factor = 2.0 * failures / len(correct) if config.by_failure and correct else 1.0
        for row in rows:
            spoken = [t for t, acted in enumerate(action_mask[row]) if acted]
            valued = [t for t in spoken if row in known and token_ids[row][t] not in without_value]
            k = {t: values[token_ids[row][t]] for t in valued}
            mean = sum(k.values()) / len(k) if config.centre and k else 0.0
            for t in spoken:
                advantages[row][t] = rollout_advantages[row]
            for t in valued:
                advantages[row][t] += config.weight * factor * (k[t] - mean)
    return advantages


def group_values(rollouts: list[Rollout], correct: list[bool], config: KTAEConfig) -> dict[int, float]:
    """K of every id of one group, before `weight`, `by_failure` and centring; `config` must be resolved."""
    right = [rollout for rollout, label in zip(rollouts, correct, strict=True) if label]
    wrong = [rollout for rollout, label in zip(rollouts, correct, strict=True) if not label]
    ids = {o for rollout in rollouts for o in rollout}
    if not right or not wrong:
        return dict.fromkeys(ids, 0.0)
    if config.variant == "calibrated":
        opened, narrowed = noise_mix(right, wrong, config)
        return {o: calibrated_value(o, right, wrong, opened, narrowed, config) for o in ids}
    return {o: id_value(o, right, wrong, config) for o in ids}


def id_value(o: int, right: list[Rollout], wrong: list[Rollout], config: KTAEConfig) -> float:
    """K = range * 2 * (sigmoid((h1 F + h2 IG) D / scale) - 1/2), which is range * tanh(... / (2 scale))."""
    a, b = (sum(o in rollout for rollout in side) for side in (right, wrong))
    sizes = len(right), len(wrong)
    p = fisher(a, b, *sizes, config.fisher)
    association = 0.0 if p == 1 else math.exp(-2 * p)
    strength = config.number("h1") * association + config.number("h2") * information_gain(a, b, *sizes)
    presence = math.asin(math.sqrt(Fraction(a, sizes[0]))) - math.asin(math.sqrt(Fraction(b, sizes[1])))
    uses = [sum(rollout.count(o) for rollout in side) for side in (right, wrong)]
    length = [sum(len(rollout) for rollout in side) for side in (right, wrong)]
    frequency = [float(use) for use in uses]
    if config.term_frequency == "relative":
        frequency = [use / tokens if tokens else 0.0 for use, tokens in zip(uses, length, strict=True)]
    tf_right, tf_wrong = bm25(frequency, [float(tokens) for tokens in length], config)
    epsilon = config.number("ratio_epsilon")
    ratios = tf_right / (tf_wrong + epsilon) - tf_wrong / (tf_right + epsilon)
    x = strength * (presence + config.number("h3") * ratios) / config.number("scale")
    sigmoid = 1 / (1 + math.exp(-x)) if x > -LARGEST_EXPONENT else 0.0
    return config.number("value_range") * 2 * (sigmoid - 0.5)


def bm25(frequency: list[float], length: list[float], config: KTAEConfig) -> list[float]:
    """(k1 + 1) tf / (k1 (1 - b + b len / len_avg) + tf) of both sides."""
    k1, b, average = config.k1, config.b, sum(length) / 2
    saturated = []
    for tf, tokens in zip(frequency, length, strict=True):
        saturated.append((k1 + 1) * tf / (k1 * (1 - b + b * tokens / average) + tf) if tf else 0.0)
    return saturated


def calibrated_value(
    o: int, right: list[Rollout], wrong: list[Rollout], opened: float, narrowed: float, config: KTAEConfig
) -> float:
    """Sign of the difference in presence, times the mix of the two curves, times the veto by contrary frequencies."""
    a, b = (sum(o in rollout for rollout in side) for side in (right, wrong))
    sizes = len(right), len(wrong)
    more_in_right = Fraction(a, sizes[0]) - Fraction(b, sizes[1])
    if more_in_right == 0:
        return 0.0
    size = opened * open_curve(a, b, *sizes, config) + narrowed * narrow_curve(a, b, *sizes, config)
    uses = [sum(rollout.count(o) for rollout in side) for side in (right, wrong)]
    frequency = [(use + 0.5) / (rollouts + 1) for use, rollouts in zip(uses, sizes, strict=True)]
    mean_length = [sum(len(rollout) for rollout in side) / len(side) for side in (right, wrong)]
    tf_right, tf_wrong = bm25(frequency, mean_length, config)
    ratio = tf_right / tf_wrong if more_in_right > 0 else tf_wrong / tf_right
    sign = 1 if more_in_right > 0 else -1
    return sign * config.number("value_range") * size * min(1.0, ratio) ** config.number("h3")


def open_curve(a: int, b: int, n_right: int, n_wrong: int, config: KTAEConfig) -> float:
    """tanh(S / (2 scale)) with S = (h1 F + h2 IG*) / (h1 + h2) * (1 - p / p_max)."""
    h1, h2, p_max = (config.number(option) for option in ("h1", "h2", "p_max"))
    p = fisher(a, b, n_right, n_wrong, config.fisher)
    if p >= p_max:
        return 0.0
    tables = [(x, y) for x in range(n_right + 1) for y in range(n_wrong + 1)]
    no_rarer = [(x, y) for x, y in tables if fisher(x, y, n_right, n_wrong, config.fisher) >= p]
    gain = max(information_gain(x, y, n_right, n_wrong) for x, y in no_rarer) / entropy(n_right, n_wrong)
    strength = (h1 * math.exp(-2 * p) + h2 * gain) / ((h1 + h2) or 1) * (1 - p / p_max)
    return math.tanh(strength / (2 * config.number("scale")))


def narrow_curve(a: int, b: int, n_right: int, n_wrong: int, config: KTAEConfig) -> float:
    """1 - (p / p0)^2 with p0 = 1.5 noise_budget, at most p_max."""
    p = fisher(a, b, n_right, n_wrong, config.fisher)
    return max(0.0, 1 - float(p / min(1.5 * config.number("noise_budget"), config.number("p_max"))) ** 2)


def noise_mix(right: list[Rollout], wrong: list[Rollout], config: KTAEConfig) -> tuple[float, float]:
    """Factors of the two curves; with them mean |K| over all ways to label the rollouts is within the budget."""
    rollouts, sizes = right + wrong, (len(right), len(wrong))
    tokens = sum(len(rollout) for rollout in rollouts)
    from_open = from_narrow = 0.0
    for o in {o for rollout in rollouts for o in rollout}:
        n = sum(o in rollout for rollout in rollouts)
        share = sum(rollout.count(o) for rollout in rollouts) / tokens
        for a in range(max(0, n - sizes[1]), min(sizes[0], n) + 1):
            chance = share * float(fisher(a, n - a, *sizes, "point"))
            from_open += chance * open_curve(a, n - a, *sizes, config)
            from_narrow += chance * narrow_curve(a, n - a, *sizes, config)
    budget = config.number("noise_budget")
    if from_open <= budget:
        return 1.0, 0.0
    if from_narrow >= budget:
        return 0.0, budget / from_narrow
    opened = (budget - from_narrow) / (from_open - from_narrow)
    return opened, 1 - opened


@cache
def fisher(a: int, b: int, n_right: int, n_wrong: int, kind: str) -> Fraction:
    """Probability of the table given its margins; two-sided: the sum over all tables that are at most as probable."""
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
    """Entropy in bits of a label with `yes` and `no` rollouts."""
    shares = [count / (yes + no) for count in (yes, no) if count]
    return -sum(share * math.log2(share) for share in shares)
