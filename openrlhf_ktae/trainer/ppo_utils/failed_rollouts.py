"""In the trainer: rollouts that failed (`retrying_rollouts`), and engines that die while they generate.

A dead engine is restarted with the current weights (`engines`), and its prompts are generated again; too many failed
prompts stop the run. With `--vllm.enable_sleep`, engines are woken and put to sleep here, inside the guarded call, so
that an engine that died asleep is noticed too.
"""

import copy
import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray
import torch
from openrlhf.trainer.ppo_utils.experience import Experience
from openrlhf.trainer.ray.vllm_engine import batch_vllm_engine_call
from openrlhf.utils.logging_utils import init_logger

from openrlhf_ktae.base.errors import TrainingStopped
from openrlhf_ktae.processes.deaths import innermost
from openrlhf_ktae.processes.ending import POLL_SECONDS, EndOrder, GivenUp
from openrlhf_ktae.trainer.engines import engine_died
from openrlhf_ktae.trainer.ppo_utils.data_position import PositionedGenerator
from openrlhf_ktae.trainer.ppo_utils.messages import Answer
from openrlhf_ktae.trainer.ppo_utils.received import peek
from openrlhf_ktae.trainer.ray.retrying_rollouts import FAILURE
from openrlhf_ktae.trainer.staleness import WEIGHTS_STEP
from openrlhf_ktae.verifier.user_reward import HINT

logger = init_logger(__name__)
FAILED = "faults/failed_rollouts"  # key of `info`; its mean is the share
WINDOW = 64  # prompts; the share is not checked with fewer


class SurvivingGenerator(PositionedGenerator):
    """The host's generator; it survives failed rollouts and dead engines."""

    KEPT = "_failures"
    send_weights: Callable[[str], None] | None = None
    """Called with a reason to send all engines the current weights; None outside a training loop."""
    note: Callable[[str], None] = logger.warning
    """Called with a message for the user."""
    end_order: EndOrder | None = None
    """Aborts the current generation. None in an asynchronous run: its trainer, another process, reads the request."""

    _awake = False
    """Whether this generator has woken the engines."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Copy the options: only the host's generator must see sleep disabled, not the sender of weights.
        self.args: Any = copy.copy(self.strategy.args)
        self.args.vllm = copy.copy(self.args.vllm)
        self._sleeps, self.args.vllm.enable_sleep = bool(self.args.vllm.enable_sleep), False
        self.faults = self.args.faults.config
        self.engine_restarts = 0
        self._failures: list[bool] = []  # whether each of the latest prompts failed
        self._last_failure = ""

    def generate_samples(self, **generate_kwargs: Any) -> tuple[list[Experience], float | None, int, bool]:
        """Generate as the host does; engines that were woken for it sleep afterwards, whatever happens."""
        with self._asleep_afterwards():
            return super().generate_samples(**generate_kwargs)

    def generate_eval_samples(self, **generate_kwargs: Any) -> list[Experience]:
        """Generate as the host does; engines that were woken for it sleep afterwards, whatever happens."""
        with self._asleep_afterwards():
            return super().generate_eval_samples(**generate_kwargs)

    def _generate_vllm(
        self, dataloader_iter: Any, num_prompts: int, dynamic_filtering: bool, **generate_kwargs: Any
    ) -> tuple[list[Experience], int, bool]:
        """Generate as the host does; if an engine dies, generate all prompts of the call again.

        Raises:
            TrainingStopped: the rollouts of too many prompts failed.
            GivenUp: the driver requested an end.
        """
        source = iter(dataloader_iter)
        while True:
            drawn: list[Any] = []
            try:
                with abort_on_end_order(self.end_order, self.vllm_engines):
                    self._wake()
                    samples, count, exhausted = super()._generate_vllm(
                        remembered(source, drawn), num_prompts, dynamic_filtering, **generate_kwargs
                    )
                break
            except GivenUp:
                raise
            except Exception as error:
                if not engine_died(error) or self.send_weights is None:
                    raise
                self.revive(error)
                source = itertools.chain(drawn, source)
        self._settle(samples, generate_kwargs.get("n_samples_per_prompt", self.args.rollout.n_samples_per_prompt))
        return samples, count, exhausted

    def _process_response_into_experience(self, response: dict[str, Any], **kwargs: Any) -> Experience:
        """Convert as the host does, and mark placeholders of failed rollouts, for all answers to a prompt at once."""
        if isinstance(response, Answer) and response.among.made:
            return response.among.made[response.place]
        if FAILED not in response.get("extra_logs", {}):
            for answer in response.among.answers if isinstance(response, Answer) else [response]:
                marks = {FAILED: float(bool(answer.get(FAILURE)))}
                if self.args.train.async_enable:
                    marks[WEIGHTS_STEP] = answer[WEIGHTS_STEP]
                answer["extra_logs"] = answer.get("extra_logs", {}) | marks
                if hint := answer.get(HINT):
                    self.note(hint)
                self._last_failure = answer.get(FAILURE) or self._last_failure
        return super()._process_response_into_experience(response, **kwargs)

    def _settle(self, samples: list[Experience], per_prompt: int) -> None:
        """Add log entries that failed rollouts lack, as zeros; stop the run if too many prompts failed."""
        infos = [peek(sample, "info") for sample in samples]
        names: set[str] = set().union(*infos)
        lacking = [sample for sample, info in zip(samples, infos, strict=True) if len(info) < len(names)]
        entries = {name: value for sample in (samples if lacking else ()) for name, value in sample.info.items()}
        for sample in lacking:
            sample.info = {name: torch.zeros_like(value) for name, value in entries.items()} | sample.info
        self._failures = [*self._failures, *(bool(info[FAILED]) for info in infos[::per_prompt])][-WINDOW * 4 :]
        share = sum(self._failures) / max(len(self._failures), 1)
        if len(self._failures) >= WINDOW and share > self.faults.max_failed_share:
            raise TrainingStopped(
                f"--faults.max_failed_share {self.faults.max_failed_share:g}: {share:.0%} of the last "
                f"{len(self._failures)} prompts failed, most recently with {self._last_failure}; repair the agent or "
                "reward, or raise the share"
            )

    def revive(self, error: Exception) -> None:
        """Have dead engines restarted with the current weights; raise `error` if that is impossible or too frequent."""
        self.engine_restarts += 1
        if self.engine_restarts > self.faults.engine_restarts or self.send_weights is None:
            raise error
        self.send_weights(innermost(error))
        self._awake = False  # a restarted engine has its weights but no cache yet

    def _wake(self) -> None:
        """Wake sleeping engines, once per host call; waking an awake engine has no effect."""
        if self._sleeps and not self._awake:
            self._awake = True
            batch_vllm_engine_call(self.vllm_engines, "wake_up")

    @contextmanager
    def _asleep_afterwards(self) -> Iterator[None]:
        """Put engines back to sleep; a dead one uses no memory, and is detected when weights are sent."""
        try:
            yield
        finally:
            refs = [engine.sleep.remote() for engine in self.vllm_engines] if self._awake else []
            self._awake = False
            for ref in refs:
                try:
                    ray.get(ref)
                except Exception as error:
                    if not engine_died(error):
                        raise


@contextmanager
def abort_on_end_order(order: EndOrder | None, engines: Sequence[Any]) -> Iterator[None]:
    """Kill `engines` as soon as an end is requested: nothing else interrupts a call that waits for them.

    Raises GivenUp if the end was requested before the block, or the block failed after the request.
    """
    if order is None:
        yield
        return
    over = threading.Event()

    def watch() -> None:
        while not over.wait(POLL_SECONDS):
            if order.asked:
                for engine in engines:
                    ray.kill(engine)
                return

    if order.asked:
        raise GivenUp
    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    try:
        yield
    except Exception as error:
        if order.asked:
            raise GivenUp from error
        raise
    finally:
        over.set()
        watching.join()


def remembered(items: Iterator[Any], seen: list[Any]) -> Iterator[Any]:
    """Yield `items`, appending each to `seen`."""
    for item in items:
        seen.append(item)
        yield item
