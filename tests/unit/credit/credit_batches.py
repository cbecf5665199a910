"""Random groups for tests of token credit, and each estimator as plain loops over rollouts and tokens."""

from __future__ import annotations

import math

import numpy as np
import torch

from openrlhf_ktae.credit import NEEDS, CreditBatch, estimators

PROMPT = 2  # prompt tokens at the start of each row


def rollouts(groups=4, size=6, seed=0, unknown=0.15, threshold=0.0):
    """Return random rollouts as dicts: few distinct ids (so prefixes are shared), tool tokens, unequal lengths."""
    rng = np.random.default_rng(seed)
    made = []
    for group in range(groups):
        for _ in range(size):
            length = int(rng.integers(1, 9))
            rollout = {name: rng.random(length).astype(np.float32) for name in NEEDS}
            rollout["log_probs"] = np.log(rollout["log_probs"] + 1e-3)
            rollout["values"] = np.where(rng.random(length) < 0.5, rollout["values"], np.nan)
            rollout["entropies"] = np.round(rollout["entropies"], 1)  # ties
            mask = np.ones(length, bool)
            mask[1:-1] = rng.random(max(length - 2, 0)) > 0.15
            score = np.nan if rng.random() < unknown else float(rng.integers(0, 2))
            rollout |= {"ids": rng.integers(0, 3, length), "mask": mask, "score": score, "group": group}
            made.append(rollout)
    for rollout in made:
        scores = [r["score"] for r in made if r["group"] == rollout["group"] and not math.isnan(r["score"])]
        spread = np.std(scores, ddof=1) if len(scores) > 1 else 0.0
        known = not math.isnan(rollout["score"])
        rollout["base"] = (rollout["score"] - np.mean(scores)) / (spread + 1e-9) if known else 0.0
    return made


def batch(made, more=0, splits=1):
    """Return `made` as a batch, with `more` padding, in `splits` parts that are each as wide as needed."""
    parts, widths = [], []
    for chunk in np.array_split(np.arange(len(made)), splits):
        width = PROMPT + max(len(made[i]["ids"]) for i in chunk) + more
        parts += [_row(made[i], width) for i in chunk]
        widths += [width] * len(chunk)
    columns = {name: torch.from_numpy(np.concatenate([part[name] for part in parts])) for name in parts[0]}
    return CreditBatch(
        edges_B=np.concatenate([[0], np.cumsum(widths)]),
        scores_B=torch.tensor([r["score"] for r in made], dtype=torch.float32),
        groups_B=torch.tensor([10 - r["group"] for r in made]),
        special_ids=(2,),
        **columns,
    )


def _row(rollout, width):
    end = PROMPT + len(rollout["ids"])
    row = {name: np.full(width, 7.0, np.float32) for name in ("base_N", *(f"{n}_N" for n in NEEDS))}  # junk in padding
    row["token_ids_N"], row["mask_N"] = np.full(width, 9, np.int64), np.zeros(width, bool)
    for name in NEEDS:
        row[f"{name}_N"][PROMPT:end] = rollout[name]
    row["base_N"][PROMPT:end] = rollout["base"]
    row["token_ids_N"][PROMPT:end], row["mask_N"][PROMPT:end] = rollout["ids"], rollout["mask"]
    return row


def of_rollouts(values_N, made, credited):
    """Split (N,) values into one array per rollout, of its action tokens."""
    rows = [values_N[a:b] for a, b in zip(credited.edges_B[:-1], credited.edges_B[1:], strict=True)]
    return [row[PROMPT : PROMPT + len(r["ids"])].numpy()[r["mask"]] for row, r in zip(rows, made, strict=True)]


def acting(rollout, name):
    return rollout[name][rollout["mask"]].astype(float)


def known(rollout):
    return not math.isnan(rollout["score"])


def group_of(rollout, made):
    return [r for r in made if r["group"] == rollout["group"] and known(r)]


def one_sided(rollout, made):
    return len({r["score"] > 0 for r in group_of(rollout, made)}) < 2


def sharing(rollout, made, position):
    """Return the group's rollouts that share this one's tokens up to and including `position`."""
    begin = rollout["ids"][: position + 1].tolist()
    return [r for r in group_of(rollout, made) if r["ids"][: position + 1].tolist() == begin]


def literal_tempo(rollout, made):
    added = []
    for position in np.flatnonzero(rollout["mask"]):
        after = np.mean([r["base"] for r in sharing(rollout, made, position)])
        added.append(after - np.mean([r["base"] for r in sharing(rollout, made, position - 1)]))
    return added


def literal_lambda_grpo(rollout, made):
    counts = [len(sharing(rollout, made, position)) for position in np.flatnonzero(rollout["mask"])]
    return [rollout["base"] / count - rollout["base"] for count in counts]


def literal_entropy_mask(rollout, made, share=0.2):
    every = sorted((e for r in made if known(r) for e in acting(r, "entropies")), reverse=True)
    least = every[max(1, math.ceil(share * len(every))) - 1]
    return [0.0 if entropy >= least else -rollout["base"] for entropy in acting(rollout, "entropies")]


def literal_entropy_bonus(rollout, made, alpha=0.4, kappa=2.0):
    return [min(alpha * entropy, abs(rollout["base"]) / kappa) for entropy in acting(rollout, "entropies")]


def literal_prob_reweight(rollout, made, alpha=0.2):
    return [rollout["base"] * (alpha * math.exp(p) + 1 - alpha - 1) for p in acting(rollout, "log_probs")]


def literal_otb(rollout, made):
    def energies(one):
        return np.cumsum(np.maximum(1 - 2 * np.exp(acting(one, "log_probs")) + acting(one, "sum_squares"), 0))

    added = []
    for place in range(int(rollout["mask"].sum())):
        there = [r for r in group_of(rollout, made) if r["mask"].sum() > place]
        weights = [energies(r)[place] for r in there]
        mean = sum(w * r["base"] for w, r in zip(weights, there, strict=True)) / sum(weights) if sum(weights) else 0.0
        added.append(-mean if len(there) > 1 else 0.0)
    return added


def gtpo_factors(rollout, made, alpha):
    correct, factors = rollout["score"] > 0, []
    for place, entropy in enumerate(acting(rollout, "entropies")):
        side = [r for r in group_of(rollout, made) if (r["score"] > 0) == correct and r["mask"].sum() > place]
        pulls = [max(acting(r, "entropies")[place], 1e-6) ** (1 if correct else -1) for r in side]
        own = max(entropy, 1e-6) ** (1 if correct else -1)
        factors.append(1 - alpha + alpha * len(side) * own / sum(pulls))
    return factors


def literal_gtpo(rollout, made, alpha=0.1, form="spread"):
    if one_sided(rollout, made):
        return [0.0] * int(rollout["mask"].sum())
    factors = gtpo_factors(rollout, made, alpha)
    if form == "spread":
        return [rollout["base"] * (factor - 1) for factor in factors]
    side = [r for r in group_of(rollout, made) if (r["score"] > 0) == (rollout["score"] > 0)]
    sign = 1 if rollout["score"] > 0 else -1
    every = [sign * factor for r in side for factor in gtpo_factors(r, made, alpha)]
    mean, std = np.mean(every), np.std(every)
    return [((sign * factor - mean) / std if std > 1e-6 else 0.0) - rollout["base"] for factor in factors]


def literal_mc_value(rollout, made):
    group = group_of(rollout, made)
    mean = np.mean([r["score"] for r in group])
    mass = [sum(abs(r["base"]) for r in group), sum(abs(r["score"] - mean) for r in group)]
    scale = mass[0] / mass[1] if min(mass) > 0 else 1.0
    values = acting(rollout, "values").tolist()
    values[-1] = rollout["score"]
    before, added = mean, []
    for place in range(len(values)):
        after = next(v for v in values[place:] if not math.isnan(v))
        added.append(scale * (after - before) - rollout["base"])
        if not math.isnan(values[place]):
            before = values[place]
    return added


def literal_ktae_by_context(rollout, made):
    """KTAE with a new id for each (context, id) pair."""
    numbers, group = {}, [r for r in made if r["group"] == rollout["group"]]
    for one in group:
        context, one["keys"] = None, []
        for token, inside in zip(one["ids"][one["mask"]].tolist(), acting(one, "in_prompt"), strict=True):
            one["keys"].append(numbers.setdefault((context, token), len(numbers)))
            context = token if inside > 0.5 and token != 2 else context
    width = max(len(one["keys"]) for one in group)
    ids, mask = (np.zeros((len(group), width), kind) for kind in (int, bool))
    for row, one in enumerate(group):
        ids[row, : len(one["keys"])], mask[row, : len(one["keys"])] = one["keys"], True
    scores = [one["score"] for one in group]
    given = CreditBatch.from_tables(ids, mask, scores, [0] * len(group), [0.0] * len(group))
    row = next(row for row, one in enumerate(group) if one is rollout)
    found = estimators()["ktae"](given).added_N.view(len(group), width)[row]
    return [0.0 if i == 2 else float(k) for i, k in zip(rollout["ids"][rollout["mask"]], found, strict=False)]


LITERAL = {name.removeprefix("literal_"): twin for name, twin in globals().items() if name.startswith("literal_")}
