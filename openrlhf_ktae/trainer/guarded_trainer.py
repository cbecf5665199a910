"""What both trainers do about faults of a step: skip it, watch for collapse, end when asked to."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import ray
from openrlhf.utils.logging_utils import init_logger
from ray.exceptions import RayActorError

from openrlhf_ktae.base.errors import TrainingStopped
from openrlhf_ktae.base.faults_config import FaultsConfig
from openrlhf_ktae.checkpoint.model_files import SavedInPart
from openrlhf_ktae.checkpoint.random_state import random_state
from openrlhf_ktae.processes.deaths import in_one_line, of_type
from openrlhf_ktae.processes.ending import EndOrder, GivenUp, Interrupted, wait_for_the_driver
from openrlhf_ktae.record.metrics import UnwrittenStop
from openrlhf_ktae.trainer.checkpointing import CheckpointFailed, saves_weights, saving_every
from openrlhf_ktae.trainer.collapse import REPETITION, CollapseWatch, IdleWatch, repetition
from openrlhf_ktae.trainer.nonfinite import CRITIC_SKIPPED, SKIPPED, NonFiniteBatch, save_batch
from openrlhf_ktae.trainer.ppo_utils.failed_rollouts import FAILED

logger = init_logger(__name__)
FAULTS_STATE = "faults"  # our key in the trainer's part of a checkpoint


def reason_of(stop: TrainingStopped) -> str:
    """Return its message, without the stack that Ray adds to one of another process."""
    return str(getattr(stop, "cause", stop))


class GuardedTrainer:
    """Mixin before the other mixins of a trainer: it sees a step last and decides whether there is another."""

    args: Any
    record: Any
    kl_ctl: Any
    actor_model_group: Any
    critic_model_group: Any
    _skipped_in_a_row = 0
    saved_step = 0
    """The newest step with a whole checkpoint; whoever writes one sets it."""
    _last: tuple[int, Any, Any] | None = None
    """The last step of this process, the host's states after it and the random states."""
    _has_stopped = False

    @property
    def faults(self) -> FaultsConfig:
        """The options."""
        config: FaultsConfig = self.args.faults.config
        return config

    @property
    def end_order(self) -> EndOrder:
        """The driver's order to end."""
        if not hasattr(self, "_end_order"):
            self._end_order = EndOrder(self.args.run.dir)
        return self._end_order

    @property
    def collapse(self) -> CollapseWatch:
        """The rules and their counts."""
        if not hasattr(self, "_collapse"):
            self._collapse = CollapseWatch(self.faults)
        return self._collapse

    @property
    def idle(self) -> IdleWatch:
        """Steps in a row that taught nothing."""
        if not hasattr(self, "_idle"):
            self._idle = IdleWatch()
        return self._idle

    def training_state(self) -> dict[str, Any]:
        """Add what is counted in a row to what a checkpoint holds."""
        state = super().training_state()  # type: ignore[misc]
        return {**state, FAULTS_STATE: {"skipped": self._skipped_in_a_row, "collapse": self.collapse.state()}}

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Go on from `training_state`."""
        super().load_training_state(state)  # type: ignore[misc]
        counts = state.get(FAULTS_STATE, {"skipped": 0, "collapse": {}})
        self._skipped_in_a_row = counts["skipped"]
        self.collapse.load_state(counts["collapse"])

    def train_step(self, rollout_samples: list[Any], global_step: int) -> tuple[dict[str, Any], int]:
        """Train as the host does, unless the batch cannot be; the step counts either way.

        Raises:
            Interrupted: an end was asked for while the rollouts were generated; they are given up.
        """
        if self.end_order.asked:
            self._end()
        coefficient = getattr(self.kl_ctl, "value", None)
        what = ""
        try:
            status, step = super().train_step(rollout_samples, global_step)  # type: ignore[misc]
        except NonFiniteBatch as fault:
            what, step = str(fault), global_step + 1
            status = {**self._compute_rollout_stats(fault.experiences), SKIPPED: 1.0}  # type: ignore[attr-defined]
            experiences = fault.experiences
        else:
            experiences = rollout_samples
            who = [name for name, key in (("the policy", SKIPPED), ("the critic", CRITIC_SKIPPED)) if status.get(key)]
            if who:
                what = f"a loss or gradient of {' and '.join(who)} is not finite"
        if what:
            self._skipped(step, what, experiences, coefficient)
        else:
            self._skipped_in_a_row = 0
        failed = [float(sample.info.get(FAILED, 0.0)) for sample in rollout_samples]
        status[FAILED] = sum(failed) / max(len(failed), 1)
        ids = [sample.sequences[0, 1:] for sample in rollout_samples]
        status[REPETITION] = repetition(ids, masks=[sample.action_mask[0] for sample in rollout_samples])
        return status, step

    def _skipped(self, step: int, what: str, experiences: list[Any], coefficient: float | None) -> None:
        self._skipped_in_a_row += 1
        path = save_batch(self.args.run.dir, step, what, experiences)
        if coefficient is not None and not math.isfinite(self.kl_ctl.value):
            self.kl_ctl.value = coefficient
        self.record.note(f"step {step}: the update is skipped, {what}" + (f"; the batch is in {path}" if path else ""))

    def save_logs_and_checkpoints(self, global_step: int, logs_dict: Any = None, client_states: Any = None) -> None:
        """Log and save as the host does, with a checkpoint out of turn where a rule or an order wants one.

        Raises:
            TrainingStopped: too many updates in a row were skipped, or a collapse stops the run.
            Interrupted: an end was asked for.
        """
        breaches = self.collapse.breaches(logs_dict or {})
        action = self.faults.collapse_action if breaches else "warn"
        limit = self.faults.max_skipped_updates
        hopeless = 0 < limit <= self._skipped_in_a_row
        asked = self.end_order.asked
        self._save_and_log(asked or action != "warn", global_step, logs_dict, client_states)
        self._last = (global_step, dict(client_states or {}), random_state())
        for text in (self.idle.note(logs_dict or {}), *breaches):
            if text:
                self.record.note(text)
        if hopeless:
            raise TrainingStopped(
                f"--faults.max_skipped_updates {limit}: {limit} updates in a row were skipped because a loss, "
                f"gradient, score or advantage is not finite; look at {self.args.run.dir}/postmortem, and try a lower "
                "--actor.adam.lr"
            )
        if action == "stop":
            raise TrainingStopped("; ".join(breaches))
        if asked:
            self._answer(global_step)

    def _save_and_log(self, now: bool, step: int, logs: Any, states: Any) -> None:
        with saving_every(self.args, 1 if now else self.args.ckpt.save_steps):
            super().save_logs_and_checkpoints(step, logs, states)  # type: ignore[misc]

    def record_stop(self, reason: str) -> None:
        """Write why training ended early; a second reason, of the evaluation after it, is a note.

        Raises:
            UnwrittenStop: the disk has no room for it; the model is saved where it can be.
        """
        if self._has_stopped:
            self.record.note(reason)
            return
        self._has_stopped = True
        try:
            self.record.stopped(reason)
        except UnwrittenStop:
            with suppress(Exception):  # the host would save it after a stop that it does not hear of
                self._save_model()
            raise

    @contextmanager
    def until_asked(self, end: Callable[[], None] | None = None) -> Iterator[None]:
        """Go on until the driver asks for an end; then save what there is (`end`), and wait to be ended."""
        try:
            yield
        except Interrupted:
            pass
        except (GivenUp, RayActorError):  # the second where the host asks engines that are dead for something more
            if not self.end_order.asked:
                raise
            with suppress(Interrupted):
                (end or self._end)()
        else:
            return
        wait_for_the_driver(self.end_order)

    def end_with_the_model(self) -> None:
        """Save the model, too, as the host's command would: the order came after the last step.

        Raises:
            Interrupted: always.
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
        """Save what the last whole step left, unless that is done; rollouts since then change nothing of it."""
        if self._last is None or self.saved_step == self._last[0]:
            return
        step, states, self._resumed_random = self._last
        with suppress(CheckpointFailed):  # it is in the record, and the run ends anyway
            self._save_and_log(True, step, None, states)

    def _answer(self, step: int, also: str = "") -> None:
        text = also + what_is_saved(self.args, self.saved_step)
        self.record.note(f"interrupted after step {step}: {text}")
        self.end_order.answer(text)
        raise Interrupted(text)


def what_is_saved(args: Any, step: int) -> str:
    """Say what a run that ends early leaves to go on from; `step` is that of its newest checkpoint, 0 for none."""
    if not saves_weights(args):
        return "no weights were saved (--ckpt.disable_ds without --ckpt.save_hf)"
    if step:
        return f"{'export' if args.ckpt.disable_ds else 'checkpoint'} of step {step} in {args.ckpt.path}"
    return f"nothing new to save after {args.run.resume_from}" if args.run.resume_from else "nothing to save"
