"""Additions to the host shared by the synchronous and asynchronous trainer: seeds, KTAE's metrics, the run record."""

import json
import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import cached_property
from typing import Any

import numpy as np
import torch
from openrlhf.utils.logging_utils import init_logger

from openrlhf_ktae.base.batches import trainable
from openrlhf_ktae.record.metrics import RunRecord
from openrlhf_ktae.record.rollouts import RolloutRecorder

logger = init_logger(__name__)


def seed_everything(seed: int) -> None:
    """Seed this process: the host shuffles prompts here but seeds only the model actors (OpenRLHF#1355)."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def recorded_credit(options: Any) -> dict[str, Any] | None:
    """Return the run's estimator for the record: name, weight, options and file; None without one."""
    if not options.name:
        return None
    own = json.loads(options.options or "{}") if options.config is None else asdict(options.config)
    return {"name": options.name, "weight": options.weight, "options": own, "file": options.file}


class Forgiving:
    """Wraps a tracker's methods so that the first disk error disables the tracker, with a note."""

    def __init__(self, name: str, note: Callable[[str], None]) -> None:
        self._name, self._note, self._given_up = name, note, False

    def __call__(self, call: Callable[..., None]) -> Callable[..., None]:
        """Return `call`, wrapped to do nothing once a call of this tracker has failed."""

        def forgiving(*args: Any, **kwargs: Any) -> None:
            if self._given_up:
                return
            try:
                call(*args, **kwargs)
            except OSError as error:
                self._given_up = True
                self._note(f"{self._name} is disabled for the rest of this run: {error}")

        return forgiving


class RecordingTrainer:
    """Mixin for a trainer: its steps and evaluations go to the run record."""

    args: Any
    experience_maker: Any
    tokenizer: Any
    tensorboard_logger: Any
    wandb_logger: Any
    _closing: list[Callable[[], None]]

    @cached_property
    def record(self) -> RunRecord:
        """The record of this run, opened on first use."""
        return RunRecord(self.args.run.dir)

    @cached_property
    def rollout_recorder(self) -> RolloutRecorder:
        """The record of rollouts, opened on first use."""
        args = self.args
        about = {
            "model": args.actor.model_name_or_path,
            "estimator": args.algo.advantage.estimator,
            "ktae": asdict(args.algo.ktae.config),
            "ktae_enabled": args.algo.credit.name == "ktae",
            "credit": recorded_credit(args.algo.credit),
            "shadow": bool(args.algo.credit.shadow),
            "shuffled": bool(args.algo.credit.shuffle_labels),
        }
        limits = args.ktae.record_max_mb, args.ktae.record_groups
        return RolloutRecorder(args.run.dir, args.ktae.record_rollouts, *limits, about)

    def note_all(self, notes: Sequence[str]) -> None:
        """Write notes for the user."""
        for note in notes:
            self.record.note(note)

    def record_plan(self, prompts: int) -> None:
        """Record how many steps the data allow, for the progress display; filtering can leave fewer."""
        whole, rest = divmod(prompts, self.args.rollout.batch_size)
        last = trainable(rest * self.args.rollout.n_samples_per_prompt, self.args) > 0
        self.record.plan((whole + last) * self.args.train.num_episodes)

    def train_step(self, rollout_samples: list[Any], global_step: int) -> tuple[dict[str, Any], int]:
        """Train as the host does; add the metrics of credit; record this step's rollouts if requested."""
        self.experience_maker.keep_credit = self.rollout_recorder.wants(global_step + 1)
        status, step = super().train_step(rollout_samples, global_step)  # type: ignore[misc]
        status.update(self.experience_maker.metrics)
        credit, self.experience_maker.credit = self.experience_maker.credit, None
        if credit is not None:
            try:
                self.rollout_recorder.write(step, credit, self.tokenizer)
            except OSError as error:
                self.record.note(f"the rollouts of step {step} are not recorded: {error}")
            if self.rollout_recorder.full:
                logger.warning("--ktae.record_max_mb is reached: no more rollouts are recorded")
        return status, step

    def save_logs_and_checkpoints(self, global_step: int, logs_dict: Any = None, client_states: Any = None) -> None:
        """Log and save as the host does, then record the step; the checkpoint is committed after that.

        Without `logs_dict` the step is already in the record, and only an extra checkpoint is saved.
        """
        try:
            super().save_logs_and_checkpoints(global_step, logs_dict, client_states)  # type: ignore[misc]
        finally:  # the step counts even if its checkpoint fails
            if logs_dict is not None:
                self._record_step(global_step, logs_dict)

    def _record_step(self, global_step: int, logs_dict: Any) -> None:
        key_tokens = self.experience_maker.key_tokens
        if self.tensorboard_logger and key_tokens:
            text = "\n".join(f"    {side}: {tokens}" for side, tokens in key_tokens.items())
            with suppress(OSError):
                self.tensorboard_logger.writer.add_text("train/key_tokens", text, global_step)
        self.record.step(global_step, logs_dict or {}, key_tokens)

    def hold_trackers(self) -> None:
        """Keep TensorBoard and W&B open when the host closes them, because the last evaluation comes later.

        A disk error, such as a full disk, disables the tracker with a note and does not end the run.
        """
        self._closing = []
        for tracker in (self.wandb_logger, self.tensorboard_logger):
            if tracker:
                forgiving = Forgiving(type(tracker).__name__, self.record.note)
                self._closing.append(forgiving(tracker.close))
                tracker.close = lambda: None
                tracker.log_train, tracker.log_eval = forgiving(tracker.log_train), forgiving(tracker.log_eval)

    def close_trackers(self) -> None:
        """Close the trackers that `hold_trackers` kept open."""
        for close in self._closing:
            close()
        self._closing = []

    def track_evaluation(self, global_step: int, logs: dict[str, float]) -> None:
        """Send an evaluation's metrics to TensorBoard and W&B, as the host sends its own."""
        for tracker in (self.wandb_logger, self.tensorboard_logger):
            if tracker:
                tracker.log_eval(global_step, logs)

    def save_best_checkpoint(self, eval_metrics: Any, global_step: int, client_states: Any = None) -> None:
        """Record an evaluation during training; both trainers call this after each evaluation."""
        self.record.evaluation("during", global_step, eval_metrics or {})
        super().save_best_checkpoint(eval_metrics, global_step, client_states)  # type: ignore[misc]
