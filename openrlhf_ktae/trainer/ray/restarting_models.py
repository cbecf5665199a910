"""Reference and reward model processes that die are restarted, and lost forward passes are repeated.

Ray restarts the process without its model. The trainer notices when it requests log-probabilities or rewards. It
restarts all ranks of the group, because a process group that lost a member cannot admit a new one. It loads the model
as the host did, and repeats the request. No state is lost, because these models are not trained.
"""

import os
import time
from collections.abc import Callable
from typing import Any

import ray
import torch
from openrlhf.trainer.ppo_utils.experience import Experience
from openrlhf.trainer.ppo_utils.experience_maker import RemoteExperienceMaker
from openrlhf.utils.logging_utils import init_logger
from ray.exceptions import RayError

from openrlhf_ktae.base.free_port import free_port
from openrlhf_ktae.processes.deaths import POLL_SECONDS, START_MINUTES, answered, died

HOST_CLASSES = ("ReferenceModelActor", "RewardModelActor")  # globals of the host's command
ANSWER_SECONDS = 5.0  # for idle ranks to answer, once a rank of their group is known to be dead
logger = init_logger(__name__)


class ModelLost(RuntimeError):
    """The process was restarted and has no model."""


class RestartableModel:
    """Mixin for the host's actor of a model that is not trained."""

    _rank: int
    _master_addr: str
    _master_port: int
    _get_free_port = staticmethod(free_port)  # port at which the ranks meet

    def loaded(self) -> bool:
        """Return whether the model is loaded; a restarted process has none."""
        return hasattr(self, "model")

    def meet_at(self, address: str, port: int) -> None:
        """Set the address of the restarted rank 0 for the next `init_model_from_pretrained`."""
        self._master_addr, self._master_port = address, port
        os.environ.update(MASTER_ADDR=address, MASTER_PORT=str(port))

    def execute_batch(self, method_name: str, all_data: Any, start_idx: int, end_idx: int) -> list[Any]:
        """Execute as the host does. Raises ModelLost if the model must be loaded first."""
        if not self.loaded():
            raise ModelLost(f"{type(self).__name__} of rank {self._rank} was restarted and has no model yet")
        return super().execute_batch(method_name, all_data, start_idx, end_idx)  # type: ignore[misc]


def restartable(host_class: Any, restarts: int) -> Any:
    """Return the Ray actor class that replaces the host's.

    Args:
        host_class: the undecorated class of the host.
        restarts: how often the trainer may restart a group. Ray itself has no limit, because live ranks restart too.
    """
    plain = type(host_class.__name__, (RestartableModel, host_class), {})
    return ray.remote(num_gpus=1, max_restarts=-1 if restarts else 0)(plain)


class RevivingExperienceMaker(RemoteExperienceMaker):
    """The host's experience maker; `note` receives a sentence for each restart."""

    note: Callable[[str], None] = staticmethod(logger.warning)
    model_restarts = 0

    @torch.no_grad()
    def make_experience(self, samples_list: list[Experience]) -> list[Experience]:
        """Do as the host does; retry if a process died. Samples change only after all passes return."""
        fault: RayError | None = None
        while True:
            try:
                if fault is not None:
                    self._restart_dead(fault)
                return super().make_experience(samples_list)
            except RayError as error:
                if error is fault or not died(error):
                    raise
                fault = error

    def _restart_dead(self, fault: RayError) -> None:
        """Reload models whose processes died. Raise `fault` if no process died, or after too many restarts."""
        groups = {
            "reference": (self.initial_model_group, self.args.actor.model_name_or_path),
            "reward": (self.reward_model_group, self.args.reward.model_name_or_path),
        }
        used = {name: pair for name, pair in groups.items() if pair[0] is not None and pair[1]}
        broken = {name: left for name, (group, _) in used.items() if (left := surviving_ranks(group)) is not None}
        limit = self.args.faults.config.model_restarts
        if not broken or self.model_restarts >= limit:
            raise fault
        self.model_restarts += 1
        for name, left in broken.items():
            logger.warning(f"a process of the {name} model died; restarting it")
            group, path = used[name]
            reload_group(group, left, self.strategy, path)
        self.note(
            f"a process of the {' and the '.join(broken)} model died and was restarted; its forward passes are "
            f"repeated ({self.model_restarts} of --faults.model_restarts {limit})"
        )


def surviving_ranks(group: Any) -> list[Any] | None:
    """Return the ranks that may still be alive in a group that lost one; None if the group is complete.

    Wait for busy ranks, unless a rank is known to be dead: a busy one may be waiting for it.
    """
    asked = {actor.loaded.remote(): actor for actor in group._actor_handlers}
    left: list[Any] = []
    lost = False
    while asked:
        ready, _ = ray.wait(list(asked), timeout=ANSWER_SECONDS if lost else 60 * START_MINUTES)
        if not ready:
            return [*left, *asked.values()]
        actor = asked.pop(ready[0])
        try:
            has_model = ray.get(ready[0])
        except RayError:  # dead, or restarting
            has_model = False
        lost = lost or not has_model
        left += [actor] if has_model else []
    return left if lost else None


def reload_group(group: Any, left: list[Any], strategy: Any, path: str) -> None:
    """Restart the ranks `left` of a group too, and load its model from `path` as the host's command does.

    Raises RayError if a rank does not come back, or dies again.
    """
    for actor in left:
        ray.kill(actor, no_restart=False)
    for actor in group._actor_handlers:
        wait_until_restarted(actor)
    first, *others = group._actor_handlers
    address, port = ray.get(first.get_master_addr_port.remote())
    ray.get([actor.meet_at.remote(address, port) for actor in others])
    ray.get(group.async_init_model_from_pretrained(strategy, path))


def wait_until_restarted(actor: Any) -> None:
    """Return when the process answers that it has no model.

    Raises:
        RayError: the process is permanently dead, or does not start.
        TimeoutError: the old process does not end.
    """
    end = time.monotonic() + 60 * START_MINUTES
    while answered(actor.loaded.remote):
        if time.monotonic() > end:
            raise TimeoutError(f"a killed process still answers after {START_MINUTES} minutes")
        time.sleep(POLL_SECONDS)
