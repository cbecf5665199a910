"""A running stack: Ray and the actors of a run, which later runs of the same shape can reuse.

The host's `train` runs in this process, which imports the libraries for it. Where workers are forks that already have
them, it runs in a worker: the driver then needs neither their import (4 to 6 s) nor their memory.

Starting Ray and importing the libraries takes far longer than loading a small model. Where the host would start new
actors, a kept stack gives it the last run's. Each actor is constructed again in its process, so options, weights,
optimizer, random states and data position are those of a new run. An engine keeps its model, and receives the weights
once the ranks have loaded theirs.
"""

from __future__ import annotations

import gc
import importlib
import io
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from openrlhf_ktae.base.host import HOST_CLI
from openrlhf_ktae.processes import forks
from openrlhf_ktae.processes.marks import mark, swept
from openrlhf_ktae.trainer.ray.classes import Places

PLACED_IN = (HOST_CLI, "openrlhf.trainer.ray.vllm_engine", "openrlhf.trainer.ray.launcher")


def shape(args: SimpleNamespace, variables: Mapping[str, str]) -> str:
    """Return a key of the settings that runs on one stack must share: processes, model, engine, environment."""
    train, algo = args.train, args.algo
    parts = (
        sorted(variables.items()),
        (args.vllm, args.ds, args.ref, args.critic, args.reward),
        (args.actor.model_name_or_path, args.actor.num_nodes, args.actor.num_gpus_per_node, args.data.max_len),
        (train.agent_func_path, train.full_determinism_enable, train.colocate_all, train.colocate_actor_ref),
        (algo.kl.init_coef > 0, algo.advantage.is_correction_level, args.faults.config, args.run.verbose),
    )
    return repr(parts)


class HostRun:
    """Runs the host's `train`, with the actors of its last run."""

    def __init__(self) -> None:
        self._actors: dict[str, list[Any]] = {}
        self._groups: list[Any] = []

    def train(self, args: SimpleNamespace, places: Callable[[], Places]) -> None:
        """Train with replacements of the host's classes; `places` is called after the host is imported."""
        host_cli = importlib.import_module(HOST_CLI)
        gc.enable()  # the driver is without until here, which saves a quarter of the import time
        self._use(places())
        with quiet(args):
            host_cli.train(args)

    def _use(self, places: Places) -> None:
        """Make the host get actor classes and placement groups from the last run."""
        for (module, attribute), one in places.items():
            if hasattr(one, "remote"):  # other classes live in this process
                one = _Reused(one, self._actors.setdefault(attribute, []))
            setattr(importlib.import_module(module), attribute, one)
        from ray.util.placement_group import placement_group

        groups = iter([*self._groups])

        def place(*args: Any, **kwargs: Any) -> Any:
            group = next(groups, None)
            if group is None:
                group = placement_group(*args, **kwargs)
                self._groups.append(group)
            return group

        for module in PLACED_IN:
            importlib.import_module(module).placement_group = place  # type: ignore[attr-defined]


class Stack:
    """Ray and the actors of one run; with `keep`, of several consecutive runs."""

    def __init__(self, keep: bool = False) -> None:
        self.keep = keep
        self._shape: str | None = None
        self._run: Any = None  # a `HostRun`, or a handle of one in a worker

    def serves(self, args: SimpleNamespace, backend: str, variables: Mapping[str, str]) -> bool:
        """Whether the next run can use the existing processes; if not, end them.

        Only synchronous runs on a CPU share a stack: other runs keep state in processes that are not reset.
        """
        shared = self.keep and backend == "cpu" and not args.train.async_enable and not args.train.replay
        needed = shape(args, variables) if shared else ""
        if shared and self._shape == needed:
            return True
        self.end()
        self._shape = needed
        return False

    def train(self, args: SimpleNamespace, places: Callable[[], Places]) -> None:
        """Run the host's `train` (`HostRun`) to its end."""
        if forks.VARIABLE not in os.environ:
            self._run = self._run or HostRun()
            return self._run.train(args, places)
        import ray

        gc.enable()
        self._run = self._run or ray.remote(num_cpus=0)(HostRun).remote()
        return ray.get(self._run.train.remote(args, places))

    def end(self) -> None:
        """If Ray was started, stop it, wait for its processes, and kill those that remain."""
        if self._shape is None:
            return
        import ray

        self._shape, self._run = None, None
        with swept(mark()):
            ray.shutdown()
            forks.stop()


class FullDiskLog(io.TextIOWrapper):
    """Drops writes on a full disk, so host prints cannot crash the run."""

    def __init__(self, file: Any, encoding: str) -> None:
        super().__init__(file, encoding, write_through=True)

    def write(self, text: str) -> int:
        """Write `text` at once, or drop it."""
        with suppress(OSError):
            super().write(text)
        return len(text)


@contextmanager
def quiet(args: SimpleNamespace) -> Iterator[None]:
    """Redirect the host's prints in this process to `driver.log` of the run, unless the run is verbose."""
    if args.run.verbose:
        yield
        return
    with FullDiskLog((Path(args.run.dir) / "driver.log").open("ab", buffering=0), "utf-8") as log, redirect_stdout(log):
        yield


class _Reused:
    """Stand-in for a Ray actor class: the n-th actor requested is the last run's n-th, if it had one."""

    def __init__(self, actor_class: Any, actors: list[Any], left: Iterator[Any] | None = None) -> None:
        self._class, self._actors = actor_class, actors
        self._left = iter([*actors]) if left is None else left

    def options(self, **options: Any) -> _Reused:
        """Return the class with these options, which apply only to newly started actors."""
        return _Reused(self._class.options(**options), self._actors, self._left)

    def remote(self, *args: Any, **kwargs: Any) -> Any:
        """Return a new or reused actor, constructed with these arguments."""
        import ray

        actor = next(self._left, None)
        if actor is None:
            actor = self._class.remote(*args, **kwargs)
            self._actors.append(actor)
        elif hasattr(actor, "begin_again"):  # an engine
            ray.get(actor.begin_again.remote(kwargs["seed"]))
        else:
            ray.get(actor.__ray_call__.remote(construct_again, args, kwargs))
        return actor


def construct_again(actor: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Clear the actor's state and construct it as in a new process."""
    vars(actor).clear()
    gc.unfreeze()
    gc.collect()
    actor.__init__(*args, **kwargs)
