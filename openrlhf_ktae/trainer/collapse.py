"""Signs of policy collapse in a step's metrics, and the run's response to them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from openrlhf_ktae.base.errors import TrainingStopped
from openrlhf_ktae.base.faults_config import FaultsConfig
from openrlhf_ktae.base.temporarily import temporarily
from openrlhf_ktae.ktae import repeated_grams
from openrlhf_ktae.trainer.nonfinite import FAULTS_STATE
from openrlhf_ktae.trainer.ppo_utils.failed_rollouts import FAILED
from openrlhf_ktae.trainer.ppo_utils.received import peek, row_of

REPETITION = "faults/repetition"
SPREAD = "group_reward_std"  # the host's metric: standard deviation of the rewards in a group, mean over groups
MIXED_SHARES = ("ktae/mixed_group_share", "credit/mixed_group_share", "dynamic_sampling/kept_share")
IDLE_STEPS = 2
ROWS_AT_ONCE = 64  # rollouts copied at a time: few enough for the processor's cache
NGRAM = 4  # tokens; shorter n-grams repeat in ordinary text


@dataclass(frozen=True)
class Rule:
    """One metric of a step and its limit."""

    option: str
    metrics: tuple[str, ...]
    """Possible names of the metric; the first one that the step logged is used."""
    word: str = "above"
    """Which side of the limit is a breach: `above` or `below`."""

    def beyond(self, value: float, limit: float) -> bool:
        """Return whether a value is a breach."""
        return value > limit if self.word == "above" else value < limit


RULES = (
    Rule("min_entropy", ("entropy_loss",), "below"),
    Rule("max_length", ("rollout/response_length_mean",)),
    Rule("max_repetition", (REPETITION,)),
    Rule("max_kl", ("kl", "ppo_kl")),
    Rule("min_mixed_share", MIXED_SHARES, "below"),
)


class CollapseWatch:
    """Counts, for each rule, the consecutive steps beyond its limit."""

    def __init__(self, config: FaultsConfig) -> None:
        self._config = config
        self._rules = [rule for rule in RULES if getattr(config, rule.option) is not None]
        self._beyond = {rule.option: 0 for rule in self._rules}

    def state(self) -> dict[str, int]:
        """Return the counts, for a checkpoint."""
        return dict(self._beyond)

    def load_state(self, state: Mapping[str, int]) -> None:
        """Restore `state`; rules that were not set then count from 0."""
        self._beyond.update({option: count for option, count in state.items() if option in self._beyond})

    def breaches(self, metrics: Mapping[str, Any]) -> list[str]:
        """Return a sentence for each rule now broken `collapse_patience` times in a row; its count restarts at 0."""
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


class CollapseTrainer:
    """Mixin that checks each step for a collapse, then warns, saves a checkpoint or stops, as the options say."""

    args: Any
    record: Any
    _idle = 0
    """Consecutive steps in which every group has equal rewards: all advantages are 0, nothing is learned."""

    @cached_property
    def collapse(self) -> CollapseWatch:
        """The rules and their counts."""
        return CollapseWatch(self.args.faults.config)

    def training_state(self) -> dict[str, Any]:
        """Add the counts to the checkpoint's state."""
        state = super().training_state()  # type: ignore[misc]
        return {**state, FAULTS_STATE: {**state.get(FAULTS_STATE, {}), "collapse": self.collapse.state()}}

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Restore `training_state`."""
        super().load_training_state(state)  # type: ignore[misc]
        self.collapse.load_state(state.get(FAULTS_STATE, {}).get("collapse", {}))

    def train_step(self, rollout_samples: list[Any], global_step: int) -> tuple[dict[str, Any], int]:
        """Train as the host does; add the shares of failed rollouts and of repetition to the metrics."""
        status, step = super().train_step(rollout_samples, global_step)  # type: ignore[misc]
        failed = [float(peek(sample, "info").get(FAILED, 0.0)) for sample in rollout_samples]
        status[FAILED] = sum(failed) / max(len(failed), 1)
        ids = [row_of(sample, "sequences")[1:] for sample in rollout_samples]
        status[REPETITION] = repetition(ids, [row_of(sample, "action_mask") for sample in rollout_samples])
        return status, step

    def save_logs_and_checkpoints(self, global_step: int, logs_dict: Any = None, client_states: Any = None) -> None:
        """Log and save as the host does, with an extra checkpoint if a rule requires one.

        Raises TrainingStopped if a collapse stops the run.
        """
        breaches = self.collapse.breaches(logs_dict or {})
        action = self.args.faults.config.collapse_action if breaches else "warn"
        try:
            with temporarily(self.args.ckpt, save_steps=1 if action != "warn" else self.args.ckpt.save_steps):
                super().save_logs_and_checkpoints(global_step, logs_dict, client_states)  # type: ignore[misc]
        finally:
            for text in (self._idle_note(logs_dict or {}), *breaches):
                if text:
                    self.record.note(text)
        if action == "stop":
            raise TrainingStopped("; ".join(breaches))

    def _idle_note(self, metrics: Mapping[str, Any]) -> str | None:
        """Return a sentence at the second idle step in a row, once per streak; otherwise None."""
        if metrics.get(SPREAD) is None:
            return None
        self._idle = self._idle + 1 if float(metrics[SPREAD]) == 0 else 0
        if self._idle != IDLE_STEPS:
            return None
        return (
            f"nothing was learned in the last {IDLE_STEPS} steps: rewards are equal in every group. Check the reward, "
            "or how hard the problems are (--algo.dynamic_filtering_enable trains on groups that differ or stops)"
        )


def repetition(rows: Sequence[NDArray[Any]], masks: Sequence[NDArray[Any]], n: int = NGRAM) -> float:
    """Return the share of all responses' n-grams that occurred earlier in the same response.

    Args:
        rows: token ids (T) of each rollout, including the prompt.
        masks: (T) each, nonzero on the policy's own tokens; only these count.
        n: tokens per n-gram.
    """
    repeated = total = 0
    for start in range(0, len(rows), ROWS_AT_ONCE):
        some = rows[start : start + ROWS_AT_ONCE]
        edges = np.cumsum([0, *map(len, some)])
        ids_N = torch.from_numpy(np.concatenate(some, dtype=np.int64))
        own_N = torch.from_numpy(np.concatenate(masks[start : start + ROWS_AT_ONCE]) != 0)
        counts = repeated_grams(ids_N, own_N, edges, n)
        repeated, total = repeated + counts[0], total + counts[1]
    return repeated / total if total else 0.0
