"""How old the weights are that a rollout of an asynchronous run was sampled with, and a bound on that.

An age is counted in steps: those trained between the first token of a rollout and its own step. The host's generator
waits for a slot before it begins a batch, and the trainer gives one back for each batch that it takes, so that with
S slots a batch is at most S steps old. What is sampled beyond a batch waits for later steps: a fixed number of them
where `--rollout.vllm_generate_batch_size` says how much, any number with dynamic sampling, which drops what is too old.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from types import SimpleNamespace
from typing import Any

from openrlhf_ktae.base.batches import steps_in_buffer

WEIGHTS_STEP = "weights_step"
"""Of an engine's answer, and of a rollout's `info` until it is trained on: steps that its weights were trained."""
MEAN, MAXIMUM, TOO_OLD = "staleness/mean", "staleness/max", "staleness/dropped_rollouts"


def slots(args: SimpleNamespace) -> int:
    """Return how many batches may be on their way: `--train.async_queue_size`, or fewer for `--train.max_staleness`."""
    size, limit, rollout = args.train.async_queue_size, args.train.max_staleness, args.rollout
    if limit is None:
        return size
    filtering = args.algo.dynamic_filtering_enable
    return min(size, limit - steps_in_buffer(rollout.batch_size, rollout.vllm_generate_batch_size, filtering))


def ages(rollouts: Iterable[Any], step: int) -> dict[str, float]:
    """Return mean and maximum age of what is trained on after `step` steps; take the mark out of each rollout."""
    marks = [rollout.info.pop(WEIGHTS_STEP, None) for rollout in rollouts]
    found = [step - int(mark) for mark in marks if mark is not None]
    return {MEAN: sum(found) / len(found), MAXIMUM: float(max(found))} if found else {}


def without_stale(rollouts: Sequence[Any], step: int, limit: int | None) -> list[Any]:
    """Return the rollouts at most `limit` steps old after `step` steps, with the whole groups they are in.

    Rollouts of a group are sampled in one call, with the same weights unless these come in between
    (`--train.partial_rollout_enable`), where all have the mark of its beginning.
    """
    if limit is None:
        return list(rollouts)
    return [one for one in rollouts if step - int(one.info.get(WEIGHTS_STEP, step)) <= limit]
