"""`python -m openrlhf_ktae.cli.watched_run ARGS`: the training command, instrumented from inside (`watchers`)."""

import os
import sys
from collections.abc import Sequence
from types import SimpleNamespace

from openrlhf_ktae.backend import Backend, resolve
from openrlhf_ktae.base.host import undecorated
from openrlhf_ktae.cli import train_ppo_ray
from openrlhf_ktae.memory import phases as memory
from openrlhf_ktae.memory.devices import CPU, memory_of
from openrlhf_ktae.memory.model_shape import model_shape
from openrlhf_ktae.selftest.watchers import VARIABLE, WatchedActor, WatchedEngine, WatchedUpdates, note
from openrlhf_ktae.trainer.ray.classes import Places, host_classes

ENGINE = ("openrlhf.trainer.ray.vllm_engine", "RolloutRayActor")
POLICY = ("openrlhf.cli.train_ppo_ray", "PolicyModelActor")


def planned(args: SimpleNamespace, backend: str) -> dict[str, float]:
    """Return the planned bytes per device of each measured phase; empty for a model of unknown shape."""
    shape = model_shape(args.actor.model_name_or_path)
    if shape is None:
        return {}
    if backend == CPU:  # memory freed by an update stays resident, so later phases cannot be measured
        return {"training": memory.training(args, shape, cuda=False).total}
    phases = {
        one.name: one.total for one in (memory.training(args, shape, True), memory.synchronisation(args, shape, True))
    }
    if args.vllm.enable_sleep and (total := memory_of("auto", 1)):
        resident = memory.resident_trainer(args, shape, cuda=True)
        phases["generation"] = args.vllm.gpu_memory_utilization * total + resident
    return phases


def watched(backend: Backend) -> Backend:
    """Return `backend`, whose processes then know where to write their measurements."""

    class WatchedBackend(type(backend)):  # type: ignore[misc]
        """The same backend, with the watchers' environment variable set."""

        def environment(self, args: SimpleNamespace) -> dict[str, str]:
            """Pass the run folder to every process, and record the planned memory."""
            os.environ[VARIABLE] = args.run.dir
            for phase, used in planned(args, backend.name).items():
                note("planned", phase=phase, bytes=used)
            return {**super().environment(args), VARIABLE: args.run.dir}

    return WatchedBackend()


def watched_classes(backend: str) -> Places:
    """Return the classes of `backend` with watchers around the engine and the policy actor."""
    import ray

    classes = host_classes(backend)
    engine, policy = undecorated(classes[ENGINE]), undecorated(classes[POLICY])
    updates = type("WatchedUpdateLoop", (WatchedUpdates, policy.update_loop), {})
    actor = type("WatchedPolicyModelActor", (WatchedActor, policy), {"update_loop": updates})
    classes[ENGINE] = ray.remote(type("WatchedRolloutActor", (WatchedEngine, engine), {}))
    classes[POLICY] = ray.remote(num_gpus=1)(actor)
    return classes


def main(argv: Sequence[str] | None = None) -> int:
    """Run the training command; return its exit code."""
    train_ppo_ray.resolve = lambda name: watched(resolve(name))
    train_ppo_ray.host_classes = watched_classes
    return train_ppo_ray.main(argv)


if __name__ == "__main__":
    sys.exit(main())
