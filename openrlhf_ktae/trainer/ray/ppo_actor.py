"""Departures from the host in the update: Dr. GRPO's constant normaliser, a learning-rate schedule that follows the
data, and old log-probabilities from the update itself."""

from types import SimpleNamespace
from typing import Any

import ray
import torch
from openrlhf.trainer.ray import ppo_actor as host
from openrlhf.utils.loss_utils import get_loss_batch_info
from peft import PeftModel

from openrlhf_ktae.base.host import undecorated
from openrlhf_ktae.base.temporarily import temporarily
from openrlhf_ktae.trainer.lora import MergedModule
from openrlhf_ktae.trainer.nonfinite import SKIPPED, skip_nonfinite_updates
from openrlhf_ktae.trainer.ppo_utils.old_log_probs import UpdateLogProbs
from openrlhf_ktae.trainer.ppo_utils.token_figures import FORMULAS, LOG_PROBS, WatchedActor
from openrlhf_ktae.trainer.ppo_utils.token_gspo import with_token_credit
from openrlhf_ktae.trainer.ray.checkpointing import CheckpointedActor
from openrlhf_ktae.trainer.ray.tensors import send_tensors_plainly
from openrlhf_ktae.trainer.ray.weight_sending import EveryEngine, GuardedGroup, Sending

NO_TOKENS = 1e-6  # weight of a micro-batch without action tokens: the host divides by the sum of weights
_HostPolicyModelActor: Any = undecorated(host.PolicyModelActor)


class KTAEActorPPOTrainer(host.ActorPPOTrainer):
    """The host's update loop with a normaliser that is never 0, optionally constant; tolerates engine deaths."""

    actor: Any
    vllm_engines: Any
    _model_update_group: Any = None
    """The group of rank 0 and the engines; None with CUDA IPC."""
    _sending: Sending | None = None
    """Set on rank 0 while weights are sent."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._watched: dict[Any, Any] = {}
        super().__init__(*args, **kwargs)
        host_loss: Any = self.actor_loss_fn
        self.actor_loss_fn: UpdateLogProbs = UpdateLogProbs(with_token_credit(host_loss, self.args))
        skip_nonfinite_updates(self.actor.model.optimizer)

    def ppo_train(self, kl_ctl: float) -> dict[str, Any]:
        """Update as the host does; add the number of optimizer steps skipped as non-finite."""
        before = self.actor.model.skipped_steps
        status = super().ppo_train(kl_ctl)
        return {**status, SKIPPED: float(self.actor.model.skipped_steps - before)}

    def training_step(
        self, experience: Any, kl_ctl: float, step: int, loss_batch_info: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Train on one micro-batch as the host does; metrics stay finite if every response is masked."""
        if loss_batch_info is None:
            loss_batch_info = get_loss_batch_info(
                self.strategy,
                experience.action_mask,
                replay_buffer=self.replay_buffer,
                step=step,
                dynamic_batch=self.args.train.dynamic_batch_enable,
            )
        info = normaliser(loss_batch_info, self.args, self.strategy.accumulated_gradient)
        status = super().training_step(experience, kl_ctl, step, info)
        status["metrics"].update(self.actor_loss_fn.mismatch)
        status["weights"].update(dict.fromkeys(self.actor_loss_fn.mismatch, "token"))
        if status["num_action_tokens"] == 0:
            status["num_action_tokens"] = NO_TOKENS
            tensors = {k: v for k, v in status["metrics"].items() if isinstance(v, torch.Tensor)}
            status["metrics"].update({k: torch.nan_to_num(v.float()) for k, v in tensors.items()})
        return status

    def _init_vllm_sync_group(self, backend: str) -> None:
        """Create the group with all engines, as the host does.

        Raises ray.exceptions.RayActorError if an engine failed to start or died. The group would wait minutes for it.
        """
        ray.get([engine.answer.remote() for engine in self.vllm_engines])
        engines = self.vllm_engines

        def join(noted: Any) -> None:
            self.vllm_engines = noted
            self._meet_engines(backend)

        with temporarily(self, vllm_engines=engines), Sending(engines, self._watched) as sending:
            sending.meet(join)

    def _meet_engines(self, backend: str) -> None:
        super()._init_vllm_sync_group(backend)

    def broadcast_to_vllm(self) -> None:
        """Send the weights as the host does; if an engine dies, the error is raised after all ranks have finished.

        Raises, on rank 0, Ray's or vLLM's error of the dead engine.
        """
        if torch.distributed.get_rank() != 0:
            self._send_weights()
            return
        self._sending = Sending(self.vllm_engines, self._watched, self._leave_group)
        try:
            with self._sending:
                self._send_weights()
            if self._sending.lost is not None:
                raise self._sending.lost
        finally:
            self._sending = None

    def _send_weights(self) -> None:
        """Send all parameters; every rank takes part in gathering shards."""
        seen: dict[str, Any] = {}  # attributes as the host's loop sees them
        if self._sending is not None:
            group = GuardedGroup(self._sending, self._model_update_group)
            seen = {"vllm_engines": [EveryEngine(self._sending)], "_model_update_group": group}
        if isinstance(self.actor.model.module, PeftModel):
            merged = SimpleNamespace(module=MergedModule(self.actor.model.module))
            seen["actor"] = SimpleNamespace(model=merged, is_vlm=getattr(self.actor, "is_vlm", False))
        with temporarily(self, **seen):
            super().broadcast_to_vllm()

    def _leave_group(self) -> None:
        """Abort the group: a broadcast to a dead engine never ends by itself and blocks its stream."""
        if self._model_update_group is not None:
            self._model_update_group.destroy()


def normaliser(info: dict[str, Any], args: SimpleNamespace, accumulated: int) -> dict[str, Any]:
    """Return the divisors of the summed loss of a micro-batch; none is 0.

    With `--actor.dr_grpo_norm`, the token count of an optimizer step becomes `train.batch_size x
    rollout.max_new_tokens`, independent of the responses (Dr. GRPO, arXiv 2503.20783). Without a dynamic batch the host
    divides its count by the number of accumulated micro-batches, because DeepSpeed divides the loss by it again. The
    constant is divided too. A step whose responses are all masked has no tokens; its loss is 0 instead of 0 / 0.
    """
    parts = 1 if args.train.dynamic_batch_enable else max(int(accumulated), 1)
    least = 1.0 / parts
    tokens, samples = info["batch_num_tokens"], info["global_batch_size"]
    if args.actor.dr_grpo_norm:
        tokens = torch.full_like(tokens, args.train.batch_size * args.rollout.max_new_tokens / parts)
    return {**info, "batch_num_tokens": tokens.clamp(min=least), "global_batch_size": samples.clamp(min=least)}


class KTAEPolicyModelActor(CheckpointedActor, _HostPolicyModelActor):
    """The host's policy actor with the update loop above, and complete checkpoints."""

    role = "actor"
    actor: Any
    update_loop: Any = KTAEActorPPOTrainer

    def init_model_from_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Load as the host does; it looks up the update loop as a global of its module."""
        host.ActorPPOTrainer = self.update_loop
        send_tensors_plainly()
        super().init_model_from_pretrained(*args, **kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return log-probabilities (b, T) as the host does; if the estimator needs figures, a dict with both."""
        names = [name for name in FORMULAS if name in self.strategy.args.algo.credit.needs]
        if not names:
            return super().forward(*args, **kwargs)
        watched = WatchedActor(self.actor, names)
        with temporarily(self, actor=watched):
            return {LOG_PROBS: super().forward(*args, **kwargs), **watched.found}

    def rejoin_engines(self) -> None:
        """Recreate the group for sending weights after an engine was restarted."""
        if self.trainer.use_cuda_ipc or torch.distributed.get_rank() != 0:
            return
        self.trainer._init_vllm_sync_group(self.strategy.args.vllm.sync_backend)

    def follow_schedule(self, progress: float) -> None:
        """Advance the learning-rate schedule to `progress`, the share of the run's prompts used before this step.

        The host assumes one update per `--train.batch_size` rollouts of the data set. Filtering leaves fewer updates,
        and a schedule that counts updates would never finish.
        """
        forward_schedule(self.actor_scheduler, round(progress * self.max_steps))


def forward_schedule(scheduler: Any, position: int) -> None:
    """Advance the schedule so that the next update uses the learning rate of `position`; it never moves backward."""
    if position > scheduler.last_epoch:
        scheduler.last_epoch = position - 1
        scheduler.step()
