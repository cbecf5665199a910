"""How training ends early: the driver requests it, or a check stops the run. Saved files are complete either way."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from typing import Any

import ray
from ray.exceptions import RayActorError

from openrlhf_ktae.base.errors import TrainingStopped
from openrlhf_ktae.base.temporarily import temporarily
from openrlhf_ktae.checkpoint.model_files import SavedInPart
from openrlhf_ktae.checkpoint.random_state import random_state
from openrlhf_ktae.processes.deaths import in_one_line, of_type
from openrlhf_ktae.processes.ending import EndOrder, GivenUp, Interrupted, wait_for_the_driver
from openrlhf_ktae.record.metrics import UnwrittenStop
from openrlhf_ktae.trainer.checkpointing import saves_weights


def reason_of(stop: TrainingStopped) -> str:
    """Return the message of `stop`, without the stack that Ray adds to errors of other processes."""
    return str(getattr(stop, "cause", stop))


class EndingTrainer:
    """Mixin that ends training when the driver asks for it, after the current step and its checkpoint."""

    args: Any
    record: Any
    actor_model_group: Any
    critic_model_group: Any
    saved_step = 0
    """The newest step with a complete checkpoint; set by the code that writes it."""
    _last: tuple[int, Any, Any] | None = None
    """The last step of this process, with the host's states and the random states after it."""
    _has_stopped = False

    @cached_property
    def end_order(self) -> EndOrder:
        """The files through which the driver requests an end."""
        return EndOrder(self.args.run.dir)

    def train_step(self, rollout_samples: list[Any], global_step: int) -> tuple[dict[str, Any], int]:
        """Train as the host does.

        Raises Interrupted if an end was requested while the rollouts were generated; they are discarded.
        """
        if self.end_order.asked:
            self._end()
        return super().train_step(rollout_samples, global_step)  # type: ignore[misc]

    def save_logs_and_checkpoints(self, global_step: int, logs_dict: Any = None, client_states: Any = None) -> None:
        """Log and save as the host does, with an extra checkpoint if an end was requested.

        Raises Interrupted if an end was requested.
        """
        asked = self.end_order.asked
        try:
            self._save_and_log(asked, global_step, logs_dict, client_states)
        finally:  # a step that stops training still counts
            self._last = (global_step, dict(client_states or {}), random_state())
        if asked:
            self._answer(global_step)

    def _save_and_log(self, now: bool, step: int, logs: Any, states: Any) -> None:
        with temporarily(self.args.ckpt, save_steps=1 if now else self.args.ckpt.save_steps):
            super().save_logs_and_checkpoints(step, logs, states)  # type: ignore[misc]

    def record_stop(self, reason: str) -> None:
        """Record why training ended early. A second reason, from the final evaluation, is only noted.

        Raises UnwrittenStop if the stop reason could not be written (disk full); the model is saved if possible.
        """
        if self._has_stopped:
            self.record.note(reason)
            return
        self._has_stopped = True
        try:
            self.record.stopped(reason)
        except UnwrittenStop:
            with suppress(Exception):  # the host would have saved it, but this error ends the run first
                self._save_model()
            raise

    @contextmanager
    def until_end_requested(self, end: Callable[[], None] | None = None) -> Iterator[None]:
        """Run the block. If the driver requests an end meanwhile, save (`end`) and wait for the driver."""
        try:
            yield
        except Interrupted:
            pass
        except (GivenUp, RayActorError):  # RayActorError if the host still calls engines that are dead
            if not self.end_order.asked:
                raise
            with suppress(Interrupted):
                (end or self._end)()
        else:
            return
        wait_for_the_driver(self.end_order)

    def end_with_model(self) -> None:
        """Save the last step and the model, as the host's command would: the request came after the last step.

        Always raises Interrupted.
        """
        self._save_last()
        self._save_model()
        self._answer(self.record.last_step, f"the final model is in {self.args.ckpt.output_dir}; ")

    def _save_model(self) -> None:
        groups = [self.actor_model_group]
        groups += [self.critic_model_group] if self.args.critic.save_value_network else []
        for group in groups:
            try:
                ray.get(group.async_save_model() if group is not None else [])
            except Exception as error:
                if not of_type(error, (SavedInPart.__name__,)):
                    raise
                self.record.note(in_one_line(error))

    def _end(self) -> None:
        self._save_last()
        self._answer(self.record.last_step)

    def _save_last(self) -> None:
        """Save the state after the last complete step, unless saved already; later rollouts do not change it."""
        if self._last is None or self.saved_step == self._last[0]:
            return
        step, states, self._resumed_random = self._last
        with suppress(TrainingStopped):  # no checkpoint, or a stop that is already recorded; the run ends anyway
            self._save_and_log(True, step, None, states)

    def _answer(self, step: int, also: str = "") -> None:
        text = also + saved_summary(self.args, self.saved_step)
        self.record.note(f"interrupted after step {step}: {text}")
        self.end_order.answer(text)
        raise Interrupted(text)


def saved_summary(args: Any, step: int) -> str:
    """Return where a run that ends early can resume; `step` is that of its newest checkpoint, 0 for none."""
    if not saves_weights(args):
        return "no weights were saved (--ckpt.disable_ds without --ckpt.save_hf)"
    if step:
        return f"{'export' if args.ckpt.disable_ds else 'checkpoint'} of step {step} in {args.ckpt.path}"
    return f"nothing new to save after {args.run.resume_from}" if args.run.resume_from else "nothing to save"
