"""Values of prefixes for estimators that need them: mean scores of continuations sampled after the rollouts.

Continuations use the weights, limits and verifier of the rollouts. They are not trained on and do not count in reward
metrics. With full determinism they have separate seeds, so rollouts do not depend on them. Values are stored in the
host's `values` field, which is free because there is no critic; NaN means no value.
"""

import math
import runpy
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import ray
import torch
from openrlhf.trainer.ppo_utils.experience import Experience

from openrlhf_ktae.base.errors import TrainingStopped
from openrlhf_ktae.base.user_files import with_its_folder
from openrlhf_ktae.ktae import above
from openrlhf_ktae.record.rollouts import TokenTexts
from openrlhf_ktae.trainer.ppo_utils.raw_scores import raw_scores
from openrlhf_ktae.trainer.ppo_utils.seeded_sampling import SeededSamplesGenerator, derived_seed
from openrlhf_ktae.trainer.ray.continuations import SAMPLED, SCORE, Begun
from openrlhf_ktae.verifier.formats import response_text
from openrlhf_ktae.verifier.user_reward import HINT, label_and_row

VALUES = "values"
CONTINUATION = "continuation"
AT_ONCE = 256
"""Prefixes sent to an engine at once. A held engine accepts at most 1,000 calls, and its release is one of them."""
COUNTED = ("continuations", "continuation_tokens", "unknown_continuations", "continuation_seconds")
Place = tuple[Experience, int]
"""A rollout and the position in its `action_mask` of a prefix's last token."""


class ContinuingGenerator(SeededSamplesGenerator):
    """Adds values to the generated rollouts, if the estimator needs them."""

    KEPT = "places_sent"
    tokenizer: Any
    note: Callable[[str], None]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.continuation_metrics: dict[str, float] = {}
        """Metrics of the current step; empty if no continuations are sampled."""
        self.places_sent = 0
        """Prefixes continued so far; the next seeds depend on it."""
        self._continuing = False
        self._labels: dict[tuple[str, str], Any] = {}  # (prompt, label) -> label with its row, for the verifier

    def generate_samples(self, **generate_kwargs: Any) -> tuple[list[Experience], float | None, int, bool]:
        """Generate as the host does; reset the counts of continuations."""
        if self._wanted and not self._options.file:
            self.continuation_metrics = {f"credit/{name}": 0.0 for name in COUNTED}
        return super().generate_samples(**generate_kwargs)

    def _generate_vllm(
        self, dataloader_iter: Any, num_prompts: int, dynamic_filtering: bool, **generate_kwargs: Any
    ) -> tuple[list[Experience], int, bool]:
        if not self._wanted or self.evaluating:
            return super()._generate_vllm(dataloader_iter, num_prompts, dynamic_filtering, **generate_kwargs)
        sent = self.prompts_sent, self.places_sent
        self._labels = {}
        try:
            samples, drawn, exhausted = super()._generate_vllm(
                dataloader_iter, num_prompts, dynamic_filtering, **generate_kwargs
            )
            self._add_values(samples, generate_kwargs)
        except Exception:
            self.prompts_sent, self.places_sent = sent  # a retry gets the same seeds
            raise
        return samples, drawn, exhausted

    def _dispatch_prompts_to_vllm(
        self, prompts: list[str], labels: list[str], *, images: Any = None, **generate_kwargs: Any
    ) -> list[Any]:
        self._labels.update({(p, str(label_and_row(one)[0])): one for p, one in zip(prompts, labels, strict=True)})
        return super()._dispatch_prompts_to_vllm(prompts, labels, images=images, **generate_kwargs)

    def _next_seed(self) -> tuple[int, int]:
        if not self._continuing:
            return super()._next_seed()
        self.places_sent += 1
        return self.places_sent, derived_seed(self.args.train.seed, CONTINUATION, self.places_sent)

    @property
    def _wanted(self) -> bool:
        return VALUES in self.args.algo.credit.needs

    @property
    def _options(self) -> Any:
        return self.args.algo.mc_value.config

    @cached_property
    def _texts(self) -> TokenTexts:
        return TokenTexts(self.tokenizer)

    @cached_property
    def _values_of(self) -> Callable[[str, list[str], Any], Sequence[float]]:
        with with_its_folder(self._options.file):
            found: Callable[[str, list[str], Any], Sequence[float]] = runpy.run_path(self._options.file)[VALUES]
        return found

    def _add_values(self, samples: list[Experience], generate_kwargs: Mapping[str, Any]) -> None:
        """Set `values` (1, T) of each rollout."""
        size = self.args.rollout.n_samples_per_prompt
        for sample in samples:
            sample.values = torch.full(sample.action_mask.shape, torch.nan)
        groups = [samples[start : start + size] for start in range(0, len(samples), size)]
        if self._options.file:
            for group in groups:
                self._ask_file(group)
            return
        threshold = self.args.algo.ktae.config.correct_threshold
        chosen = [group for group in groups if self._options.groups == "all" or mixed(group, threshold)]
        wanted = [prefix for group in chosen for prefix in self._prefixes(group).items()]
        started, per_wave = time.perf_counter(), AT_ONCE * len(self.vllm_engines)
        for start in range(0, len(wanted), per_wave):
            self._sample(wanted[start : start + per_wave], {**generate_kwargs})
        self._count("continuation_seconds", time.perf_counter() - started)

    def _prefixes(self, group: Sequence[Experience]) -> dict[tuple[int, ...], list[Place]]:
        """Return the prefixes that need a value: token ids -> places in the group."""
        found: dict[tuple[int, ...], list[Place]] = {}
        for rollout in group:
            first, ids = response_of(rollout)
            for end in self._options.places(self._texts.of(ids)):
                found.setdefault(tuple(ids[:end]), []).append((rollout, first + end - 1))
        return found

    def _sample(self, wanted: Sequence[tuple[tuple[int, ...], list[Place]]], settings: dict[str, Any]) -> None:
        """Sample continuations of each prefix and store their mean score at its places."""
        owners = [places[0][0] for _, places in wanted]
        prompts = [Begun(one.prompts[0], begun) for one, (begun, _) in zip(owners, wanted, strict=True)]
        labels = [self._labels.get((one.prompts[0], str(one.labels[0])), one.labels[0]) for one in owners]
        images = [(one.images or [None])[0] for one in owners]
        settings["n_samples_per_prompt"] = self._options.samples
        self._continuing = True
        try:
            refs = self._dispatch_prompts_to_vllm(list(prompts), labels, images=images, **settings)
            found = ray.get(refs)
        finally:
            self._continuing = False
        for (_, places), answers in zip(wanted, found, strict=True):
            scores = [answer[SCORE] for answer in answers]
            known = [score for score in scores if not math.isnan(score)]
            self._count("continuations", len(answers))
            self._count("continuation_tokens", sum(answer.get(SAMPLED, 0) for answer in answers))
            self._count("unknown_continuations", len(scores) - len(known))
            for rollout, position in places if known else ():
                rollout.values[0, position] = sum(known) / len(known)
            for hint in filter(None, (answer.get(HINT) for answer in answers)):
                self.note(hint)

    def _count(self, name: str, number: float) -> None:
        self.continuation_metrics[f"credit/{name}"] += number

    def _ask_file(self, group: Sequence[Experience]) -> None:
        """Set the values that the user's file returns.

        Raises TrainingStopped if the function fails or does not return one number per prefix.
        """
        prefixes = self._prefixes(group)
        prompt, label = group[0].prompts[0], group[0].labels[0]
        try:
            texts = [response_text(self.tokenizer, list(ids)) for ids in prefixes]
            values = list(map(float, self._values_of(prompt, texts, label))) if texts else []
            for value, places in zip(values, prefixes.values(), strict=True):
                for rollout, position in places:
                    rollout.values[0, position] = value
        except Exception as error:
            raise TrainingStopped(
                f"--algo.mc_value.file {self._options.file}: values(prompt, prefixes, label) failed for "
                f"{len(prefixes)} prefixes ({type(error).__name__}: {error}); return one number per prefix"
            ) from error


def response_of(rollout: Experience) -> tuple[int, list[int]]:
    """Return the mask position of a rollout's first action, and its token ids from there to the last action."""
    positions = torch.nonzero(rollout.action_mask[0]).flatten().tolist()
    if not positions:
        return 0, []
    return positions[0], rollout.sequences[0, positions[0] + 1 : positions[-1] + 2].tolist()


def mixed(group: Sequence[Experience], threshold: float) -> bool:
    """Return whether a group has both correct and wrong rollouts."""
    scores_G = torch.cat([raw_scores(rollout) for rollout in group if rollout.action_mask.any()] or [torch.empty(0)])
    return len({*above(scores_G[~scores_G.isnan()], threshold).tolist()}) > 1
