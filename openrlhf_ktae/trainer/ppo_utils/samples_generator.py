"""Departures from the host: batches always divide among ranks; evaluations run one benchmark at a time."""

from collections.abc import Iterable
from typing import Any

from openrlhf.trainer.ppo_utils import samples_generator as host
from openrlhf.trainer.ppo_utils.experience import Experience
from openrlhf.utils.logging_utils import init_logger
from vllm import SamplingParams

from openrlhf_ktae.base.batches import rollout_unit, trainable
from openrlhf_ktae.trainer.ppo_utils.dynamic_sampling import DynamicSamplesGenerator
from openrlhf_ktae.trainer.ppo_utils.held_out import answer_reader, summarize

logger = init_logger(__name__)


class KTAESamplesGenerator(DynamicSamplesGenerator):
    """The host's generator with our dynamic sampling; `last_eval` has the metrics of its last evaluation."""

    KEPT = "dropped_rollouts"
    last_eval: dict[str, float]
    dropped_rollouts = 0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        host.SamplingParams = self._parameters  # the host looks up the class as a global

    def _parameters(self, **given: Any) -> SamplingParams:
        """Return the host's parameters, with stop strings if set; in training, also request log-probabilities."""
        if not self.evaluating:
            given["logprobs"] = 1
        if self.args.rollout.stop:
            given |= {"stop": list(self.args.rollout.stop), "include_stop_str_in_output": True}
        return SamplingParams(**given)

    def generate_samples(self, **generate_kwargs: Any) -> tuple[list[Experience], float | None, int, bool]:
        """Generate as the host does; drop rollouts of the last, short batch that do not fill a step."""
        samples, pass_rate, consumed, exhausted = super().generate_samples(**generate_kwargs)
        kept = trainable(len(samples), self.args)
        self.batches += kept > 0
        if kept == len(samples):
            return samples, pass_rate, consumed, exhausted
        self.dropped_rollouts += len(samples) - kept
        logger.warning(
            f"{len(samples) - kept} of {len(samples)} rollouts are not trained on: a step needs a multiple of "
            f"{rollout_unit(self.args)}, and the data ran out"
        )
        return samples[:kept], pass_rate, consumed, exhausted

    def generate_eval_samples(self, **generate_kwargs: Any) -> list[Experience]:
        """Generate as the host does, one benchmark at a time; set `last_eval`, with 95 % intervals over problems.

        A rollout belongs to the benchmark of its row (`datasource`). The host matches the text of the prompt, but two
        benchmarks may share a problem.
        """
        parts: dict[str, list[Experience]] = {}
        for name, items in by_benchmark(self.eval_dataloader).items():
            self._eval_dataloader_iter = iter(items)
            parts[name] = super().generate_eval_samples(**generate_kwargs)
        self.evaluation_ends()
        threshold = self.args.algo.ktae.config.correct_threshold
        read = answer_reader(self.args, self.tokenizer)
        self.last_eval = summarize(parts, generate_kwargs["n_samples_per_prompt"], threshold, read)
        return [sample for samples in parts.values() for sample in samples]


def by_benchmark(dataloader: Iterable[tuple[list[Any], ...]]) -> dict[str, list[tuple[list[Any], ...]]]:
    """Return the items of an evaluation by `datasource`, each as a batch of one item in the host's form."""
    items: dict[str, list[tuple[list[Any], ...]]] = {}
    for batch in dataloader:
        for one in zip(*batch, strict=True):
            items.setdefault(str(one[0]), []).append(tuple([value] for value in one))
    return items
