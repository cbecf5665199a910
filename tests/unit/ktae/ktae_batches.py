"""Batches for tests of KTAE."""

import numpy as np
from literal_ktae import literal_advantages

from openrlhf_ktae.ktae import KTAEConfig, compute_ktae_advantages

VARIANTS = ("paper", "reference", "calibrated")


def random_config(rng):
    variant = str(rng.choice(VARIANTS))
    options = {
        "variant": variant,
        "fisher": str(rng.choice(["two_sided", "point"])),
        "k1": float(rng.choice([0.0, 1.2, 2.0])),
        "b": float(rng.choice([0.0, 0.5, 1.0])),
        "weight": float(rng.choice([0.0, 0.3, 1.0, 2.0], p=[0.05, 0.35, 0.3, 0.3])),
        "centre": bool(rng.random() < 0.3),
        "by_failure": bool(rng.random() < 0.2),
        "correct_threshold": float(rng.choice([0.0, 0.5, -1.0])),
        "excluded_ids": tuple(rng.integers(0, 6, rng.integers(0, 2)).tolist()),
    }
    for name, choices in (("h1", [0.5, 2.0]), ("h2", [0.0, 3.0]), ("h3", [0.0, 0.5, 2.0]), ("scale", [0.2, 5.0])):
        if rng.random() < 0.5:
            options[name] = float(rng.choice(choices))
    if rng.random() < 0.3:
        options["value_range"] = float(rng.choice([0.1, 1.0, 3.0]))
    if variant == "calibrated":
        options["p_max"] = float(rng.choice([0.1, 0.5, 1.0], p=[0.2, 0.4, 0.4]))
        options["noise_budget"] = float(rng.choice([0.01, 0.1, 1.0]))
    else:
        options["term_frequency"] = str(rng.choice(["relative", "count"]))
        options["ratio_epsilon"] = float(rng.choice([1e-5, 0.1]))
    return KTAEConfig(**options)


def random_batch(rng, rows=12, positions=10):
    """Draw a small odd batch: ids, mask, scores (some NaN, some not binary), groups and advantages."""
    B, T, ids = rng.integers(rng.choice([1, 6]), rows + 1), rng.integers(0, positions + 1), rng.integers(1, 15)
    first = int(rng.choice([0, 1000, 151_643, 2**31 - 4]))
    token_ids = first + rng.integers(0, ids, (B, T))
    mask = rng.random((B, T)) < rng.choice([0.0, 0.3, 0.8, 1.0], p=[0.05, 0.25, 0.4, 0.3])
    mask[rng.random(B) < 0.1] = False
    scores = rng.choice([0.0, 1.0, 0.5, -1.0, np.nan], B, p=[0.4, 0.4, 0.08, 0.05, 0.07])
    groups = rng.integers(-1, rng.choice([0, 1, 3]), B)
    return token_ids, mask, scores, groups, rng.normal(size=B)


def literal(ids, mask, scores, groups, base, config, special=()):
    plain = (np.asarray(given).tolist() for given in (ids, mask, scores, groups, base))
    return np.array(literal_advantages(*plain, config, special)).reshape(np.shape(ids))


def table_group(tables, correct, wrong, filler=0):
    """Return a group in which id k + 1 has the table `tables[k]` and occurs once in each rollout that contains it."""
    mask = np.zeros((correct + wrong, len(tables) + filler), bool)
    ids = np.broadcast_to(np.arange(1, mask.shape[1] + 1), mask.shape).copy()
    for k, (a, b) in enumerate(tables):
        mask[:a, k] = True
        mask[correct : correct + b, k] = True
    mask[:, len(tables) :] = True
    return ids, mask, np.repeat([1.0, 0.0], [correct, wrong])


def zipf_group(rng, rollouts, tokens=200, vocabulary=5000, exponent=1.1):
    """Draw rollouts of Zipf-distributed ids, independent of labels."""
    chance = 1.0 / np.arange(1, vocabulary + 1) ** exponent
    return rng.choice(vocabulary, (rollouts, tokens), p=chance / chance.sum())


def worked_solutions(rng, texts, words=3000, phrases=400, signs=80):
    """Draw ids distributed as in a model's solutions of different problems: some 900 per text, 130 of them distinct.

    As in 160 real solutions, four in ten ids occur in one text only, a third of the positions hold the same id (the
    space), and texts repeat phrases. Half of the positions (two thirds in the real ones) hold an id that 15 or 16 of 16
    texts contain.
    """

    def zipf(ids, size, liking=1.0):
        chance = liking / np.arange(1, ids + 1)
        return rng.choice(ids, size, p=chance / chance.sum())

    phrase_book = [1 + signs + zipf(words, rng.integers(2, 8)) for _ in range(phrases)]
    solutions = []
    for sentences in rng.lognormal(3.5, 0.4, texts).astype(int):
        of_problem = [1 + signs + rng.integers(0, words, rng.integers(2, 8)) for _ in range(4)]
        liking = rng.gamma(0.5, size=signs)  # a text uses few signs, but often
        said = [phrase_book[phrase] for phrase in zipf(phrases, sentences)]
        repeated = [of_problem[phrase] for phrase in rng.integers(0, len(of_problem), sentences // 3)]
        parts = [np.append(phrase, 1 + zipf(signs, 8, liking)) for phrase in said + repeated]
        ids = np.concatenate([parts[part] for part in rng.permutation(len(parts))])
        solutions.append(np.insert(ids, np.flatnonzero(rng.random(len(ids)) < 0.45), 0).tolist())
    return solutions


def advantages(ids, mask, scores, groups, base, config=None, **more):
    """Return the fast version's advantages as a float32 array."""
    return compute_ktae_advantages(ids, mask, scores, groups, base, config, **more).cpu().numpy()
