"""Departure from the host: dynamic sampling that fills its batch, reports statistics, and terminates.

The host's own loop draws one prompt for each dropped group, without limit, and filters by the mean score. Here the
host generates waves without filtering. Groups are judged after each wave, until the batch is full, the cap is reached
or the data run out. Surplus groups stay in the host's buffer for the next step, and are then one update older.
"""

import hashlib
import math
from collections.abc import Iterator
from typing import Any

from openrlhf.trainer.ppo_utils.experience import Experience

from openrlhf_ktae.base.batches import rollout_unit, trainable
from openrlhf_ktae.base.errors import TrainingStopped
from openrlhf_ktae.trainer.ppo_utils.continuations import ContinuingGenerator
from openrlhf_ktae.trainer.ppo_utils.failed_rollouts import SurvivingGenerator
from openrlhf_ktae.trainer.ppo_utils.group_filter import DynamicFilteringConfig, SamplingTally, judge_group
from openrlhf_ktae.trainer.ppo_utils.light_samples import LightSamplesGenerator
from openrlhf_ktae.trainer.ppo_utils.raw_scores import plain_scores
from openrlhf_ktae.trainer.ppo_utils.received import peek
from openrlhf_ktae.trainer.ppo_utils.rollout_batch import RolloutBatch
from openrlhf_ktae.trainer.staleness import TOO_OLD, without_stale


class DynamicSamplesGenerator(SurvivingGenerator, ContinuingGenerator, LightSamplesGenerator):
    """The host's generator with dynamic sampling; unchanged without `--algo.dynamic_filtering_enable`."""

    KEPT = "_carried _expected_share _batches_of_episode batches _pass_rates prompts_seen"
    _sample_buffer: list[Experience]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.filtering: DynamicFilteringConfig = self.args.algo.dynamic_filtering_config
        self.group_size: int = self.args.rollout.n_samples_per_prompt
        self._pass_rates: dict[int, tuple[int, int, int]] = {}
        """For each prompt judged in the run: known rollouts, correct rollouts, how often in a row it was solved."""
        self.prompts_seen = 0  # drawn or skipped in the run
        self.batches = 0  # batches returned so far, one per step of the run
        self._too_old = 0
        self._tally = SamplingTally()
        self._carried: list[Experience] = []  # groups that wait for the next episode
        self._expected_share = math.nan
        self._batches_of_episode = 0

    @property
    def left_over(self) -> int:
        """Rollouts that were sampled but never trained on, because they are too few for a step."""
        return len(self._carried)

    def generate_samples(self, **generate_kwargs: Any) -> tuple[list[Experience], float | None, int, bool]:
        """Return a step's rollouts (a `RolloutBatch`), percentage of groups kept, prompts drawn, whether data ended.

        Raises TrainingStopped if the cap is reached without enough groups for a step, or an episode gives no step.
        """
        if not self.args.algo.dynamic_filtering_enable:
            return super().generate_samples(**generate_kwargs)
        self._tally, seen_before = SamplingTally(), self.prompts_seen
        self._drop_stale()
        samples, _, drawn, exhausted = super().generate_samples(**generate_kwargs)
        kept = trainable(len(samples), self.args)
        if exhausted:
            self._carried = samples[kept:]
        else:
            self._sample_buffer = samples[kept:] + self._sample_buffer
        self._batches_of_episode += kept > 0
        if kept == 0 and (not exhausted or self._batches_of_episode == 0):
            raise TrainingStopped(self._stop_message(len(samples), exhausted))
        if exhausted:
            self._batches_of_episode = 0
        if self._tally.verdicts:
            self._expected_share = self._tally.kept_share
        share = self._tally.kept_share
        batch = self._batch(samples[:kept], seen_before)
        return batch, 100 * share if share == share else None, drawn, exhausted

    def _drop_stale(self) -> None:
        """Drop groups of earlier steps whose age now exceeds `--train.max_staleness` steps."""
        for name in ("_sample_buffer", "_carried"):
            kept = getattr(self, name, None)
            if kept:
                young = without_stale(kept, self.batches, self.args.train.max_staleness)
                self._too_old += len(kept) - len(young)
                setattr(self, name, young)

    def _batch(self, samples: list[Experience], seen_before: int) -> RolloutBatch:
        """Return the rollouts with the metrics of their sampling."""
        if not samples:
            return RolloutBatch()
        metrics = self._tally.metrics() | {"dynamic_sampling/surplus_groups": float(self._surplus())}
        if self.args.train.max_staleness is not None:
            metrics[TOO_OLD] = float(self._too_old)
            self._too_old = 0
        total = len(self.prompts_dataloader) * self.args.train.num_episodes
        return RolloutBatch(samples, metrics, seen_before / max(total, 1))

    def _generate_vllm(
        self, dataloader_iter: Any, num_prompts: int, dynamic_filtering: bool, **generate_kwargs: Any
    ) -> tuple[list[Experience], int, bool]:
        """Generate waves until the step has enough groups; return kept rollouts, prompts drawn, whether data ended."""
        if not dynamic_filtering:
            return super()._generate_vllm(dataloader_iter, num_prompts, dynamic_filtering, **generate_kwargs)
        kept, self._carried = self._carried, []
        source = self._not_yet_solved(dataloader_iter)
        wanted = (num_prompts - self._surplus()) * self.group_size
        limit = self.filtering.dynamic_filtering_max_gen_batches * self.args.rollout.batch_size or math.inf
        exhausted = False
        while len(kept) < wanted and self._tally.drawn < limit and not exhausted:
            missing = (wanted - len(kept)) // self.group_size
            size = int(min(self._tally.wave(missing, self._expected_share), limit - self._tally.drawn))
            samples, drawn, exhausted = super()._generate_vllm(source, size, False, **generate_kwargs)
            self._tally.waves += 1
            self._tally.drawn += drawn
            self.prompts_seen += drawn
            for start in range(0, len(samples), self.group_size):
                kept += self._judge(samples[start : start + self.group_size])
        return kept, self._tally.drawn, exhausted

    def _surplus(self) -> int:
        return len(self._sample_buffer) // self.group_size

    def _judge(self, group: list[Experience]) -> list[Experience]:
        """Count the group; return it if it is to be trained on, else an empty list."""
        verdict = judge_group(
            plain_scores(group),
            [bool(peek(rollout, "response_length")) for rollout in group],
            self.args.algo.ktae.config.correct_threshold,
            self.args.algo.dynamic_filtering_range,
        )
        self._tally.verdicts.append(verdict)
        if verdict.known:
            key = prompt_key(peek(group[0], "prompts")[0], str(peek(group[0], "labels")[0]))
            known, correct, streak = self._pass_rates.get(key, (0, 0, 0))
            streak = streak + 1 if verdict.solved else 0
            self._pass_rates[key] = (known + verdict.known, correct + verdict.correct, streak)
        return group if verdict.informative else []

    def _not_yet_solved(self, items: Iterator[Any]) -> Iterator[Any]:
        """Yield the host's single-prompt items, skipping prompts solved often enough."""
        times = self.filtering.dynamic_filtering_skip_solved
        for item in items:
            _, (prompt,), (label,), _ = item
            if times and self._pass_rates.get(prompt_key(prompt, str(label)), (0, 0, 0))[2] >= times:
                self._tally.skipped += 1
                self.prompts_seen += 1
                continue
            yield item

    def _stop_message(self, rollouts: int, exhausted: bool) -> str:
        tally, settings = self._tally, self.filtering
        reason = (
            "the data ran out"
            if exhausted
            else f"--algo.dynamic_filtering_max_gen_batches {settings.dynamic_filtering_max_gen_batches} is reached"
        )
        skipped = f", {tally.skipped} skipped as solved" if tally.skipped else ""
        return (
            f"--algo.dynamic_filtering_enable: {reason} with {rollouts // self.group_size} groups whose scores differ; "
            f"the smallest step takes {rollout_unit(self.args) // self.group_size}. Prompts drawn: {tally.drawn}"
            f"{skipped}. Groups by share of correct rollouts: {tally.histogram()}. {tally.advice()}"
        )


def prompt_key(prompt: str, label: str) -> int:
    """Return a 63-bit number for a prompt and its label, the same in every process and run."""
    digest = hashlib.blake2b(f"{prompt}\0{label}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
