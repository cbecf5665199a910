"""Departures from the host: no batch that ranks cannot share, and evaluations that know their spread."""

from __future__ import annotations

from typing import Any

from openrlhf.trainer.ppo_utils.experience import Experience
from openrlhf.utils.logging_utils import init_logger

from openrlhf_ktae.evaluation.statistics import mean_with_interval
from openrlhf_ktae.run.batches import rollout_unit, trainable
from openrlhf_ktae.trainer.ppo_utils.dynamic_sampling import DynamicSamplesGenerator

logger = init_logger(__name__)


class KTAESamplesGenerator(DynamicSamplesGenerator):
    """The host's generator, with dynamic sampling of our own; `last_eval` describes its last evaluation."""

    last_eval: dict[str, float]
    dropped_rollouts = 0

    def generate_samples(self, **generate_kwargs: Any) -> tuple[list[Experience], float | None, int, bool]:
        """Generate as the host does; leave out rollouts of the last, short batch that no step can divide."""
        samples, pass_rate, consumed, exhausted = super().generate_samples(**generate_kwargs)
        kept = trainable(len(samples), self.args)
        if kept == len(samples):
            return samples, pass_rate, consumed, exhausted
        self.dropped_rollouts += len(samples) - kept
        logger.warning(
            f"{len(samples) - kept} of {len(samples)} rollouts are not trained on: a step takes multiples of "
            f"{rollout_unit(self.args)}, and the data ran out"
        )
        return samples[:kept], pass_rate, consumed, exhausted

    def generate_eval_samples(self, **generate_kwargs: Any) -> list[Experience]:
        """Generate as the host does and keep accuracy with its 95 % interval over problems."""
        samples = super().generate_eval_samples(**generate_kwargs)
        threshold = self.args.algo.ktae.config["correct_threshold"]
        self.last_eval = summarize(samples, generate_kwargs["n_samples_per_prompt"], threshold)
        return samples


def summarize(samples: list[Experience], per_problem: int, threshold: float) -> dict[str, float]:
    """Return `eval_accuracy` with `_low` and `_high`, `eval_response_length_mean` likewise, and counts.

    Args:
        samples: rollouts, those of one problem side by side.
        per_problem: rollouts of each problem.
        threshold: a score above it is correct; an unknown score (NaN) counts as not correct, and is counted.
    """
    if not samples:
        return {}
    scores = [float((s.rewards if s.scores is None else s.scores).flatten()[0]) for s in samples]
    correct = [float(score > threshold) for score in scores]
    lengths = [float(s.response_length.flatten()[0]) for s in samples]
    summary: dict[str, float] = {"eval_problems": len(samples) // per_problem, "eval_rollouts": len(samples)}
    for name, values in (("eval_accuracy", correct), ("eval_response_length_mean", lengths)):
        problems = [values[i : i + per_problem] for i in range(0, len(values), per_problem)]
        mean, low, high = mean_with_interval([sum(problem) / len(problem) for problem in problems])
        summary |= {name: mean, f"{name}_low": low, f"{name}_high": high}
    summary["eval_unknown"] = float(sum(score != score for score in scores))
    return summary
