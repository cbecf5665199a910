"""Departure from the host: a checkpoint is one folder, written atomically, with everything the next step depends on.

The host saves its part through `super()`, redirected into a staging folder. The trainer adds the state that the host
does not save. The folder is renamed once everything is on disk (`openrlhf_ktae.checkpoint`).
"""

import math
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ray
import torch
from openrlhf.utils.logging_utils import init_logger
from ray.exceptions import RayTaskError

from openrlhf_ktae.base.errors import TrainingStopped
from openrlhf_ktae.base.gpu_machine import GIB
from openrlhf_ktae.base.temporarily import temporarily
from openrlhf_ktae.checkpoint.folder import BEST, TRAINER_STATE
from openrlhf_ktae.checkpoint.model_files import NOT_SAVED
from openrlhf_ktae.checkpoint.random_state import random_state, restore_random_state
from openrlhf_ktae.checkpoint.space import DiskFull, expected_bytes, in_units, require_space
from openrlhf_ktae.checkpoint.write import FilesNotVisible, abandon, begin, commit, rotate, undeleted
from openrlhf_ktae.memory.model_shape import model_shape
from openrlhf_ktae.memory.phases import BYTES, trained_parameters
from openrlhf_ktae.processes.deaths import died
from openrlhf_ktae.record.metrics import RunRecord
from openrlhf_ktae.trainer.ppo_utils.data_position import POSITION, plain_position

logger = init_logger(__name__)

NO_METRIC = "none"
# Texts of errors of torch and safetensors when a write fails. A model that transformers refuses to save has others.
WRITING = re.compile(r"No space|I/O error|PytorchStreamWriter|inline_container|iostream error", re.IGNORECASE)
LOADER = "data_loader_state_dict"  # the host's key for its position in the data


class CheckpointFailed(TrainingStopped):
    """A checkpoint could not be written, and `--ckpt.on_failure stop` is set."""


def saves_weights(args: SimpleNamespace) -> bool:
    """Whether a checkpoint would contain the model, to resume from or as an export. If not, none is written."""
    return bool(args.ckpt.save_hf or not args.ckpt.disable_ds)


class CheckpointingTrainer:
    """Mixin for a trainer; saves the `training_state` that the mixins before it extend."""

    args: Any
    kl_ctl: Any
    experience_maker: Any
    actor_model_group: Any
    critic_model_group: Any
    record: RunRecord
    best_eval_metric_key: str
    best_eval_metric_value: float
    saved_step = 0
    _undeleted: frozenset[str] = frozenset()
    _resumed_random: dict[str, Any] | None = None
    resumed_states: dict[str, Any] | None = None
    """The host's states from the checkpoint that the run resumes from, as saved."""

    def training_state(self) -> dict[str, Any]:
        """Return the state of this process that the next step depends on, as plain containers and tensors."""
        return {
            "kl_coefficient": float(self.kl_ctl.value),
            "shuffle": self.experience_maker.shuffle.get_state(),
            "random": self._resumed_random or random_state(),
        }

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Restore `training_state`. Random states are set when the first step begins, so nothing can draw before it.

        An adaptive KL controller resumes with its saved coefficient, unless the user accepted a changed initial value.
        A fixed controller uses the option's value.
        """
        options, changed = self.args.algo.kl, "algo.kl.init_coef" in self.args.run.accepted_changes
        self.kl_ctl.value = state["kl_coefficient"] if options.target and not changed else options.init_coef
        self.experience_maker.shuffle.set_state(state["shuffle"])
        self._resumed_random = state["random"]

    def init_checkpoint_states(self) -> dict[str, Any]:
        """Return the host's states from the checkpoint to resume from; load our part of it, if it has one."""
        source = self.args.run.resume_from
        with temporarily(self.args.ckpt, path=str(source or self.args.ckpt.path)):
            states = super().init_checkpoint_states()  # type: ignore[misc]
        if not source:
            return states
        self.record.last_step = states["global_step"]
        if Path(source).parent.absolute() == Path(self.args.ckpt.path).absolute():
            self.saved_step = states["global_step"]
        path = Path(source) / TRAINER_STATE
        if not path.is_file():  # plain OpenRLHF wrote it
            return states
        saved = torch.load(path, weights_only=True)
        self.load_training_state(saved["trainer"])
        position = saved[POSITION]
        if old := saved["trainer"].get("sampling"):  # an older checkpoint has the generator's ledger here
            keys, rows = old["pass_rates"]["keys"].tolist(), map(tuple, old["pass_rates"]["rows"].tolist())
            position |= {"prompts_seen": old["prompts_seen"], "pass_rates": dict(zip(keys, rows, strict=True))}
        states[LOADER] = {"loader": states[LOADER], POSITION: position}
        self.resumed_states = dict(states)
        if position["ended"]:
            states["episode"] += 1  # saved after the last step of an episode, which must not be repeated
        return states

    def restore_best_checkpoint_state(self, checkpoint_states: dict[str, Any]) -> None:
        """Restore the best evaluation as the host does, unless `--ckpt.best_metric_key` now names another metric."""
        key = self.args.ckpt.best_metric_key
        if key and checkpoint_states and checkpoint_states.get("best_eval_metric_key") not in (None, "", key):
            checkpoint_states = {name: value for name, value in checkpoint_states.items() if "eval_metric" not in name}
        super().restore_best_checkpoint_state(checkpoint_states)  # type: ignore[misc]

    def train_step(self, rollout_samples: list[Any], global_step: int) -> tuple[dict[str, Any], int]:
        """Train as the host does; the first step after a resume starts with the checkpoint's random states."""
        state, self._resumed_random = self._resumed_random, None
        if state:
            restore_random_state(state)
        return super().train_step(rollout_samples, global_step)  # type: ignore[misc]

    def save_logs_and_checkpoints(self, global_step: int, logs_dict: Any = None, client_states: Any = None) -> None:
        """Log and save as the host does, into one folder that appears once it is complete."""
        save = super().save_logs_and_checkpoints  # type: ignore[misc]
        if global_step % self.args.ckpt.save_steps:
            save(global_step, logs_dict, client_states)
            return
        if not saves_weights(self.args) or not self._has_room():
            with temporarily(self.args.ckpt, save_steps=math.inf):
                save(global_step, logs_dict, client_states)
            return
        self._save(f"global_step{global_step}", client_states, lambda states: save(global_step, logs_dict, states))

    def save_best_checkpoint(self, eval_metrics: Any, global_step: int, client_states: Any = None) -> None:
        """Save as the host does if the evaluation is the best so far."""
        save = super().save_best_checkpoint  # type: ignore[misc]
        # The host is about to save if this improves; detecting the metric key also sets it, as in the host.
        key = self._detect_eval_metric_key(eval_metrics) if eval_metrics else None  # type: ignore[attr-defined]
        if key is None or not eval_metrics[key] > self.best_eval_metric_value:
            save(eval_metrics, global_step, client_states)
            return
        if not saves_weights(self.args) or not self._has_room():
            with temporarily(self, best_eval_metric_key=NO_METRIC):
                save(eval_metrics, global_step, client_states)
            return
        before = self.best_eval_metric_value
        tag = f"{BEST}global_step{global_step}"
        if not self._save(tag, client_states, lambda states: save(eval_metrics, global_step, states)):
            self.best_eval_metric_value = before  # the best evaluation must have a checkpoint

    def _save(self, tag: str, client_states: Any, save: Callable[[dict[str, Any]], None]) -> bool:
        """Let `save` write into a staging folder, and add this process's state; return whether it was committed."""
        root = self.args.ckpt.path
        states = dict(client_states or {})
        position = states.get(LOADER) or {}
        if POSITION in position:
            states[LOADER] = position["loader"]
        try:
            folder = begin(root, tag)
            save(states)
            if (folder / NOT_SAVED).is_file():
                self.record.note(f"checkpoint {tag}: {(folder / NOT_SAVED).read_text(encoding='utf-8')}")
            state = {"trainer": self.training_state(), POSITION: plain_position(position.get(POSITION))}
            torch.save(state, folder / TRAINER_STATE)
            self.record.sync()
            commit(root, tag, states.get("global_step", 0), self.args.run.about, self._files_seen(tag))
        except (OSError, RuntimeError, RayTaskError) as error:
            if died(error):  # after a rank dies, the others report a closed connection
                raise
            self._failed(tag, error)
            return False
        self.saved_step = states.get("global_step", 0)
        self._rotate(Path(root))
        return True

    def _files_seen(self, tag: str) -> list[tuple[str, dict[str, int]]]:
        groups = [group for group in (self.actor_model_group, self.critic_model_group) if group is not None]
        return ray.get([ref for group in groups for ref in group.async_run_method("files_seen", tag)])

    def _rotate(self, root: Path) -> None:
        """Delete old checkpoints. One that cannot be deleted is noted once, and later ones are still deleted."""
        try:
            for name in rotate(root, self.args.ckpt.max_num, self.args.ckpt.max_mem * GIB):
                logger.info(f"deleted checkpoint {name}")
            left = {path.name for path in undeleted(root)} - self._undeleted
        except OSError as error:
            self.record.note(f"--ckpt.path {root}: old checkpoints cannot be deleted: {error}")
            return
        if left:
            self._undeleted = self._undeleted | left
            self.record.note(f"--ckpt.path {root}: {', '.join(sorted(left))} cannot be deleted; delete them by hand")

    def _has_room(self) -> bool:
        args, root = self.args, Path(self.args.ckpt.path)
        shape = model_shape(args.actor.model_name_or_path)
        parameters, trained = (shape.parameters, trained_parameters(args, shape)) if shape else (None, None)
        size = BYTES[args.ds.param_dtype]
        try:
            root.mkdir(parents=True, exist_ok=True)
            require_space(root, expected_bytes(root, parameters, size, args.ckpt.save_hf, trained))
        except OSError as error:
            self._failed("", error)
            return False
        return True

    def _failed(self, tag: str, error: Exception) -> None:
        """Note that no checkpoint was written, and continue or stop as `--ckpt.on_failure` says.

        Raises CheckpointFailed with `stop`.
        """
        cause = error.cause if isinstance(error, RayTaskError) else error
        explained = isinstance(cause, (DiskFull, FilesNotVisible))
        what = str(cause) if explained else f"{type(cause).__name__}: {cause}"
        if tag and not explained:
            with suppress(OSError):  # torch's own message does not mention a full disk
                if isinstance(cause, OSError) or WRITING.search(str(cause)):
                    left = in_units(shutil.disk_usage(self.args.ckpt.path).free)
                    what = f"the disk had {left} free when the write failed, {what}"
        if tag:
            abandon(self.args.ckpt.path, tag)
        text = f"no checkpoint {tag}".rstrip() + f": {' '.join(what.split())[:400]}; the last complete one is kept"
        self.record.note(text)
        if self.args.ckpt.on_failure == "stop":
            raise CheckpointFailed(f"{text} (--ckpt.on_failure stop)") from error
