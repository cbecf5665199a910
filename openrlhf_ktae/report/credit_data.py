"""Data of a recorded group for the token-credit page: each token's counts, its K under each variant, and its credit by
the run's own estimator, if that is not KTAE, and by the other estimators whose inputs were recorded.

Legend: `G` rollouts of a group, `T` tokens of its longest response. Model texts are embedded as data, never as markup.
"""

from collections.abc import Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openrlhf_ktae.ktae.batch import above
from openrlhf_ktae.ktae.config import KTAEConfig
from openrlhf_ktae.ktae.explain import GroupExplanation, explain_group
from openrlhf_ktae.record.recorded import RecordedGroup
from openrlhf_ktae.report.rescoring import Arm, GroupTensors, key_token_values, other_arms, recorded_config, tensors

VARIANTS = ("paper", "reference", "calibrated")
COUNTS = ("a", "b", "c", "d", "uses_correct", "uses_wrong")
# `value` is K before weights and centring; None for ids that never get K (special tokens).
MEASURES = tuple("fisher association information_gain strength presence tf_correct tf_wrong frequency value".split())
DIGITS = 4
PROMPT_SHOWN = 100_000  # characters; a page must also fit the tokens
LABEL_SHOWN = 10_000
TRAINED = "the score that training used"  # shown as the judge of recorded rollouts


def configs_of(about: Mapping[str, Any]) -> dict[str, KTAEConfig]:
    """Return variant -> configuration: the recorded one, and for other variants defaults with its threshold."""
    recorded = recorded_config(about)
    same = {"correct_threshold": recorded.correct_threshold}
    return {
        name: recorded if name == recorded.variant else KTAEConfig.from_mapping({"variant": name, **same})
        for name in VARIANTS
    }


def credit_weight(about: Mapping[str, Any], variant: str) -> float:
    """Return the factor on K of a variant: the run's `--algo.credit.weight` if it trained with that variant, else 1."""
    trained = trained_by(about) == "ktae" and variant == recorded_config(about).variant
    return float((about.get("credit") or {}).get("weight", 1.0)) if trained else 1.0


def step_settings(about: Mapping[str, Any], figures: Collection[str] = ()) -> dict[str, Any]:
    """Return the run's description for the page: model, estimator, variant, and non-default options.

    `figures` are the names in `credit.NEEDS` of the recorded inputs.
    """
    recorded = recorded_config(about)
    variants = configs_of(about).items()
    plain = asdict(KTAEConfig.from_mapping({"variant": recorded.variant}))
    changed = {name: value for name, value in asdict(recorded).items() if value != plain[name]}
    trained = trained_by(about)
    computed = trained == "ktae"
    return {
        "trained": trained,
        "others": other_names(about, figures),
        "model": "/".join(Path(str(about.get("model", ""))).parts[-2:]),  # a page is meant to be shared: no home folder
        "estimator": str(about.get("estimator", "")),
        "enabled": bool(trained) and not about.get("shadow", False),
        "shadow": bool(about.get("shadow", False)),
        "shuffled": computed and bool(about.get("shuffled", False)),
        "stored": bool(about.get("stored", False)),
        "variant": recorded.variant,
        "options": dict(changed),
        "range": {
            name: config.number("value_range") * config.group_weight(0, 1) * credit_weight(about, name)
            for name, config in variants
        },
        "threshold": recorded.correct_threshold,
        "judged": str(about.get("judged", TRAINED)),
    }


def trained_by(about: Mapping[str, Any]) -> str:
    """Return the name of the run's estimator of token credit; empty without one."""
    credit = about.get("credit") or {}
    return str(credit.get("name", "ktae" if about.get("ktae_enabled", True) else ""))


def other_names(about: Mapping[str, Any], figures: Collection[str]) -> list[str]:
    """Return the estimators that a page of this run shows beside KTAE's variants.

    First the run's own, as recorded, unless it is KTAE. Then, with default options, the estimators that need only one
    group and `figures`.
    """
    trained = trained_by(about)
    usable = [arm.name for arm in other_arms(figures) if arm.estimator and not arm.estimator.across_groups]
    return [*([trained] if trained not in ("", "ktae") else []), *(name for name in usable if name != trained)]


def others_of(group: RecordedGroup, arrays: GroupTensors) -> dict[str, NDArray[np.float64]]:
    """Return name -> credit (G, T) of each of `other_names`."""
    arms = {arm.name: arm for arm in other_arms(arrays.figures)}
    trained = trained_by(group.about)
    return {
        name: arrays.k_GT if name == trained else key_token_values(arrays, arms[name])
        for name in other_names(group.about, arrays.figures)
    }


def values_of(group: RecordedGroup) -> dict[str, NDArray[np.float64]]:
    """Return variant -> K (G, T) as training with that variant would compute it."""
    arrays = tensors(group)
    return {
        name: key_token_values(arrays, Arm(name, config, weight=credit_weight(group.about, name)))
        for name, config in configs_of(group.about).items()
    }


def group_data(group: RecordedGroup, values: Mapping[str, NDArray[np.float64]] | None = None) -> dict[str, Any]:
    """Return one group as plain lists; `values` come from `values_of`."""
    values = values or values_of(group)
    arrays = tensors(group)
    others = others_of(group, arrays)
    place: dict[int, int] = {}
    texts: list[str] = []
    rollouts: list[dict[str, Any]] = []
    for row in group.rows:
        refs, odd = [], {}
        for position, (token, text) in enumerate(zip(row["token_ids"], row["token_texts"], strict=True)):
            if token not in place:
                place[token] = len(texts)
                texts.append(text or "")
            refs.append(place[token])
            if texts[place[token]] != (text or ""):
                odd[position] = text or ""
        credit = {name: [_rounded(k) for k in k_GT[len(rollouts), : len(refs)]] for name, k_GT in others.items()}
        made = _rollout(row, refs, odd, arrays.threshold)
        rollouts.append({"number": len(rollouts) + 1, **made, "credit": credit})
    data: dict[str, Any] = {
        "step": group.step,
        "group": group.group,
        "prompt": _clipped(group.prompt, PROMPT_SHOWN),
        "label": _clipped(group.rows[0]["label"] or "", LABEL_SHOWN),
        "mixed": arrays.mixed,
        "size": len(rollouts),
        "cut": False,
        "ids": list(place),
        "texts": texts,
        "rollouts": rollouts,
        "sides": _sides(arrays),
        "variants": {},
    }
    for name, config in configs_of(group.about).items():
        explanation = explain_group(arrays.ids_GT, arrays.mask_GT, arrays.scores_G, config, arrays.special_ids)
        excluded = {*arrays.special_ids, *config.excluded_ids}
        data["counts"], measures = _by_place(explanation, place, excluded)
        weight = config.group_weight(*data["sides"]["rollouts"]) * credit_weight(group.about, name)
        shifts = _shifts(values[name], arrays, measures, rollouts, weight) if config.centre else None
        means = [_means(k_T[mask_T]) for k_T, mask_T in zip(values[name], arrays.mask_GT, strict=True)]
        data["variants"][name] = {"measures": measures, "weight": weight, "shifts": shifts, "means": means}
    return data


def _clipped(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]}… ({len(text) - most:,} more characters)"


def _rollout(row: Mapping[str, Any], refs: list[int], odd: dict[int, str], threshold: float) -> dict[str, Any]:
    score = row["score"]
    unknown = score is None or score != score
    base = [a for a, acted in zip(row["advantages_without_k"], row["action"], strict=True) if acted]
    return {
        "verdict": "unknown" if unknown else "correct" if above(np.float32(score), threshold) else "wrong",
        "score": None if unknown else _rounded(score),
        "advantage": _rounded(sum(base) / len(base)) if base else 0.0,
        "refs": refs,
        "texts": odd,
        "skipped": [i for i, acted in enumerate(row["action"]) if not acted],
        "start": 0,
        "tokens": len(refs),
    }


def _means(k_A: NDArray[np.float64]) -> list[float]:
    """Return mean K and mean |K| over the action tokens of a rollout."""
    return [_rounded(k_A.mean()), _rounded(np.abs(k_A).mean())] if k_A.size else [0.0, 0.0]


def _sides(arrays: GroupTensors) -> dict[str, list[int]]:
    """Return the number of correct and wrong rollouts, and the tokens of each side."""
    known_G = ~np.isnan(arrays.scores_G)
    correct_G = known_G & above(arrays.scores_G, arrays.threshold)
    sides = (correct_G, known_G & ~correct_G)
    tokens = [int(arrays.mask_GT[side].sum()) for side in sides]
    return {"rollouts": [int(side.sum()) for side in sides], "tokens": tokens}


def _by_place(
    explanation: GroupExplanation, place: Mapping[int, int], excluded: set[int]
) -> tuple[list[Any], list[Any]]:
    """Return counts and measures for each distinct id, in the order of `place`; None for ids not in `explanation`."""
    counts: list[Any] = [None] * len(place)
    measures: list[Any] = [None] * len(place)
    for row, token in enumerate(explanation.token_id.tolist()):
        if token in place:
            counts[place[token]] = [int(getattr(explanation, name)[row]) for name in COUNTS]
            measures[place[token]] = [_rounded(getattr(explanation, name)[row]) for name in MEASURES]
            if token in excluded:
                measures[place[token]][-1] = None
    return counts, measures


def _shifts(
    k_GT: NDArray[np.float64], arrays: GroupTensors, measures: list[Any], rollouts: list[dict[str, Any]], weight: float
) -> list[float]:
    """Return the mean that centring subtracted in each rollout, the same for all its tokens with K; 0 without any."""
    shifts = []
    for row, rollout in enumerate(rollouts):
        acted = (i for i in range(len(rollout["refs"])) if arrays.mask_GT[row, i])
        valued = (i for i in acted if (of := measures[rollout["refs"][i]]) is not None and of[-1] is not None)
        first = next(valued, None) if rollout["verdict"] != "unknown" else None
        value = 0.0 if first is None else weight * measures[rollout["refs"][first]][-1] - k_GT[row, first]
        shifts.append(_rounded(value))
    return shifts


def _rounded(value: float) -> float:
    return float(f"{float(value):.{DIGITS}g}")
