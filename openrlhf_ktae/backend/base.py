"""The interface of a backend, and the number of devices that a run needs."""

import pkgutil
from types import SimpleNamespace
from typing import Any

from openrlhf_ktae.base.batches import models, world

BACKENDS = ("auto", "cuda", "cpu")


class Backend:
    """Machine-specific settings of a run; this base class leaves the host unchanged."""

    name = "none"
    preloads: str | None = None
    """The module that the fork server imports first (`processes/forks.py`); None if the backend uses no server."""
    worker_setup_hook: str | None = None
    """Import path of the function that Ray calls when a worker process starts."""

    def adapt(self, args: SimpleNamespace) -> list[str]:
        """Set options that the backend requires, in place; return one line for each change."""
        return []

    def environment(self, args: SimpleNamespace) -> dict[str, str]:
        """Return variables for the driver and every Ray worker; the user's values take precedence."""
        return {}

    def prepare_driver(self) -> None:
        """Make the host importable in this process, as the hook does in workers."""
        if self.worker_setup_hook:
            pkgutil.resolve_name(self.worker_setup_hook)()

    def ray_init_options(self, args: SimpleNamespace) -> dict[str, Any]:
        """Return keyword arguments of `ray.init` for a new local cluster."""
        return {"dashboard_host": args.run.dashboard_host}


def devices_needed(args: SimpleNamespace) -> int:
    """Return the number of devices that the host requests from Ray (openrlhf/cli/train_ppo_ray.py, `train`)."""
    together, asynchronous = args.train.colocate_all, args.train.async_enable
    judges = args.train.colocate_critic_reward
    with_others = {
        "actor": False,
        "ref": args.train.colocate_actor_ref or together,
        "critic": together and not judges,
        "reward": together or (judges and "critic" in models(args)),
    }
    devices = sum(world(args, model) for model in models(args) if not with_others[model])
    if asynchronous or not together:
        devices += (args.vllm.num_engines or 0) * args.vllm.tensor_parallel_size
    return devices
