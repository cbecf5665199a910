"""Engines that die: they are restarted and receive the current weights before they generate.

Ray restarts the actor of an engine. It loads the run's initial model when the trainer asks for it, and generates
nothing until the trainer confirms that it has the current weights (`RetryingRollouts`). Only the trainer process sends
weights: two processes could call the ranks in different orders, and their collectives would deadlock. A generator in
another process requests weights through the rollout queue.
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import Empty
from typing import Any

import ray
from openrlhf.trainer.ppo_trainer import BasePPOTrainer
from openrlhf.utils.logging_utils import init_logger
from ray.exceptions import GetTimeoutError, RayActorError

from openrlhf_ktae.processes.deaths import ENGINE_GONE, POLL_SECONDS, answered, causes, in_one_line, innermost, of_type
from openrlhf_ktae.processes.ending import EndOrder, GivenUp

logger = init_logger(__name__)


class EnginesLost(RuntimeError):
    """Engines died more often than allowed, or one did not come back."""


@dataclass(frozen=True)
class WeightsWanted:
    """A message to the trainer: an engine died, for the reason `why`."""

    why: str


def engine_died(error: BaseException, engines: Sequence[Any] = ()) -> bool:
    """Whether an engine's process died: its Ray actor, or vLLM's core below it. False for `EnginesLost`.

    With `engines`, the death of another actor, such as a rank, does not count.
    """
    if of_type(error, (EnginesLost.__name__,)):
        return False
    known = {engine._actor_id.hex() for engine in engines}
    lost = [one.actor_id for one in causes(error) if isinstance(one, RayActorError)]
    return of_type(error, ENGINE_GONE) or any(not actor or not known or actor in known for actor in lost)


def have_weights(engines: Sequence[Any]) -> bool:
    """Wait until all engines answer, restarting dead ones; return whether all have the current weights.

    Restarted engines load their model in this call. Do not call it during an update, which fills shared GPUs.
    Raises EnginesLost if an engine does not come back.
    """
    if _all_answer(engines):
        return True
    with ThreadPoolExecutor(len(engines)) as side_by_side:
        return all(list(side_by_side.map(_reloaded, engines)))


def _all_answer(engines: Sequence[Any]) -> bool:
    """Return whether every engine is alive and has the current weights."""
    try:
        return all(ray.get([engine.answer.remote() for engine in engines]))
    except Exception as error:
        if not engine_died(error):
            raise
        return False


def _reloaded(engine: Any) -> bool:
    while True:
        try:
            return answered(engine.reload.remote)
        except (RayActorError, GetTimeoutError) as error:
            raise EnginesLost(f"an engine does not come back: {innermost(error)}") from error
        except Exception as error:
            if not engine_died(error):
                raise EnginesLost(f"an engine does not come back: {in_one_line(error)[:400]}") from error
            ray.kill(engine, no_restart=False)  # the actor is alive, its core is dead


def wait_for_weights(engines: Sequence[Any]) -> None:
    """Wait until every engine has the current weights, which another process sends."""
    while not _all_answer(engines):
        time.sleep(POLL_SECONDS)


class EngineKeeper(BasePPOTrainer):
    """The host's base trainer; dead engines are restarted before and during weight synchronisation.

    It follows the host's trainer in the MRO, so that a lock or pause around sending covers all attempts.
    """

    record: Any
    engine_restarts = 0
    weights_step = 0
    """Number of steps that trained the weights to be sent next; only an asynchronous trainer sets it."""

    def broadcast_to_vllm(self) -> None:
        """Send the weights as the host does, to all engines, restarting dead ones.

        Raises EnginesLost if more restarts than `--faults.engine_restarts` are needed, or an engine does not come back.
        """
        if self.vllm_engines is None:  # nothing is sampled
            return
        fault: Exception | None = None
        while True:
            try:
                if have_weights(self.vllm_engines) and fault is None:
                    super().broadcast_to_vllm()
                    return self._sent()
                self._count(fault)
                ray.get(self.actor_model_group.async_run_method("rejoin_engines"))
                super().broadcast_to_vllm()
                self._sent()
                return self.record.note(
                    f"an engine died and was restarted with the current weights ({self.engine_restarts} of "
                    f"--faults.engine_restarts {self._limit})"
                )
            except Exception as error:
                if not engine_died(error, self.vllm_engines):  # a rank's death ends the run
                    raise
                fault = error

    def _sent(self) -> None:
        ray.get([engine.confirm_weights.remote(self.weights_step) for engine in self.vllm_engines])

    def send_weights(self, why: str) -> None:
        """Send the current weights to all engines unless they have them; `why` is the error that was seen."""
        logger.warning(f"an engine died ({why}); restarting it")
        if not have_weights(self.vllm_engines):
            self.broadcast_to_vllm()

    @property
    def _limit(self) -> int:
        return int(self.args.faults.config.engine_restarts)

    def _count(self, fault: Exception | None) -> None:
        if self.engine_restarts >= self._limit:
            why = f", {in_one_line(fault)[:200]}" if fault else ""  # Ray drops the cause of an exception
            raise EnginesLost(f"--faults.engine_restarts {self._limit}: an engine died again{why}") from fault
        self.engine_restarts += 1


class AnsweringQueue:
    """A queue whose `get` also serves requests for weights; everything else is forwarded to the queue."""

    def __init__(self, queue: Any, answer: Callable[[str], None], order: EndOrder) -> None:
        self._queue, self._answer, self._order = queue, answer, order

    def get(self, block: bool = True) -> Any:
        """Return the next item that is not a request. Raises GivenUp if an end was requested before an item came."""
        while True:
            try:
                item = self._queue.get(block=block, timeout=POLL_SECONDS)
            except Empty:
                if self._order.asked:
                    raise GivenUp from None
                if not block:
                    raise
                continue
            if not isinstance(item, WeightsWanted):
                return item
            self._answer(item.why)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._queue, name)
