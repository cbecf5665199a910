"""Signs that a policy collapses, from the figures of a step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from openrlhf_ktae.base.faults_config import FaultsConfig
from openrlhf_ktae.ktae import repeated_grams

REPETITION = "faults/repetition"
SPREAD = "group_reward_std"  # the host's figure: standard deviation of the rewards of a group, mean over groups
IDLE_STEPS = 2
ROWS_AT_ONCE = 64  # rollouts whose tokens are copied together; the next ones take the same memory, in the cache
NGRAM = 4  # tokens; a shorter one repeats in ordinary text


@dataclass(frozen=True)
class Rule:
    """One figure of a step and its limit."""

    option: str
    metrics: tuple[str, ...]
    """Names of the figure; the first that a step has counts."""
    beyond: Callable[[float, float], bool]
    word: str


def _above(value: float, limit: float) -> bool:
    return value > limit


def _below(value: float, limit: float) -> bool:
    return value < limit


RULES = (
    Rule("min_entropy", ("entropy_loss",), _below, "below"),
    Rule("max_length", ("rollout/response_length_mean",), _above, "above"),
    Rule("max_repetition", (REPETITION,), _above, "above"),
    Rule("max_kl", ("kl", "ppo_kl"), _above, "above"),
    Rule(
        "min_mixed_share",
        ("ktae/mixed_group_share", "credit/mixed_group_share", "dynamic_sampling/kept_share"),
        _below,
        "below",
    ),
)


class CollapseWatch:
    """Counts, for each rule, the steps in a row beyond its limit."""

    def __init__(self, config: FaultsConfig) -> None:
        self._config = config
        self._rules = [rule for rule in RULES if getattr(config, rule.option) is not None]
        self._beyond = {rule.option: 0 for rule in self._rules}

    def state(self) -> dict[str, int]:
        """Return the counts, for a checkpoint."""
        return dict(self._beyond)

    def load_state(self, state: Mapping[str, int]) -> None:
        """Go on from `state`; rules that are new since then count from 0."""
        self._beyond.update({option: count for option, count in state.items() if option in self._beyond})

    def breaches(self, metrics: Mapping[str, Any]) -> list[str]:
        """Return a sentence for each rule whose patience ends with this step; it counts from 0 again then."""
        found = []
        for rule in self._rules:
            name = next((name for name in rule.metrics if metrics.get(name) is not None), None)
            if name is None:
                continue
            value, limit = float(metrics[name]), float(getattr(self._config, rule.option))
            self._beyond[rule.option] = self._beyond[rule.option] + 1 if rule.beyond(value, limit) else 0
            if self._beyond[rule.option] >= self._config.collapse_patience:
                found.append(
                    f"--faults.{rule.option} {limit:g}: {name} has been {rule.word} it for {self._beyond[rule.option]} "
                    f"steps and is {value:.4g}"
                )
                self._beyond[rule.option] = 0
        return found


class IdleWatch:
    """Counts steps in a row in which the rewards of no group differ: every advantage is 0, nothing is learned."""

    def __init__(self) -> None:
        self._idle = 0

    def note(self, metrics: Mapping[str, Any]) -> str | None:
        """Return a sentence after the second such step, once until a step is another."""
        if metrics.get(SPREAD) is None:
            return None
        self._idle = self._idle + 1 if float(metrics[SPREAD]) == 0 else 0
        if self._idle != IDLE_STEPS:
            return None
        return (
            f"nothing was learned in the last {IDLE_STEPS} steps: the rewards of no group differ. Look at the reward, "
            "or at how hard the problems are (--algo.dynamic_filtering_enable trains on groups that differ or stops)"
        )


def repetition(rows: Sequence[torch.Tensor], n: int = NGRAM, masks: Sequence[torch.Tensor] | None = None) -> float:
    """Return the share of n-grams that were there before in the same response, over all responses.

    Args:
        rows: response token ids (T) of each rollout.
        n: tokens of an n-gram.
        masks: which of them are the policy's own, (T) each; left out, all.
    """
    edges_B = np.concatenate([[0], np.cumsum([ids.numel() for ids in rows])]).astype(np.int64)
    blocks = [slice(i, min(i + ROWS_AT_ONCE, len(rows))) for i in range(0, len(rows), ROWS_AT_ONCE)]
    widest = max((int(edges_B[block.stop] - edges_B[block.start]) for block in blocks), default=0)
    ids_N, own_N = torch.empty(widest, dtype=torch.int64), torch.ones(widest, dtype=torch.bool)
    given_N = None if masks is None or not rows else torch.empty(widest, dtype=masks[0].dtype)
    repeated = total = 0
    for block in blocks:
        edges = edges_B[block.start : block.stop + 1] - edges_B[block.start]
        here = slice(int(edges[-1]))
        torch.cat(list(rows[block]), out=ids_N[here])
        if masks is not None and given_N is not None:
            torch.cat(list(masks[block]), out=given_N[here])
            np.not_equal(given_N[here].numpy(), 0, out=own_N[here].numpy())
        counts = repeated_grams(ids_N[here], own_N[here], edges, n)
        repeated, total = repeated + counts[0], total + counts[1]
    return repeated / total if total else 0.0
