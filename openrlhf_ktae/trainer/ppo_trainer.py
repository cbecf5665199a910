"""Departure from the host: its synchronous trainer with KTAE's experience maker, and evaluations before and after."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from openrlhf.trainer import ppo_trainer as host

from openrlhf_ktae.base.errors import TrainingStopped
from openrlhf_ktae.base.host import undecorated
from openrlhf_ktae.checkpoint.folder import BEST
from openrlhf_ktae.data.names import accept_any_path
from openrlhf_ktae.trainer.ending import reason_of
from openrlhf_ktae.trainer.engines import EngineKeeper
from openrlhf_ktae.trainer.guarded_trainer import GuardedTrainer
from openrlhf_ktae.trainer.ppo_utils import prompts
from openrlhf_ktae.trainer.ppo_utils.data_position import PositionedLoader
from openrlhf_ktae.trainer.ppo_utils.experience_maker import KTAEExperienceMaker
from openrlhf_ktae.trainer.ppo_utils.host_speed import tune_process
from openrlhf_ktae.trainer.ppo_utils.replay import ReplayGenerator, recorded_data
from openrlhf_ktae.trainer.ppo_utils.samples_generator import KTAESamplesGenerator
from openrlhf_ktae.trainer.recording import seed_everything

_HostTrainer: Any = undecorated(host.PPOTrainer)


class KTAEPPOTrainer(GuardedTrainer, _HostTrainer, EngineKeeper):
    """Single controller of a synchronous run."""

    _evaluated: tuple[int, dict[str, float]] = (-1, {})
    """The step of the last evaluation in this process, and its metrics."""

    def __init__(self, pretrain: str, strategy: Any, *args: Any, **kwargs: Any) -> None:
        seed_everything(strategy.args.train.seed)
        # The host looks up these names as module globals when it builds the trainer.
        host.RemoteExperienceMaker = KTAEExperienceMaker
        host.SamplesGenerator = KTAESamplesGenerator
        if strategy.args.train.replay:
            host.SamplesGenerator, host.prepare_datasets = ReplayGenerator, recorded_data
        prompts.use_in_this_process()
        host.blending_datasets = accept_any_path(host.blending_datasets)
        super().__init__(pretrain, strategy, *args, **kwargs)
        self.note_all(prompts.notes_of(self.prompts_dataloader, self.eval_dataloader))
        self.prompts_dataloader: Any = PositionedLoader(self.prompts_dataloader, self.samples_generator)
        self.samples_generator.send_weights = self.send_weights
        self.samples_generator.end_order = self.end_order
        self.samples_generator.note = self.record.note
        self.experience_maker.note = self.record.note
        tune_process()

    def fit(self, global_step: int = 0) -> None:
        """Train as the host does, with an evaluation before and after."""
        self.hold_trackers()
        self.record_plan(len(self.prompts_dataloader))
        with self._until_stopped(), self.until_end_requested():
            if not self.args.run.resume_from:
                self._evaluate_edge("before", global_step)
            self.end_order.training()
            super().fit(global_step)
        left = self.samples_generator.left_over
        if left:
            self.record.note(f"{left} rollouts at the end of the data are not trained on: too few for a step")
        with self._until_stopped(), self.until_end_requested(self.end_with_model):
            self._evaluate_edge("after", self.record.last_step)
        self.close_trackers()

    @contextmanager
    def _until_stopped(self) -> Iterator[None]:
        try:
            yield
        except TrainingStopped as stop:
            self.record_stop(reason_of(stop))  # the current model is saved; the command reports the reason and fails

    def train_step(self, rollout_samples: list[Any], global_step: int) -> tuple[dict[str, Any], int]:
        """Train as the host does; add the metrics of continuations, which are sampled besides the rollouts."""
        status, step = super().train_step(rollout_samples, global_step)
        status.update(self.samples_generator.continuation_metrics)
        return status, step

    def broadcast_to_vllm(self) -> None:
        """Send the weights as the host does; the first time after a resume, also evaluate if that was due."""
        super().broadcast_to_vllm()
        self._run_missed_evaluation()

    def _run_missed_evaluation(self) -> None:
        """Evaluate with the weights just sent if that was due at the checkpoint's step: the run may have died first."""
        states, self.resumed_states = self.resumed_states, None
        if states is None or self.eval_dataloader is None or Path(self.args.run.resume_from).name.startswith(BEST):
            return
        step = states["global_step"]
        if step % self.args.eval.steps == 0:
            self.save_best_checkpoint(self.evaluate(step, **self._evaluation_settings()), step, states)

    def evaluate(self, global_step: int, **generate_kwargs: Any) -> dict[str, float]:
        """Evaluate as the host does; add accuracy and length with confidence intervals."""
        logs = super().evaluate(global_step, **generate_kwargs)
        self.track_evaluation(global_step, self.samples_generator.last_eval)
        self._evaluated = global_step, {**logs, **self.samples_generator.last_eval}
        return dict(self._evaluated[1])

    def _evaluate_edge(self, when: str, global_step: int) -> None:
        """Evaluate and record the result; reuse an evaluation already made at this step."""
        if self.eval_dataloader is None or not self.args.run.eval_edges:
            return
        step, logs = self._evaluated
        if step != global_step:
            logs = self.evaluate(global_step, **self._evaluation_settings())
        self.record.evaluation(when, global_step, logs)

    def _evaluation_settings(self) -> dict[str, Any]:
        return {
            **self.generate_kwargs,
            "temperature": self.args.eval.temperature,
            "n_samples_per_prompt": self.args.eval.n_samples_per_prompt,
        }
