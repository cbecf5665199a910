"""Options of KTAE, with the origin and range of each, and the values that a variant gives to unset ones."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any, Literal, get_args

Variant = Literal["paper", "reference", "calibrated"]
FisherKind = Literal["two_sided", "point"]
TermFrequency = Literal["relative", "count"]

PAPER_K1 = 2.0
"""BM25 saturation, appendix of the paper."""
PAPER_B = 0.5
"""BM25 length normalisation, appendix of the paper."""
PUBLISHED_EPSILON = 1e-5
"""Keeps the published ratio of frequencies finite when an id is absent from one side."""
CALIBRATED_P_MAX = 0.1
"""With 4 correct and 4 wrong, only perfect separators (p = 0.029) pass; with 8 and 8, so does 7/8 against 1/8."""
CALIBRATED_NOISE_BUDGET = 0.01
"""Expected |K| per token when labels are unrelated to tokens, as a share of the range."""
CALIBRATED_SCALE = 0.25
"""tanh(1 / (2 * 0.25)) = 0.96: a perfect separator of a large group nearly reaches the full range."""

KEPT_RESOLVED = 64
"""Resolved configurations kept in the cache."""


@dataclass(frozen=True)
class KTAEConfig:
    """Every option of KTAE. `None` means the variant's own value, which `resolved()` fills in.

    Raises `ValueError` if an option is out of range or has no effect with the chosen variant. The message names the
    option, its value and the way out.
    """

    variant: Variant = "paper"
    """`paper`: the formulas of arXiv 2505.16826. `reference`: the arithmetic of its code, repaired.
    `calibrated`: the same ingredients with a guaranteed noise level (derived in `calibrated.py`)."""

    h1: float | None = None
    """Weight of the association exp(-2 p), >= 0. Variant default: 1."""

    h2: float | None = None
    """Weight of the information gain, >= 0. Variant default: 2 (paper), 1 (reference, calibrated)."""

    h3: float | None = None
    """Weight of the frequency part of the direction, >= 0. Variant default: 1. In `calibrated` it is the exponent
    of the veto by contrary frequencies."""

    k1: float = PAPER_K1
    """BM25 saturation, >= 0."""

    b: float = PAPER_B
    """BM25 length normalisation, 0 to 1."""

    fisher: FisherKind = "two_sided"
    """`two_sided`: p-value of this table or any as extreme (text of the paper). `point`: probability of
    exactly this table (its Eq. 4)."""

    term_frequency: TermFrequency | None = None
    """Input of BM25 in `paper` and `reference`: the `relative` share of a side's tokens (published code)
    or the `count` (textbook BM25). Variant default: `relative`. `calibrated` uses smoothed counts per rollout."""

    ratio_epsilon: float | None = None
    """Added to both denominators of the frequency ratio in `paper` and `reference`, > 0. Variant default: 1e-5."""

    p_max: float | None = None
    """`calibrated`: K is 0 if Fisher's p is this or larger, in (0, 1]. Variant default: 0.1."""

    noise_budget: float | None = None
    """`calibrated`: largest expected |K| per token under random labels, as a share of `value_range`, in
    (0, 1]. Variant default: 0.01."""

    correct_threshold: float = 0.0
    """A rollout is correct if its score is above this. NaN scores are always unknown."""

    scale: float | None = None
    """Divisor in K = value_range * tanh(x / (2 * scale)), > 0. Variant default: 1 (paper: sigmoid(x) - 0.5),
    h1 + h2 (reference), 0.25 (calibrated)."""

    value_range: float | None = None
    """Largest |K| before `weight`, > 0. Variant default: 0.5 (paper), 1 (reference, calibrated)."""

    weight: float = 1.0
    """Factor on K in the sum, >= 0. With 0 the advantages equal the rollout advantages, bit for bit."""

    centre: bool = False
    """Subtract from K its mean over the rollout's action tokens (without excluded ids), so that K moves credit
    between tokens and never adds to the rollout. |K| may then reach twice `value_range`."""

    by_failure: bool = False
    """Multiply K of a group by twice the group's share of wrong rollouts, since right answers to hard problems teach
    most. The factor is 1 with equally many right and wrong rollouts."""

    excluded_ids: tuple[int, ...] = ()
    """Ids that never get a value, in addition to the special ids given with the call."""

    def __post_init__(self) -> None:
        ids = integers("excluded_ids", self.excluded_ids, "give a sequence such as (0, 2)")
        object.__setattr__(self, "excluded_ids", ids)
        for option, kinds in (("variant", Variant), ("fisher", FisherKind)):
            _refuse_unknown_choice(option, getattr(self, option), get_args(kinds))
        if self.term_frequency is not None:
            _refuse_unknown_choice("term_frequency", self.term_frequency, get_args(TermFrequency))
        for option in ("centre", "by_failure"):
            if not isinstance(value := getattr(self, option), bool):
                raise ValueError(f"{option}={value!r} must be True or False")
        for option in ("h1", "h2", "h3", "k1", "weight"):
            _refuse_outside(option, getattr(self, option), low=0.0)
        for option in ("scale", "value_range", "ratio_epsilon"):
            _refuse_outside(option, getattr(self, option), low=0.0, low_open=True)
        for option in ("p_max", "noise_budget"):
            _refuse_outside(option, getattr(self, option), low=0.0, high=1.0, low_open=True)
        _refuse_outside("b", self.b, low=0.0, high=1.0)
        _refuse_outside("correct_threshold", self.correct_threshold)
        self._refuse_without_effect()

    def _refuse_without_effect(self) -> None:
        calibrated = self.variant == "calibrated"
        idle = ("term_frequency", "ratio_epsilon") if calibrated else ("p_max", "noise_budget")
        for option in idle:
            if getattr(self, option) is not None:
                raise ValueError(
                    f"{option}={getattr(self, option)!r} has no effect with variant={self.variant!r}: "
                    f"leave it unset or choose {'paper or reference' if calibrated else 'calibrated'}"
                )
        if self.resolved().scale == 0:
            raise ValueError(
                f"h1={self.h1!r} and h2={self.h2!r} leave K without scale with variant={self.variant!r}: "
                "set one of them above 0, or set weight=0 to switch K off"
            )

    def resolved(self) -> KTAEConfig:
        """Return this configuration with every `None` replaced by the variant's own value."""
        return _resolved(self)

    def number(self, option: str) -> float:
        """Return the value of a numeric option, or the variant's own if unset; 0 if the variant has none."""
        return float(getattr(self.resolved(), option) or 0.0)

    def group_weight(self, correct: int, wrong: int) -> float:
        """Return the factor on K of a group with these numbers of correct and wrong rollouts."""
        return self.weight * (2.0 * wrong / max(correct + wrong, 1)) if self.by_failure else self.weight

    @classmethod
    def from_mapping(cls, options: Mapping[str, Any]) -> KTAEConfig:
        """Build from names and values; an unknown name raises `ValueError` with the nearest known name."""
        known = [field.name for field in fields(cls)]
        for name in options:
            if name not in known:
                near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.0)[0]
                raise ValueError(f"unknown KTAE option {name!r}: did you mean {near!r}? (all: {', '.join(known)})")
        return cls(**options)


@lru_cache(maxsize=KEPT_RESOLVED)
def _resolved(config: KTAEConfig) -> KTAEConfig:
    own = _own_values(config.variant)
    chosen = {name: value for name, value in own.items() if getattr(config, name) is None}
    h1, h2 = (chosen.get(name, getattr(config, name)) for name in ("h1", "h2"))
    if config.scale is None and config.variant == "reference":
        chosen["scale"] = h1 + h2
    changed = copy(config)  # does not run `__post_init__`, which itself needs resolved values
    vars(changed).update(chosen)
    return changed


def _own_values(variant: str) -> dict[str, Any]:
    shared: dict[str, Any] = {"h1": 1.0, "h3": 1.0}
    if variant == "calibrated":
        return shared | {
            "h2": 1.0,
            "p_max": CALIBRATED_P_MAX,
            "noise_budget": CALIBRATED_NOISE_BUDGET,
            "scale": CALIBRATED_SCALE,
            "value_range": 1.0,
        }
    shared |= {"term_frequency": "relative", "ratio_epsilon": PUBLISHED_EPSILON}
    if variant == "reference":
        return shared | {"h2": 1.0, "value_range": 1.0}
    return shared | {"h2": 2.0, "scale": 1.0, "value_range": 0.5}


def integers(name: str, ids: Any, advice: str) -> tuple[int, ...]:
    """Return `ids` as integers. Raises ValueError with the `advice` unless all of them are whole numbers."""
    try:
        plain = tuple(int(one) for one in ids)
        whole = all(one == given for one, given in zip(plain, ids, strict=True))
    except (TypeError, ValueError):
        whole = False
    if not whole or isinstance(ids, str):
        raise ValueError(f"{name}={ids!r} must hold integers only; {advice}")
    return plain


def _refuse_unknown_choice(option: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        near = difflib.get_close_matches(str(value), choices, n=1, cutoff=0.0)
        raise ValueError(f"{option}={value!r} is not one of {', '.join(choices)}: did you mean {near[0]!r}?")


def _refuse_outside(
    option: str, value: Any, low: float = -math.inf, high: float = math.inf, low_open: bool = False
) -> None:
    """Raise ValueError unless `value` is a finite number within the bounds; `None` (the variant's own) passes."""
    if value is None and option not in ("k1", "b", "weight", "correct_threshold"):
        return
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not number or not low <= value <= high or (low_open and value == low):
        lower = "" if low == -math.inf else f" {'above' if low_open else 'of at least'} {low:g}"
        upper = "" if high == math.inf else f" and at most {high:g}"
        raise ValueError(f"{option}={value!r} must be a finite number{lower}{upper}")
