"""A recorded group as the token-credit page reads it: every token's table and K under each variant.

Legend: `U` distinct ids of a group. Texts of models go in as data and are never markup.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from openrlhf_ktae.evaluation.rescoring import Arm, GroupTensors, TopTokens, key_token_values, recorded_config, tensors
from openrlhf_ktae.ktae.config import KTAEConfig
from openrlhf_ktae.ktae.explain import GroupExplanation, explain_group
from openrlhf_ktae.run.rollout_record import RecordedGroup

VARIANTS = ("paper", "reference", "calibrated")
COUNTS = ("a", "b", "c", "d", "uses_correct", "uses_wrong")
MEASURES = ("fisher", "association", "information_gain", "strength", "presence", "frequency", "value")
DIGITS = 4


def configs_of(about: Mapping[str, Any]) -> dict[str, KTAEConfig]:
    """Return variant -> configuration: the recorded one for its own variant, own values for the others."""
    recorded = recorded_config(about)
    return {
        name: recorded if name == recorded.variant else KTAEConfig.from_mapping({"variant": name}) for name in VARIANTS
    }


def step_settings(about: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the page says of the run: model, estimator, variant, and options that are not the default."""
    recorded = recorded_config(about)
    variants = configs_of(about).items()
    plain = asdict(KTAEConfig.from_mapping({"variant": recorded.variant}))
    changed = {name: value for name, value in asdict(recorded).items() if value != plain[name]}
    computed = bool(about.get("ktae_enabled", True))
    return {
        "model": str(about.get("model", "")),
        "estimator": str(about.get("estimator", "")),
        "enabled": computed and not about.get("shadow", False),
        "shadow": bool(about.get("shadow", False)),
        "shuffled": computed and bool(about.get("shuffled", False)),
        "stored": bool(about.get("stored", False)),
        "variant": recorded.variant,
        "options": {name: value for name, value in changed.items()},
        "range": {name: config.number("value_range") * config.group_weight(0, 1) for name, config in variants},
        "threshold": recorded.correct_threshold,
    }


def add_to_tops(group: RecordedGroup, tops: Mapping[str, TopTokens]) -> None:
    """Add one group to the tokens of its step (variant -> tokens)."""
    arrays = tensors(group)
    for name, config in configs_of(group.about).items():
        tops[name].add(group, key_token_values(arrays, Arm(name, config)))


def group_data(group: RecordedGroup) -> dict[str, Any]:
    """Return one group as plain lists."""
    arrays = tensors(group)
    place: dict[int, int] = {}
    texts: list[str] = []
    rollouts = []
    for row in group.rows:
        refs, odd = [], {}
        for position, (token, text) in enumerate(zip(row["token_ids"], row["token_texts"], strict=True)):
            if token not in place:
                place[token] = len(texts)
                texts.append(text)
            refs.append(place[token])
            if texts[place[token]] != text:
                odd[position] = text
        rollouts.append(_rollout(row, refs, odd, arrays.threshold))
    data: dict[str, Any] = {
        "step": group.step,
        "group": group.group,
        "prompt": group.prompt,
        "label": group.rows[0]["label"],
        "mixed": arrays.mixed,
        "ids": list(place),
        "texts": texts,
        "rollouts": rollouts,
        "sides": _sides(arrays),
        "variants": {},
    }
    for name, config in configs_of(group.about).items():
        explanation = explain_group(arrays.ids_GT, arrays.mask_GT, arrays.scores_G, config, arrays.special_ids)
        counts, measures = _by_place(explanation, place)
        data["counts"] = counts
        shifts = None
        weight = config.group_weight(*data["sides"]["rollouts"])
        if config.centre:
            k_GT = key_token_values(arrays, Arm(name, config))
            shifts = _shifts(k_GT, arrays, measures, rollouts, weight)
        data["variants"][name] = {"measures": measures, "weight": weight, "shifts": shifts}
    return data


def _rollout(row: Mapping[str, Any], refs: list[int], odd: dict[int, str], threshold: float) -> dict[str, Any]:
    score = row["score"]
    unknown = score is None or score != score
    base = [a for a, acted in zip(row["advantages_without_k"], row["action"], strict=True) if acted]
    return {
        "verdict": "unknown" if unknown else "correct" if score > threshold else "wrong",
        "score": None if unknown else _rounded(score),
        "advantage": _rounded(sum(base) / len(base)) if base else 0.0,
        "refs": refs,
        "texts": odd,
        "skipped": [i for i, acted in enumerate(row["action"]) if not acted],
    }


def _sides(arrays: GroupTensors) -> dict[str, list[int]]:
    """Return rollouts and tokens of correct and of wrong rollouts."""
    known_G = ~np.isnan(arrays.scores_G)
    correct_G = known_G & (arrays.scores_G > arrays.threshold)
    sides = (correct_G, known_G & ~correct_G)
    tokens = [int(arrays.mask_GT[side].sum()) for side in sides]
    return {"rollouts": [int(side.sum()) for side in sides], "tokens": tokens}


def _by_place(explanation: GroupExplanation, place: Mapping[int, int]) -> tuple[list[Any], list[Any]]:
    """Return counts and measures for each distinct id, in the order of `place`; None for ids without a label."""
    counts: list[Any] = [None] * len(place)
    measures: list[Any] = [None] * len(place)
    for row, token in enumerate(explanation.token_id.tolist()):
        if token in place:
            counts[place[token]] = [int(getattr(explanation, name)[row]) for name in COUNTS]
            measures[place[token]] = [_rounded(getattr(explanation, name)[row]) for name in MEASURES]
    return counts, measures


def _shifts(
    k_GT: Any, arrays: GroupTensors, measures: list[Any], rollouts: list[dict[str, Any]], weight: float
) -> list[float]:
    """Return for each rollout what centring subtracted: the same from all of its tokens."""
    shifts = []
    for row, rollout in enumerate(rollouts):
        acted = [i for i in range(len(rollout["refs"])) if arrays.mask_GT[row, i]]
        first = next((i for i in acted if measures[rollout["refs"][i]] is not None), None)
        value = 0.0 if first is None else weight * measures[rollout["refs"][first]][-1] - k_GT[row, first]
        shifts.append(_rounded(value))
    return shifts


def _rounded(value: float) -> float:
    return float(f"{float(value):.{DIGITS}g}")
