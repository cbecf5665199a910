"""The rollouts of a step with the statistics of their sampling; the trainer may run in another process."""

from collections.abc import Iterable
from typing import Any

from openrlhf_ktae.trainer.ppo_utils.columns import Experiences


class RolloutBatch(Experiences):
    """A list of rollouts, as the host expects; its attributes are pickled with it through Ray's queue.

    `metrics` are logged with the step, `progress` is the share of the run's prompts before this batch.
    """

    def __init__(
        self, rollouts: Iterable[Any] = (), metrics: dict[str, float] | None = None, progress: float = 0.0
    ) -> None:
        super().__init__(rollouts)
        self.metrics = metrics or {}
        self.progress = progress
