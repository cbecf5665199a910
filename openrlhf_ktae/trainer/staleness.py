"""Age of the rollouts of an asynchronous run, and the bound on it.

A rollout's age is the number of steps trained between its first token and its own step. The host's generator takes a
slot for each batch, and the trainer returns the slot when it takes the batch, so with S slots a batch is at most S
steps old. Surplus rollouts wait for later steps. With `--rollout.vllm_generate_batch_size` the wait is bounded. With
dynamic sampling it is not, so rollouts that got too old are dropped.
"""

from collections.abc import Iterable, Sequence
from types import SimpleNamespace
from typing import Any

from openrlhf_ktae.base.batches import steps_in_buffer

WEIGHTS_STEP = "weights_step"
"""Key in an engine's answer, and in a rollout's `info` until it is trained on: steps trained before it was sampled."""
MEAN, MAXIMUM, TOO_OLD = "staleness/mean", "staleness/max", "staleness/dropped_rollouts"


def slots(args: SimpleNamespace) -> int:
    """Return how many batches may be in flight: `--train.async_queue_size`, or fewer for `--train.max_staleness`."""
    size, limit, rollout = args.train.async_queue_size, args.train.max_staleness, args.rollout
    if limit is None:
        return size
    filtering = args.algo.dynamic_filtering_enable
    return min(size, limit - steps_in_buffer(rollout.batch_size, rollout.vllm_generate_batch_size, filtering))


def ages(rollouts: Iterable[Any], step: int) -> dict[str, float]:
    """Return mean and maximum age of the rollouts trained on after `step` steps; remove `WEIGHTS_STEP` from each."""
    marks = [rollout.info.pop(WEIGHTS_STEP, None) for rollout in rollouts]
    found = [step - int(mark) for mark in marks if mark is not None]
    return {MEAN: sum(found) / len(found), MAXIMUM: float(max(found))} if found else {}


def without_stale(rollouts: Sequence[Any], step: int, limit: int | None) -> list[Any]:
    """Return the rollouts that are at most `limit` steps old after `step` steps.

    Groups stay whole: a group is sampled in one call and has one age. Weights that arrive during the call
    (`--train.partial_rollout_enable`) do not change the age.
    """
    if limit is None:
        return list(rollouts)
    return [one for one in rollouts if step - int(one.info.get(WEIGHTS_STEP, step)) <= limit]
