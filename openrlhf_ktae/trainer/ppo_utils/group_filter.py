"""DAPO's dynamic sampling, the filter: which groups of rollouts are informative, and a step's statistics.

DAPO (arXiv 2503.14476, section 3.2) drops prompts whose rollouts are all right or all wrong, because every
group-relative advantage is then 0. Here a group is kept if its raw scores differ at all, on any scale.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from openrlhf_ktae.ktae import above

EQUAL = 1e-6  # scores closer than this are equal: float32 sums of a few parts
LEAST_KEPT_SHARE = 0.25  # a wave is at most four times the missing groups, even if fewer were kept before
BINS = ("0", "0-25 %", "25-50 %", "50-75 %", "75-100 %", "1")
HOST_RANGE = (0.0, 1.0)


@dataclass(frozen=True)
class DynamicFilteringConfig:
    """Options in addition to the host's `--algo.dynamic_filtering_enable` and `--algo.dynamic_filtering_range`."""

    dynamic_filtering_max_gen_batches: int = 10
    """Prompts that one step may draw, in units of --rollout.batch_size; 0 means until the data run out. At the limit
    the step trains on as many of its groups as divide among ranks; without any, the run stops with the reason."""

    dynamic_filtering_skip_solved: int = 0
    """Skip a prompt after all its rollouts were right this many times in a row; 0 never skips."""


@dataclass(frozen=True)
class GroupVerdict:
    """The outcome of one prompt's rollouts."""

    known: int
    """Rollouts with a score and at least one action token."""
    correct: int
    """Known rollouts with a score above the threshold."""
    informative: bool
    """Whether the group is trained on."""

    @property
    def pass_rate(self) -> float:
        """Share of correct rollouts among the known; NaN if none is known."""
        return self.correct / self.known if self.known else math.nan

    @property
    def solved(self) -> bool:
        """Whether there are known rollouts and all are right."""
        return 0 < self.known == self.correct

    @property
    def hopeless(self) -> bool:
        """Whether there are known rollouts and all are wrong."""
        return self.known > 0 == self.correct


def judge_group(
    scores: Sequence[float], acted: Sequence[bool], threshold: float, mean_range: Sequence[float] = HOST_RANGE
) -> GroupVerdict:
    """Judge the G rollouts of one prompt.

    Args:
        scores: raw scores in float32, never shaped rewards; NaN for an unknown verdict.
        acted: whether a rollout has an action token; others are ignored.
        threshold: a score above it is correct.
        mean_range: the mean score must lie strictly between the two. The host's default (0, 1) is ignored:
            for scores of 0 and 1 it only requires differing scores, and for others it would drop good groups.
    """
    values = [score for score, active in zip(scores, acted, strict=True) if active and not math.isnan(score)]
    informative = len(values) > 1 and max(values) - min(values) > EQUAL
    if informative and tuple(mean_range) != HOST_RANGE:
        informative = mean_range[0] < sum(values) / len(values) < mean_range[1]
    return GroupVerdict(len(values), int(above(np.array(values, np.float32), threshold).sum()), informative)


@dataclass
class SamplingTally:
    """A step's sampling statistics. `drawn` and `skipped` count prompts, `waves` counts calls of the engines."""

    drawn: int = 0
    skipped: int = 0
    waves: int = 0
    verdicts: list[GroupVerdict] = field(default_factory=list)

    @property
    def kept(self) -> int:
        """Groups that can be trained on."""
        return sum(verdict.informative for verdict in self.verdicts)

    @property
    def kept_share(self) -> float:
        """Share of the judged groups that can be trained on; NaN if none was judged yet."""
        return self.kept / len(self.verdicts) if self.verdicts else math.nan

    def wave(self, missing: int, expected_share: float) -> int:
        """Return how many prompts to draw so that about `missing` groups are kept.

        `expected_share` is the kept share of earlier steps, used for the first wave; if NaN, `missing` are drawn.
        """
        share = self.kept_share if self.verdicts else expected_share
        return math.ceil(missing / max(share, LEAST_KEPT_SHARE)) if share == share else missing

    def metrics(self) -> dict[str, float]:
        """Return scalars of the step. Shares are over judged groups; the pass rate is the mean over groups."""
        metrics = {
            "dynamic_sampling/prompts_drawn": float(self.drawn),
            "dynamic_sampling/prompts_skipped": float(self.skipped),
            "dynamic_sampling/waves": float(self.waves),
        }
        rates = [verdict.pass_rate for verdict in self.verdicts if verdict.known]
        if self.verdicts:
            count = len(self.verdicts)
            metrics |= {
                "dynamic_sampling/kept_share": self.kept_share,
                "dynamic_sampling/solved_share": sum(v.solved for v in self.verdicts) / count,
                "dynamic_sampling/hopeless_share": sum(v.hopeless for v in self.verdicts) / count,
                "dynamic_sampling/unknown_share": sum(not v.known for v in self.verdicts) / count,
            }
        if rates:
            metrics["dynamic_sampling/pass_rate"] = sum(rates) / len(rates)
        return metrics

    def histogram(self) -> str:
        """Return the judged groups by their share of correct rollouts, such as `0: 12, 25-50 %: 3, unknown: 1`."""
        bins = Counter(_bin(verdict) for verdict in self.verdicts)
        return ", ".join(f"{name}: {bins[name]}" for name in (*BINS, "unknown") if bins[name]) or "none judged"

    def advice(self) -> str:
        """Return advice that fits the groups seen."""
        count = len(self.verdicts)
        if sum(not verdict.known for verdict in self.verdicts) * 2 > count:
            return "Most rollouts have no score: look at --data.label_key and at the reward."
        if sum(verdict.hopeless for verdict in self.verdicts) * 2 > count:
            return (
                "Most prompts are never answered right: give easier prompts or a longer --rollout.max_new_tokens, "
                "check --data.label_key, or raise --rollout.n_samples_per_prompt."
            )
        if sum(verdict.solved for verdict in self.verdicts) * 2 > count:
            return "Most prompts are always answered right: give harder prompts."
        return (
            "Raise --algo.dynamic_filtering_max_gen_batches, or lower --rollout.batch_size or --train.batch_size so "
            "that a step takes fewer groups."
        )


def _bin(verdict: GroupVerdict) -> str:
    if not verdict.known:
        return "unknown"
    if verdict.solved:
        return BINS[-1]
    return BINS[0] if verdict.hopeless else BINS[1 + int(verdict.pass_rate * 4)]
