"""Training on the rollouts that an earlier run recorded (`--train.replay`), without prompts, verifier or engine.

For debugging a loss, or comparing estimators on the same data. Token ids, scores, rewards, truncation and the sampler's
log-probabilities come from the record, in its order; everything else is computed as in any other run.
"""

from bisect import bisect_right
from itertools import accumulate, islice
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from openrlhf.trainer.ppo_utils.experience import Experience

from openrlhf_ktae.record.recorded import RecordedGroup, find, number_of_rollouts, read_groups
from openrlhf_ktae.trainer.ppo_utils.failed_rollouts import FAILED
from openrlhf_ktae.trainer.ppo_utils.samples_generator import KTAESamplesGenerator


class RecordedPrompts:
    """A data set of recorded groups, in recorded order, with one file in memory at a time."""

    def __init__(self, record: str | Path, group_size: int) -> None:
        self._files = find([record])
        self._ends = list(accumulate(number_of_rollouts(file) // group_size for file in self._files))
        self._open: tuple[int, list[RecordedGroup]] = (-1, [])
        self.notes = [f"{len(self)} groups of {len(self._files)} recorded steps of {record} are trained on again"]

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> RecordedGroup:
        if index >= len(self):
            raise IndexError(index)
        number = bisect_right(self._ends, index)
        if self._open[0] != number:
            self._open = number, list(read_groups([self._files[number]]))
        groups = self._open[1]
        return groups[index - self._ends[number] + len(groups)]


class ReplayGenerator(KTAESamplesGenerator):
    """The generator of a replay; its data loader yields recorded groups instead of prompts."""

    def _generate_vllm(
        self, dataloader_iter: Any, num_prompts: int, dynamic_filtering: bool, **generate_kwargs: Any
    ) -> tuple[list[Experience], int, bool]:
        groups = list(islice(dataloader_iter, num_prompts))
        return [_rollout(row) for group in groups for row in group.rows], len(groups), len(groups) < num_prompts


def recorded_data(strategy: Any, _: Any) -> tuple[Any, None, int]:
    """Replace the host's `prepare_datasets`: return the loader, no held-out loader, and the number of updates."""
    args = strategy.args
    groups = RecordedPrompts(args.train.replay, args.rollout.n_samples_per_prompt)
    loader = strategy.setup_dataloader(groups, 1, False, False, itemgetter(0))
    updates = len(groups) * args.rollout.n_samples_per_prompt // args.train.batch_size
    return loader, None, updates * args.train.num_episodes * args.train.max_epochs


def _rollout(row: dict[str, Any]) -> Experience:
    """Build a rollout as the host's generator builds it from an engine's answer."""
    prompt, response = row["prompt_ids"], row["token_ids"]
    sequence = torch.tensor([prompt + response])
    before = [0] * (len(prompt) - 1)  # the prompt's positions, one less than its tokens
    log_probs, score, reward = row["rollout_log_probs"], torch.tensor([row["score"]]), torch.tensor([row["reward"]])
    return Experience(
        sequences=sequence,
        attention_mask=torch.ones_like(sequence),
        action_mask=torch.tensor([before + list(map(int, row["action"]))]),
        rollout_log_probs=None if log_probs is None else torch.tensor([before + log_probs], dtype=torch.float32),
        prompts=[row["prompt"]],
        labels=[row["label"]],
        images=[None],
        mm_train_inputs=[None],
        rewards=reward,
        scores=score,
        response_length=torch.tensor([len(response)]),
        truncated=torch.tensor([bool(row["truncated"])]),
        total_length=torch.tensor([float(sequence.numel())]),
        info={"reward": reward, "score": score, FAILED: torch.tensor([float(not response)])},
    )
