"""Departures from the host: the critic's part of a checkpoint, and skipping of non-finite updates."""

from typing import Any

from openrlhf.trainer.ray import ppo_critic as host

from openrlhf_ktae.base.host import undecorated
from openrlhf_ktae.trainer.nonfinite import CRITIC_SKIPPED, skip_nonfinite_updates
from openrlhf_ktae.trainer.ray.checkpointing import CheckpointedActor

_HostCriticModelActor: Any = undecorated(host.CriticModelActor)


class KTAECriticPPOTrainer(host.CriticPPOTrainer):
    """The host's update loop, but it skips non-finite updates and counts them."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        skip_nonfinite_updates(self.critic.optimizer)

    def ppo_train(self) -> dict[str, Any]:
        """Update as the host does; add the number of optimizer steps skipped as non-finite."""
        before = self.critic.skipped_steps
        status = super().ppo_train()
        return {**status, CRITIC_SKIPPED: float(self.critic.skipped_steps - before)}


class KTAECriticModelActor(CheckpointedActor, _HostCriticModelActor):
    """The host's critic with the update loop above, and complete checkpoints."""

    role = "critic"

    def init_model_from_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Load as the host does; it looks up the update loop as a global of its module."""
        host.CriticPPOTrainer = KTAECriticPPOTrainer
        super().init_model_from_pretrained(*args, **kwargs)
