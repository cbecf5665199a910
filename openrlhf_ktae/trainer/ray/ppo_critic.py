"""Departure from the host: the critic's part of a checkpoint."""

from __future__ import annotations

from typing import Any

from openrlhf.trainer.ray import ppo_critic as host

from openrlhf_ktae.host import undecorated
from openrlhf_ktae.trainer.ray.checkpointing import CheckpointedActor

_HostCriticModelActor: Any = undecorated(host.CriticModelActor)


class KTAECriticModelActor(CheckpointedActor, _HostCriticModelActor):
    """The host's critic with checkpoints as above."""

    role = "critic"
