"""Departures from the host: no batch that ranks cannot share, and evaluations that know their spread."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from openrlhf.trainer.ppo_utils.experience import Experience
from openrlhf.utils.logging_utils import init_logger

from openrlhf_ktae.evaluation.statistics import SEED, interval, resampled_means
from openrlhf_ktae.run.batches import rollout_unit, trainable
from openrlhf_ktae.trainer.ppo_utils.data_position import rollouts
from openrlhf_ktae.trainer.ppo_utils.dynamic_sampling import DynamicSamplesGenerator
from openrlhf_ktae.trainer.ppo_utils.raw_scores import raw_scores

logger = init_logger(__name__)

ACCURACY, LENGTH, TRUNCATED, UNKNOWN, ANY_CORRECT = range(5)  # columns of `problem_table`


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

    def position(self) -> dict[str, Any]:
        """Return what a checkpoint must hold of this generator; rollouts in it are not copied."""
        buffer = list(getattr(self, "_sample_buffer", None) or [])
        drained = getattr(self, "_dataloader_iter", None) is None
        return {
            "ended": drained and not buffer,
            "drained": drained,
            "buffer": buffer,
            "carried": list(self._carried),
            "expected_share": self._expected_share,
            "batches_of_episode": self._batches_of_episode,
            "dropped_rollouts": self.dropped_rollouts,
            "prompts_sent": self.prompts_sent,
            "failures": list(self._failures),
        }

    def load_position(self, position: Mapping[str, Any]) -> None:
        """Go on from what `position` returned; the loader of prompts has its state already."""
        self._sample_buffer = rollouts(position["buffer"])
        self._carried = rollouts(position["carried"])
        self._expected_share = position["expected_share"]
        self._batches_of_episode = position["batches_of_episode"]
        self.dropped_rollouts = position["dropped_rollouts"]
        self.prompts_sent = position["prompts_sent"]
        self._failures.extend(position.get("failures", ()))
        # The host begins an episode where there is neither; one that is under way must go on.
        self._dataloader_iter = None if position["drained"] else iter(self.prompts_dataloader)

    def generate_eval_samples(self, **generate_kwargs: Any) -> list[Experience]:
        """Generate as the host does, benchmark by benchmark, and keep figures with 95 % intervals over problems.

        A rollout belongs to the benchmark whose row (`datasource`) it was generated from; the host goes by the text of
        the prompt, and two benchmarks may share a problem.
        """
        parts: dict[str, list[Experience]] = {}
        for name, items in by_benchmark(self.eval_dataloader).items():
            self._eval_dataloader_iter = iter(items)
            parts[name] = super().generate_eval_samples(**generate_kwargs)
        self.evaluation_ends()
        threshold = self.args.algo.ktae.config["correct_threshold"]
        self.last_eval = summarize(parts, generate_kwargs["n_samples_per_prompt"], threshold)
        return [sample for samples in parts.values() for sample in samples]


def by_benchmark(dataloader: Iterable[tuple[list[Any], ...]]) -> dict[str, list[tuple[list[Any], ...]]]:
    """Return the items of an evaluation by `datasource`, each as a batch of one in the host's form."""
    items: dict[str, list[tuple[list[Any], ...]]] = {}
    for batch in dataloader:
        for one in zip(*batch, strict=True):
            items.setdefault(str(one[0]), []).append(tuple([value] for value in one))
    return items


def summarize(parts: Mapping[str, list[Experience]], per_problem: int, threshold: float) -> dict[str, float]:
    """Return `eval_accuracy` and `eval_response_length_mean` over all problems, and figures of each benchmark.

    A benchmark's are `eval_NAME_accuracy`, `_response_length_mean`, `_truncated_rate`, and the host's `_pass1` and
    `_passN`; `eval_macro_accuracy` is their mean. Accuracies and lengths come with `_low` and `_high`.

    Args:
        parts: rollouts of each benchmark, those of one problem side by side.
        per_problem: rollouts of each problem.
        threshold: a score above it is correct; an unknown score (NaN) counts as not correct, and is counted.
    """
    tables = {name: problem_table(samples, per_problem, threshold) for name, samples in parts.items() if samples}
    if not tables:
        return {}
    summary: dict[str, float] = {}
    drawn = []
    for number, (name, table_IM) in enumerate(tables.items()):
        means_RM = resampled_means(table_IM, SEED + number)
        summary |= _with_ends(f"eval_{name}", table_IM.mean(axis=0), means_RM)
        summary[f"eval_{name}_truncated_rate"] = float(table_IM[:, TRUNCATED].mean())
        summary[f"eval_{name}_pass{per_problem}"] = float(table_IM[:, ANY_CORRECT].mean())
        summary[f"eval_{name}_pass1"] = summary[f"eval_{name}_accuracy"]
        drawn.append(means_RM)
    everything_IM = np.concatenate(list(tables.values()))
    summary |= _with_ends("eval", everything_IM.mean(axis=0), resampled_means(everything_IM))
    macro = _with_ends("eval_macro", np.mean([t.mean(axis=0) for t in tables.values()], axis=0), np.mean(drawn, axis=0))
    summary |= {name: value for name, value in macro.items() if "accuracy" in name}
    rollouts = len(everything_IM) * per_problem
    unknown = float(everything_IM[:, UNKNOWN].mean() * rollouts)
    return {**summary, "eval_problems": len(everything_IM), "eval_rollouts": rollouts, "eval_unknown": round(unknown)}


def problem_table(samples: list[Experience], per_problem: int, threshold: float) -> NDArray[np.float64]:
    """Return (I, 5): accuracy, length, truncated, unknown, any correct, for each problem."""
    rows = []
    for sample in samples:
        score = float(raw_scores(sample)[0])
        length, truncated = (float(value.flatten()[0]) for value in (sample.response_length, sample.truncated))
        rows.append([float(score > threshold), length, truncated, float(score != score)])
    table_IKM = np.array(rows).reshape(-1, per_problem, len(rows[0]))
    return np.column_stack([table_IKM.mean(axis=1), table_IKM[:, :, ACCURACY].max(axis=1)])


def _with_ends(prefix: str, values_M: NDArray[np.float64], means_RM: NDArray[np.float64]) -> dict[str, float]:
    figures: dict[str, float] = {}
    for name, column in ((f"{prefix}_accuracy", ACCURACY), (f"{prefix}_response_length_mean", LENGTH)):
        low, high = interval(means_RM[:, column])
        figures |= {name: float(values_M[column]), f"{name}_low": low, f"{name}_high": high}
    return figures
