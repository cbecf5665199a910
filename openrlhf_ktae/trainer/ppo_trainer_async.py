"""Departure from the host: its asynchronous trainer with KTAE's experience maker and evaluations at both ends.

Three Ray actors take part: one generates, one trains, and one starts both. The host looks the first two up as globals
of its module, in the process of the third.
"""

from typing import Any

import ray
from openrlhf.trainer import ppo_trainer as host_base
from openrlhf.trainer import ppo_trainer_async as host
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from openrlhf_ktae.base.errors import TrainingStopped
from openrlhf_ktae.base.host import undecorated
from openrlhf_ktae.data.names import accept_any_path
from openrlhf_ktae.processes.deaths import POLL_SECONDS, innermost
from openrlhf_ktae.processes.ending import EndOrder, GivenUp
from openrlhf_ktae.record.metrics import RunRecord
from openrlhf_ktae.trainer.ending import reason_of
from openrlhf_ktae.trainer.engines import (
    AnsweringQueue,
    EngineKeeper,
    WeightsWanted,
    engine_died,
    have_weights,
    wait_for_weights,
)
from openrlhf_ktae.trainer.guarded_trainer import GuardedTrainer
from openrlhf_ktae.trainer.ppo_utils import prompts
from openrlhf_ktae.trainer.ppo_utils.data_position import PositionedLoader
from openrlhf_ktae.trainer.ppo_utils.experience_maker import KTAEExperienceMaker
from openrlhf_ktae.trainer.ppo_utils.host_speed import tune_process
from openrlhf_ktae.trainer.ppo_utils.samples_generator import KTAESamplesGenerator
from openrlhf_ktae.trainer.recording import seed_everything
from openrlhf_ktae.trainer.staleness import ages, slots

_HostGenerator: Any = undecorated(host.GenerateSamplesActor)
_HostTrainingActor: Any = undecorated(host.TrainingActor)
_HostTrainer: Any = undecorated(host.PPOTrainerAsync)


class KTAEGenerateSamplesActor(_HostGenerator):
    """Generates rollouts and runs the evaluations."""

    def __init__(self, pretrain: str, strategy: Any, *args: Any, **kwargs: Any) -> None:
        seed_everything(strategy.args.train.seed)
        host.SamplesGenerator = KTAESamplesGenerator
        prompts.use_in_this_process()
        host_base.blending_datasets = accept_any_path(host_base.blending_datasets)
        self.stop_reason = ""
        self._evaluating = False
        super().__init__(pretrain, strategy, *args, **kwargs)
        self.samples_generator.note = RunRecord(strategy.args.run.dir).note
        self.prompt_notes = prompts.notes_of(self.prompts_dataloader, self.eval_dataloader)
        self.prompts_dataloader: Any = PositionedLoader(self.prompts_dataloader, self.samples_generator)
        tune_process()

    def _run_eval(self) -> dict[str, float]:
        """Evaluate as the host does; add accuracy and length with confidence intervals."""
        self._evaluating = True
        try:
            return {**super()._run_eval(), **self.samples_generator.last_eval}
        finally:
            self._evaluating = False

    def fit(self, episode: int, total_consumed_prompts: int) -> None:
        """Generate as the host does, or until `TrainingStopped`."""
        self.samples_generator.send_weights = self.request_weights
        try:
            super().fit(episode, total_consumed_prompts)
        except TrainingStopped as stop:
            self.stop_reason = reason_of(stop)
            self.rollout_queue.put("done", block=True)  # the trainer waits for it
        finally:
            self.samples_generator.send_weights = None

    def request_weights(self, why: str) -> None:
        """Have the trainer restart dead engines, and wait until they can generate.

        The generator holds the engines' lock in an evaluation, and in training unless rollouts may be partial. The
        trainer needs the lock to send weights, so it is released meanwhile.
        """
        holds_lock = self._evaluating or not self._partial_rollout
        if holds_lock:
            ray.get(self.vllm_lock.release.remote())
        try:
            self.rollout_queue.put(WeightsWanted(why), block=True)  # the queue has room for rollouts in progress
            wait_for_weights(self.samples_generator.vllm_engines)
        finally:
            if holds_lock:
                ray.get(self.vllm_lock.acquire.remote())

    def get_stop_reason(self) -> str:
        """Return the reason for an early end; empty if there is none."""
        return self.stop_reason

    def about_prompts(self) -> tuple[int, list[str]]:
        """Return the number of prompts of one episode, and notes about them for the user."""
        return len(self.prompts_dataloader), self.prompt_notes

    def evaluate_edge(self) -> dict[str, float]:
        """Evaluate outside the training loop, when nothing else generates; return nothing without held-out data."""
        return self._run_eval() if self.eval_dataloader is not None else {}


class KTAETrainingActor(GuardedTrainer, _HostTrainingActor, EngineKeeper):
    """Turns rollouts into updates."""

    def __init__(self, pretrain: str, strategy: Any, *args: Any, **kwargs: Any) -> None:
        seed_everything(strategy.args.train.seed)
        host_base.RemoteExperienceMaker = KTAEExperienceMaker
        host_base.blending_datasets = accept_any_path(host_base.blending_datasets)
        super().__init__(pretrain, strategy, *args, **kwargs)
        self.rollout_queue: Any = AnsweringQueue(self.rollout_queue, self.send_weights, self.end_order)
        self.experience_maker.note = self.record.note
        tune_process()

    def fit(self, global_step: int = 0) -> None:
        """Train as the host does until an end is requested; stops are reported to the parent actor."""
        self.end_order.training()
        with self.until_end_requested():
            super().fit(global_step)

    def init_checkpoint_states(self) -> dict[str, Any]:
        """Return the host's states; the next weights sent to the engines are the checkpoint's."""
        states = super().init_checkpoint_states()
        self.weights_step = states["global_step"]
        return states

    def train_step(self, rollout_samples: list[Any], global_step: int) -> tuple[dict[str, Any], int]:
        """Train as the host does; log the age of the weights that sampled the rollouts."""
        self.weights_step = global_step + 1
        old = ages(rollout_samples, global_step)
        status, step = super().train_step(rollout_samples, global_step)
        return status | old, step

    def broadcast_to_vllm(self) -> None:
        """Send as the host does, which pauses and resumes engines that are generating.

        If an engine dies during the pause, the host keeps the engines' lock: release it and retry.
        """
        while self._partial_rollout:
            have_weights(self.vllm_engines)  # a dead one does not answer
            try:
                return super().broadcast_to_vllm()
            except Exception as error:
                if not engine_died(error, self.vllm_engines):
                    raise
                ray.get(self.vllm_lock.release.remote())
        super().broadcast_to_vllm()

    def abort_evaluation(self) -> None:
        """Save the last step and the model, and wait for the end, requested during an evaluation outside training."""
        with self.until_end_requested(self.end_with_model):
            raise GivenUp

    def record_edge(self, when: str, logs: dict[str, float]) -> None:
        """Write an evaluation before or after training to the run record and the trackers."""
        self.track_evaluation(self.record.last_step, logs)
        self.record.evaluation(when, self.record.last_step, logs)


class KTAEPPOTrainerAsync(_HostTrainer):
    """Starts the two actors above and joins them."""

    def __init__(self, pretrain: str, strategy: Any, *args: Any, **kwargs: Any) -> None:
        # On the driver's node: both write the run's record and read the request to end.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        host.GenerateSamplesActor = ray.remote(KTAEGenerateSamplesActor).options(scheduling_strategy=here)
        host.TrainingActor = ray.remote(KTAETrainingActor).options(scheduling_strategy=here)
        self.args = strategy.args
        self._queue_size, self.args.train.async_queue_size = self.args.train.async_queue_size, slots(self.args)
        super().__init__(pretrain, strategy, *args, **kwargs)

    def fit(self) -> None:
        """Train as the host does, between two evaluations."""
        ray.get(self.trainer_actor.hold_trackers.remote())
        self._fit()
        ray.get(self.trainer_actor.close_trackers.remote())

    def _fit(self) -> None:
        number, notes = ray.get(self.generator_actor.about_prompts.remote())
        if self.args.train.async_queue_size < self._queue_size:
            notes.append(
                f"--train.max_staleness {self.args.train.max_staleness}: {self.args.train.async_queue_size} instead of "
                f"{self._queue_size} batches (--train.async_queue_size) are in flight"
            )
        ray.get(self.trainer_actor.record_plan.remote(number))
        ray.get(self.trainer_actor.note_all.remote(notes))
        if not self.args.run.resume_from and not self._evaluate_edge("before"):
            return
        try:
            super().fit()
        except TrainingStopped as stop:  # from the trainer; the generator would wait for it forever
            ray.kill(self.generator_actor)
            ray.get(self.trainer_actor.record_stop.remote(reason_of(stop)))
            return
        reason = ray.get(self.generator_actor.get_stop_reason.remote())
        if reason:
            ray.get(self.trainer_actor.record_stop.remote(reason))
        self._evaluate_edge("after")

    def _evaluate_edge(self, when: str) -> bool:
        """Evaluate and record the result; return False if that ends the run. A request to end aborts the evaluation."""
        if not self.args.run.eval_edges:
            return True
        try:
            logs = self._edge_logs()
        except TrainingStopped as stop:
            ray.get(self.trainer_actor.record_stop.remote(reason_of(stop)))
            return False
        except GivenUp:
            ray.get(self.trainer_actor.abort_evaluation.remote())
            return False
        if logs:
            ray.get(self.trainer_actor.record_edge.remote(when, logs))
        return True

    def _edge_logs(self) -> dict[str, float]:
        """Evaluate outside the training loop; the idle trainer restarts engines that die."""
        left = self.args.faults.config.engine_restarts
        order = EndOrder(self.args.run.dir)
        while True:
            try:
                evaluated = self.generator_actor.evaluate_edge.remote()
                while not ray.wait([evaluated], timeout=POLL_SECONDS)[0]:
                    if order.asked:
                        raise GivenUp
                return ray.get(evaluated)
            except GivenUp:
                raise
            except Exception as error:
                if not left or not engine_died(error):
                    raise
                left -= 1
                ray.get(self.trainer_actor.send_weights.remote(innermost(error)))
