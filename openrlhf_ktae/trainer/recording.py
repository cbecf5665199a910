"""What both trainers, synchronous and asynchronous, do beside the host: seeds, KTAE's metrics, the run record."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from openrlhf.utils.logging_utils import init_logger

from openrlhf_ktae.base.batches import trainable
from openrlhf_ktae.record.metrics import RunRecord
from openrlhf_ktae.record.rollouts import RolloutRecorder

logger = init_logger(__name__)


def seed_everything(seed: int) -> None:
    """Seed this process: the host shuffles prompts here and seeds only the model actors (OpenRLHF#1355)."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def recorded_credit(options: Any) -> dict[str, Any] | None:
    """Return what a record says of the run's estimator: name, weight, its own options and file; None without one."""
    if not options.name:
        return None
    own = {} if options.config is None else asdict(options.config)
    return {"name": options.name, "weight": options.weight, "options": own, "file": options.file}


class Forgiving:
    """Makes calls of a tracker that give it up at the first error of the disk, with a note."""

    def __init__(self, name: str, note: Callable[[str], None]) -> None:
        self._name, self._note, self._given_up = name, note, False

    def __call__(self, call: Callable[..., None]) -> Callable[..., None]:
        """Return `call`, which does nothing once one of its kind has failed."""

        def forgiving(*args: Any, **kwargs: Any) -> None:
            if self._given_up:
                return
            try:
                call(*args, **kwargs)
            except OSError as error:
                self._given_up = True
                self._note(f"{self._name} gets nothing more of this run: {error}")

        return forgiving


class RecordingTrainer:
    """Mixin before a host trainer class: its steps and evaluations go to the run record."""

    args: Any
    experience_maker: Any
    tokenizer: Any
    tensorboard_logger: Any
    wandb_logger: Any
    _closing: list[Callable[[], None]]

    @property
    def record(self) -> RunRecord:
        """The record of this run, opened when it is first needed."""
        if not hasattr(self, "_record"):
            self._record = RunRecord(self.args.run.dir)
        return self._record

    @property
    def rollout_recorder(self) -> RolloutRecorder:
        """The record of rollouts, opened when it is first needed."""
        if not hasattr(self, "_rollout_recorder"):
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
            self._rollout_recorder = RolloutRecorder(args.run.dir, args.ktae.record_rollouts, *limits, about)
        return self._rollout_recorder

    def note_all(self, notes: Sequence[str]) -> None:
        """Write what a person should know."""
        for note in notes:
            self.record.note(note)

    def record_plan(self, prompts: int) -> None:
        """Write how many steps the data allow, for the progress of the run; filtering can make them fewer."""
        whole, rest = divmod(prompts, self.args.rollout.batch_size)
        last = trainable(rest * self.args.rollout.n_samples_per_prompt, self.args) > 0
        self.record.plan((whole + last) * self.args.train.num_episodes)

    def train_step(self, rollout_samples: list[Any], global_step: int) -> tuple[dict[str, Any], int]:
        """Add KTAE's metrics to the host's; record the rollouts where this step's are asked for."""
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
                logger.warning("--ktae.record_max_mb is reached: no further rollouts are recorded")
        return status, step

    def save_logs_and_checkpoints(self, global_step: int, logs_dict: Any = None, client_states: Any = None) -> None:
        """Log and save as the host does, then write the step; its checkpoint gets its name after that.

        Without `logs_dict` the step is in the record already and its checkpoint comes out of turn.
        """
        try:
            super().save_logs_and_checkpoints(global_step, logs_dict, client_states)  # type: ignore[misc]
        finally:  # a step is a step, whatever becomes of its checkpoint
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
        """Keep TensorBoard and W&B open where the host closes them, for the last evaluation comes after.

        A disk that is full for them does not end the run: they are given up, with a note.
        """
        self._closing = []
        for tracker in (self.wandb_logger, self.tensorboard_logger):
            if tracker:
                forgiving = Forgiving(type(tracker).__name__, self.record.note)
                self._closing.append(forgiving(tracker.close))
                tracker.close = lambda: None
                tracker.log_train, tracker.log_eval = forgiving(tracker.log_train), forgiving(tracker.log_eval)

    def close_trackers(self) -> None:
        """Close what `hold_trackers` kept open."""
        for close in self._closing:
            close()
        self._closing = []

    def track_evaluation(self, global_step: int, logs: dict[str, float]) -> None:
        """Send an evaluation's figures to TensorBoard and W&B, as the host sends its own."""
        for tracker in (self.wandb_logger, self.tensorboard_logger):
            if tracker:
                tracker.log_eval(global_step, logs)

    def save_best_checkpoint(self, eval_metrics: Any, global_step: int, client_states: Any = None) -> None:
        """Record an evaluation during training; both trainers pass here after each."""
        self.record.evaluation("during", global_step, eval_metrics or {})
        super().save_best_checkpoint(eval_metrics, global_step, client_states)  # type: ignore[misc]
