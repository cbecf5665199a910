"""The interface of a backend. The command line calls the methods in the order in which they stand here."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from openrlhf_ktae.run.batches import models, world

BACKENDS = ("auto", "cuda", "cpu")


class BackendUnavailable(ValueError):
    """The requested backend cannot run on this machine."""


class Backend:
    """What a run needs to know of its machine; this base leaves the host as it is."""

    name = "none"

    def problems(self, args: SimpleNamespace) -> list[str]:
        """Return one sentence for each option that cannot be served here: option, value, way out."""
        return []

    def machine_problems(self, args: SimpleNamespace) -> list[str]:
        """Return what the machine of this process lacks for training; every node of a cluster is asked."""
        return []

    def adapt(self, args: SimpleNamespace) -> list[str]:
        """Set in place the options that follow from the backend; return one line for each change."""
        return []

    def environment(self, args: SimpleNamespace) -> dict[str, str]:
        """Variables for the driver and every Ray worker; what the user has set already wins."""
        return {}

    def prepare_driver(self) -> None:
        """Make the host importable in this process."""

    def ray_init_options(self, args: SimpleNamespace) -> dict[str, Any]:
        """Keyword arguments for `ray.init` where it starts a new local cluster."""
        return {"dashboard_host": args.run.dashboard_host}

    def worker_setup_hook(self) -> str | None:
        """Import path of the function that Ray calls at the start of each worker process."""
        return None

    def host_classes(self) -> dict[tuple[str, str], Any]:
        """`(module, attribute)` of the host -> the class to put there in the driver."""
        return {}


def devices_needed(args: SimpleNamespace) -> int:
    """Devices that the host will ask of Ray for `args` (openrlhf/cli/train_ppo_ray.py, `train`)."""
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
