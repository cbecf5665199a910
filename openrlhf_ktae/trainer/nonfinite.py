"""Non-finite numbers must not reach the weights.

The trainer checks scores, log-probabilities and advantages before it sends them to the ranks. The ranks check gradients
at the optimizer step; a non-finite loss has non-finite gradients. DeepSpeed has the second check for fp16 (ZeRO-3) and
for fp16 and bf16 (ZeRO-1 and 2): ranks agree by a reduction, the step is skipped, gradients are dropped and the
schedule does not advance. Here it is enabled for every dtype.
"""

import logging
import math
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from openrlhf.trainer.ppo_utils.experience import Experience

from openrlhf_ktae.base.errors import TrainingStopped

logger = logging.getLogger(__name__)

POSTMORTEM = "postmortem"
FAULTS_STATE = "faults"  # our key in the trainer's part of a checkpoint
SKIPPED = "faults/skipped_updates"
CRITIC_SKIPPED = "faults/skipped_critic_updates"
CHECKED = ("advantages", "action_log_probs", "base_action_log_probs")
SAVED = (
    *("sequences", "attention_mask", "action_mask", "advantages", "returns", "rewards", "scores"),
    *("action_log_probs", "base_action_log_probs", "rollout_log_probs"),
)
MOST_BATCHES = 10  # if a run keeps skipping, only the first ones are kept


class NonFiniteBatch(RuntimeError):
    """A batch that must not be trained on; `experiences` are its micro-batches."""

    def __init__(self, what: str, experiences: Sequence[Experience] = ()) -> None:
        super().__init__(what)
        self.experiences = list(experiences)


def refuse_nonfinite(experiences: Sequence[Experience]) -> None:
    """Raise `NonFiniteBatch` if a score is infinite, or a `CHECKED` value of an action token is not finite.

    A NaN score is an unknown verdict and is allowed: its rollout is excluded from group statistics, with advantage 0.
    """
    scores = [e.scores.flatten() for e in experiences if e.scores is not None]
    if scores and torch.cat(scores).isinf().any():
        raise NonFiniteBatch("a score is infinite", experiences)
    for e in experiences:
        for name in CHECKED:
            values = getattr(e, name, None)
            if values is None or math.isfinite(values.sum()):  # the usual case; a sum is the fastest check
                continue
            if name == "action_log_probs" and values.isnan().all():
                continue  # not computed, see `old_log_probs`; a model that yields only NaN shows in the gradients
            acted = e.action_mask.bool()
            if values.shape == acted.shape and not values[acted].isfinite().all():
                raise NonFiniteBatch(f"{name.replace('_', ' ')} of an action token are not finite", experiences)


def skip_nonfinite_updates(optimizer: Any) -> None:
    """Make a DeepSpeed ZeRO optimizer check its gradients before each step, for every dtype.

    Raises AttributeError if the optimizer has no such check (another DeepSpeed release).
    """
    check = optimizer.check_overflow
    if hasattr(optimizer, "check_grad_overflow"):  # ZeRO-1 and 2
        optimizer.check_grad_overflow = True
        return
    if optimizer.dtype == torch.float16:
        return
    update_scale = optimizer._update_scale

    def checked(has_overflow: bool) -> None:
        # A sum is finite only if all summands are. DeepSpeed's own check makes tensors as large as the gradients.
        suspect = 1 - optimizer.grad_partitions_flat_buffer.sum().isfinite().to(torch.uint8)
        torch.distributed.all_reduce(suspect, op=torch.distributed.ReduceOp.MAX)
        optimizer.overflow = False
        if suspect.item():
            check()
        update_scale(optimizer.overflow)

    optimizer._update_scale = checked  # called by `step` right before it reads `overflow`


def save_batch(directory: str | Path, step: int, what: str, experiences: Sequence[Experience]) -> Path | None:
    """Save the batch for a post-mortem, as plain tensors and texts that `torch.load(weights_only=True)` can read.

    Returns its path; None if enough batches are saved, or the write fails.
    """
    folder = Path(directory) / POSTMORTEM
    path = folder / f"step-{step:06d}.pt"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if len(list(folder.iterdir())) >= MOST_BATCHES:
            return None
        _write_batch(path, step, what, experiences)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        logger.warning(f"the batch of step {step} could not be saved to {path}: {error}")
        with suppress(OSError):
            path.unlink(missing_ok=True)
        return None
    return path


def _write_batch(path: Path, step: int, what: str, experiences: Sequence[Experience]) -> None:
    batches = []
    for e in experiences:
        tensors = {name: getattr(e, name, None) for name in SAVED}
        batch: dict[str, Any] = {name: t.cpu() for name, t in tensors.items() if isinstance(t, torch.Tensor)}
        batches.append({**batch, "prompts": list(e.prompts), "labels": [str(label) for label in e.labels]})
    torch.save({"step": step, "what": what, "micro_batches": batches}, path)


class SkippingTrainer:
    """Mixin that skips updates with non-finite numbers. A skipped step still counts as a step."""

    args: Any
    record: Any
    kl_ctl: Any
    _skipped_in_a_row = 0

    def training_state(self) -> dict[str, Any]:
        """Add the number of consecutive skipped updates to the checkpoint's state."""
        state = super().training_state()  # type: ignore[misc]
        return {**state, FAULTS_STATE: {**state.get(FAULTS_STATE, {}), "skipped": self._skipped_in_a_row}}

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Restore `training_state`."""
        super().load_training_state(state)  # type: ignore[misc]
        self._skipped_in_a_row = state.get(FAULTS_STATE, {}).get("skipped", 0)

    def train_step(self, rollout_samples: list[Any], global_step: int) -> tuple[dict[str, Any], int]:
        """Train as the host does, unless the batch cannot be trained on."""
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
        return status, step

    def _skipped(self, step: int, what: str, experiences: list[Any], coefficient: float | None) -> None:
        self._skipped_in_a_row += 1
        path = save_batch(self.args.run.dir, step, what, experiences)
        if coefficient is not None and not math.isfinite(self.kl_ctl.value):
            self.kl_ctl.value = coefficient
        self.record.note(f"step {step}: the update is skipped, {what}" + (f"; the batch is in {path}" if path else ""))

    def save_logs_and_checkpoints(self, global_step: int, logs_dict: Any = None, client_states: Any = None) -> None:
        """Log and save as the host does. Raises TrainingStopped if too many updates in a row were skipped."""
        super().save_logs_and_checkpoints(global_step, logs_dict, client_states)  # type: ignore[misc]
        limit = self.args.faults.config.max_skipped_updates
        if 0 < limit <= self._skipped_in_a_row:
            raise TrainingStopped(
                f"--faults.max_skipped_updates {limit}: {limit} updates in a row were skipped because a loss, "
                f"gradient, score or advantage was not finite; look at {self.args.run.dir}/postmortem, and try a lower "
                "--actor.adam.lr"
            )
