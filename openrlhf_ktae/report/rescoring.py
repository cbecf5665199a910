"""Rescore recorded rollouts: K under other variants and ablations, other estimators' credit, and how they differ.

Legend: `G` rollouts of a group, `T` tokens of its longest response.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openrlhf_ktae.base.text import figure_cell, table_lines
from openrlhf_ktae.credit import CreditBatch, Estimator, estimators
from openrlhf_ktae.figures.statistics import SEED, interval, resampled_means
from openrlhf_ktae.ktae.advantages import compute_key_token_values
from openrlhf_ktae.ktae.batch import above
from openrlhf_ktae.ktae.config import KTAEConfig
from openrlhf_ktae.ktae.explain import rollout_share
from openrlhf_ktae.record.recorded import BadRecord, RecordedGroup
from openrlhf_ktae.record.rollouts import NEEDED

RECORDED = "recorded"
VARIANTS: dict[str, dict[str, Any]] = {name: {"variant": name} for name in ("paper", "reference", "calibrated")}
ABLATIONS: dict[str, dict[str, Any]] = {
    "no association": {"h1": 0.0},
    "no information gain": {"h2": 0.0},
    "no frequency": {"h3": 0.0},
    "point Fisher": {"fisher": "point"},
    "centred": {"centre": True},
    "by failure": {"by_failure": True},
}
SHUFFLED = "shuffled labels"
METRICS = ("mean_abs_k", "nonzero", "mass_share", "sign_flips", "k_correct", "k_wrong", "correlation")


@dataclass(frozen=True)
class Arm:
    """One way to compute K, or the credit of another estimator."""

    name: str
    config: KTAEConfig
    shuffled: bool = False
    """Permute labels within each group first, as a control in which K has no information."""
    estimator: Estimator | None = None
    """An estimator other than KTAE."""
    options: Any = None
    """Options of the estimator."""
    weight: float = 1.0
    stored: bool = False
    """Use the recorded values, as for a user's estimator or one that needs the whole batch."""


@dataclass(frozen=True)
class GroupTensors:
    """A recorded group as arrays, padded with zeros."""

    ids_GT: NDArray[np.int64]
    mask_GT: NDArray[np.bool_]
    k_GT: NDArray[np.float64]
    without_k_GT: NDArray[np.float64]
    scores_G: NDArray[np.float32]
    special_ids: tuple[int, ...]
    threshold: float = 0.0
    """A score above it is correct."""
    figures: Mapping[str, Any] = field(default_factory=dict)
    """The recorded inputs, by names of `credit.NEEDS`."""

    @property
    def mixed(self) -> bool:
        """Whether there are correct and wrong rollouts; with only one label K is 0."""
        known = above(self.scores_G[~np.isnan(self.scores_G)], self.threshold)
        return bool(known.any() and not known.all())


def tensors(group: RecordedGroup) -> GroupTensors:
    """Return the rows of a group as arrays."""
    width = max(len(row["token_ids"]) for row in group.rows)

    def table(name: str, kind: Any) -> NDArray[Any]:
        padded = np.zeros((len(group.rows), width), kind)
        for row, values in zip(padded, group.rows, strict=True):
            row[: len(values[name])] = values[name]
        return padded

    scores = [np.nan if row["score"] is None else row["score"] for row in group.rows]
    return GroupTensors(
        ids_GT=table("token_ids", np.int64),
        mask_GT=table("action", np.bool_),
        k_GT=table("k", np.float64),
        without_k_GT=table("advantages_without_k", np.float64),
        scores_G=np.array(scores, np.float32),
        special_ids=tuple(group.about.get("special_ids", ())),
        threshold=float((group.about.get("ktae") or {}).get("correct_threshold", 0.0)),
        figures={name: table(name, np.float64) for name in NEEDED if name in group.rows[0]},
    )


def key_token_values(group: GroupTensors, arm: Arm, seed: int = SEED) -> NDArray[np.float64]:
    """Return K, or an estimator's credit, (G, T) of one arm."""
    if arm.stored:
        return group.k_GT
    scores_G = np.random.default_rng(seed).permutation(group.scores_G) if arm.shuffled else group.scores_G
    groups_G = np.zeros(len(scores_G), np.int64)
    if arm.estimator is not None:
        labels = scores_G, groups_G, group.without_k_GT, group.special_ids, group.threshold
        batch = CreditBatch.from_tables(group.ids_GT, group.mask_GT, *labels, **group.figures)
        added_N = arm.estimator(batch, arm.options).added_N
        return arm.weight * added_N.view(group.ids_GT.shape).numpy().astype(np.float64)
    k_GT = compute_key_token_values(group.ids_GT, group.mask_GT, scores_G, groups_G, arm.config, group.special_ids)
    return arm.weight * k_GT.numpy().astype(np.float64)


def recorded_config(about: Mapping[str, Any]) -> KTAEConfig:
    """Return the configuration that a step was recorded with. Raises BadRecord if this version does not support it."""
    try:
        return KTAEConfig.from_mapping(about.get("ktae") or {})
    except (ValueError, TypeError) as error:
        raise BadRecord(f"the record's KTAE options are not supported by this version ({error})") from None


def recorded_arm(about: Mapping[str, Any], name: str = RECORDED) -> Arm:
    """Return the arm that a step was recorded with: KTAE, or another estimator with its options.

    Raises BadRecord if this version does not know its options.
    """
    config, credit = recorded_config(about), about.get("credit") or {}
    if credit.get("name", "ktae") == "ktae":
        return Arm(name, config, weight=float(credit.get("weight", 1.0)))
    one = estimators().get(credit["name"])
    if one is None or one.across_groups:
        return Arm(name, config, stored=True)
    try:
        options = one.options(**credit.get("options", {}))
    except (ValueError, TypeError) as error:
        raise BadRecord(f"the record's options of {one.name} are not supported by this version ({error})") from None
    return Arm(name, config, estimator=one, options=options, weight=float(credit.get("weight", 1.0)))


def other_arms(figures: Iterable[str]) -> list[Arm]:
    """Return an arm for each estimator, except KTAE, whose inputs are all among `figures`."""
    given = set(figures)
    usable = [one for name, one in estimators().items() if name != "ktae" and set(one.needs) <= given]
    return [Arm(one.name, KTAEConfig(), estimator=one) for one in usable]


def built_in(ablations: bool) -> list[str]:
    """Return the names that `arms_of` may give to arms; with `ablations`, of the ablations too."""
    return [RECORDED, *VARIANTS, *((*ABLATIONS, SHUFFLED) if ablations else ()), *estimators()]


def arms_of(
    recorded: Arm, ablations: bool, extra: Mapping[str, Mapping[str, Any]], figures: Iterable[str] = ()
) -> list[Arm]:
    """Return arms: the recorded one, the variants, optionally ablations and a control, other estimators, and `extra`.

    Raises ValueError if KTAE refuses an option of `extra`.
    """
    chosen, config = [recorded], recorded.config
    same = {"correct_threshold": config.correct_threshold}
    chosen += [Arm(name, KTAEConfig.from_mapping({**same, **options})) for name, options in VARIANTS.items()]
    if ablations:
        own = {name: getattr(config, name) for name in KTAEConfig.__dataclass_fields__}
        chosen += [Arm(name, KTAEConfig.from_mapping({**own, **change})) for name, change in ABLATIONS.items()]
        chosen.append(Arm(SHUFFLED, config, shuffled=True))
    chosen += other_arms(figures)
    return chosen + [Arm(name, KTAEConfig.from_mapping({**same, **options})) for name, options in extra.items()]


def rescore(groups: Iterable[RecordedGroup], ablations: bool, extra: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Compute every arm on every group; return metrics with intervals over groups, and top tokens.

    `reproduced` is the largest difference between recorded and recomputed K: near 0 unless the code has changed.

    Raises:
        BadRecord: there is no group, a record is invalid, or the KTAE options of a group differ from the first's.
        ValueError: KTAE refuses an option of `extra`.
    """
    arms: list[Arm] = []
    first: RecordedGroup | None = None
    rows: dict[str, list[list[float]]] = {}
    shares: dict[str, list[float]] = {}
    tokens: dict[str, TopTokens] = {}
    reproduced, count, mixed, steps = 0.0, 0, 0, set()
    for group in groups:
        arrays, recorded = tensors(group), recorded_arm(group.about)
        if first is None:
            first, arms = group, arms_of(recorded, ablations, extra, arrays.figures)
        elif recorded != arms[0]:
            raise BadRecord(_other_options(group, recorded, first, arms[0]))
        count, mixed = count + 1, mixed + arrays.mixed
        steps.add(group.step)
        values = {arm.name: key_token_values(arrays, arm, SEED + count) for arm in arms}
        for name, k_GT in values.items():
            rows.setdefault(name, []).append(_figures(k_GT, values[RECORDED], arrays))
            shares.setdefault(name, []).append(rollout_share(k_GT, arrays.mask_GT) if arrays.mixed else np.nan)
            tokens.setdefault(name, TopTokens()).add(group, k_GT)
        trained = group.about.get("ktae_enabled", True) or group.about.get("credit")
        if trained and not group.about.get("shuffled"):
            difference = float(np.abs(values[RECORDED] - arrays.k_GT).max(initial=0.0))
            reproduced = float(np.maximum(reproduced, difference))  # NaN stays NaN
    if not arms:
        raise BadRecord("there are no recorded groups")
    table = {}
    for arm in arms:
        values_IM = np.column_stack([rows[arm.name], shares[arm.name]])
        means_RM = resampled_means(values_IM)
        figures = {}
        for column, metric in enumerate((*METRICS, "rollout_share")):
            known = values_IM[:, column][~np.isnan(values_IM[:, column])]
            value = float(known.mean()) if known.size else None
            figures[metric] = {"value": value, "ci95": list(interval(means_RM[:, column])) if known.size else None}
        table[arm.name] = {**figures, "highest": tokens[arm.name].top(5), "lowest": tokens[arm.name].top(5, False)}
    return {"groups": count, "mixed_groups": mixed, "steps": sorted(steps), "reproduced": reproduced, "arms": table}


def _other_options(group: RecordedGroup, arm: Arm, first: RecordedGroup, expected: Arm) -> str:
    now, before = ({**asdict(one.config), **_credit_options(one)} for one in (arm, expected))
    changes = [f"{name} {now[name]} instead of {before.get(name)}" for name in now if now[name] != before.get(name)]
    return (
        f"step {group.step} was recorded with different KTAE options from step {first.step} ({', '.join(changes)}); "
        "give runs, or recorded steps, with equal options at a time"
    )


def _credit_options(arm: Arm) -> dict[str, Any]:
    own = {} if arm.options is None else asdict(arm.options)
    estimator = "recorded" if arm.stored else arm.estimator.name if arm.estimator else "ktae"
    return {"estimator": estimator, "--algo.credit.weight": arm.weight, **own}


def _figures(k_GT: NDArray[np.float64], first_GT: NDArray[np.float64], group: GroupTensors) -> list[float]:
    """Return `METRICS` of one group; NaN where there is nothing to average or correlate."""
    acted = group.mask_GT
    k, a, first = k_GT[acted], group.without_k_GT[acted], first_GT[acted]
    if k.size == 0:
        return [np.nan] * len(METRICS)
    mass = float(np.abs(k).sum() + np.abs(a).sum())
    spread = float(k.std() * first.std())
    correct_G = above(group.scores_G, group.threshold)
    sides = [k_GT[acted & rows[:, None]] for rows in (correct_G, (~correct_G & ~np.isnan(group.scores_G)))]
    return [
        float(np.abs(k).mean()),
        float((k != 0).mean()),
        float(np.abs(k).sum()) / mass if mass else 0.0,
        float((a * (a + k) < 0).mean()),
        *(float(side.mean()) if side.size else np.nan for side in sides),
        float(((k - k.mean()) * (first - first.mean())).mean() / spread) if spread else np.nan,
    ]


class TopTokens:
    """Mean K of each id over all groups, shown by its text."""

    def __init__(self) -> None:
        self._sums: defaultdict[int, float] = defaultdict(float)
        self._counts: Counter[int] = Counter()
        self._texts: dict[int, str] = {}

    def add(self, group: RecordedGroup, k_GT: NDArray[np.float64]) -> None:
        """Add one group."""
        for row, k_T in zip(group.rows, k_GT, strict=True):
            for token, text, acted, k in zip(row["token_ids"], row["token_texts"], row["action"], k_T, strict=False):
                if acted:
                    self._sums[token] += float(k)
                    self._counts[token] += 1
                    self._texts.setdefault(token, text)

    def top(self, n: int, largest: bool = True) -> list[dict[str, Any]]:
        """Return the `n` ids with the highest (or lowest) mean K."""
        means = {token: total / self._counts[token] for token, total in self._sums.items()}
        order = sorted(means, key=lambda i: (means[i] * (-1 if largest else 1), i))
        return [{"id": i, "text": self._texts[i], "k": round(means[i], 4), "count": self._counts[i]} for i in order[:n]]


def markdown(result: Mapping[str, Any]) -> str:
    """Return the comparison as a Markdown table."""
    head = "arm,mean \\|K\\|,K ≠ 0,share of mass,sign flips,K right,K wrong,with recorded,level".split(",")
    arms = result["arms"].items()
    rows = [[name, *(_cell(arm[metric], metric) for metric in (*METRICS, "rollout_share"))] for name, arm in arms]
    lines = [*table_lines(head, rows), "", *_notes(result)]
    for name, arm in arms:
        sides = [", ".join(f"{one['text'].strip()!r} {one['k']:+.2f}" for one in arm[s]) for s in ("highest", "lowest")]
        lines.append(f"- {name}: highest {sides[0]}; lowest {sides[1]}")
    return "\n".join(lines) + "\n"


def _notes(result: Mapping[str, Any]) -> Iterator[str]:
    steps = result["steps"]
    yield (
        f"{result['groups']} groups ({result['mixed_groups']} with both labels) of {len(steps)} steps "
        f"({steps[0]} to {steps[-1]}); [95 % interval over groups]. With recorded: correlation of K, token by token. "
        "Level: share of K's sum of squares that is the same for a whole rollout."
    )
    yield ""
    yield f"Recorded K is reproduced to {result['reproduced']:.1e}."
    yield ""


def _cell(figure: Mapping[str, Any], metric: str) -> str:
    if metric in ("nonzero", "mass_share", "sign_flips", "rollout_share") and figure["value"] is not None:
        return f"{100 * figure['value']:.1f} %"
    return figure_cell(figure["value"], *figure["ci95"] or (), form=".3f")
