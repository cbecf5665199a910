"""A started stack: Ray, and the actors of a run, which later runs of the same shape can use.

Starting Ray and importing the libraries takes far longer than loading a small model. A kept stack gives the host the
actors of the last run wherever it would start new ones. Each is constructed again in its process, so that options,
weights, optimizer, random states and data position are those of a new run; an engine keeps its model and gets the
weights when the ranks have loaded theirs.
"""

from __future__ import annotations

import gc
import importlib
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

from openrlhf_ktae.base.host import HOST_CLI
from openrlhf_ktae.processes import forks
from openrlhf_ktae.processes.marks import mark, swept

PLACED_IN = (HOST_CLI, "openrlhf.trainer.ray.vllm_engine", "openrlhf.trainer.ray.launcher")


def shape(args: SimpleNamespace, variables: Mapping[str, str]) -> str:
    """Return what two runs must share to use one stack: processes, model, engine and environment."""
    train, algo = args.train, args.algo
    parts = (
        sorted(variables.items()),
        (args.vllm, args.ds, args.ref, args.critic, args.reward),
        (args.actor.model_name_or_path, args.actor.num_nodes, args.actor.num_gpus_per_node, args.data.max_len),
        (train.agent_func_path, train.full_determinism_enable, train.colocate_all, train.colocate_actor_ref),
        (algo.kl.init_coef > 0, algo.advantage.is_correction_level, args.faults.config, args.run.verbose),
    )
    return repr(parts)


class Stack:
    """Ray and the actors of one run, or with `keep` of several, one after the other."""

    def __init__(self, keep: bool = False) -> None:
        self.keep = keep
        self._shape: str | None = None
        self._actors: dict[str, list[Any]] = {}
        self._groups: list[Any] = []

    def serves(self, args: SimpleNamespace, backend: str, variables: Mapping[str, str]) -> bool:
        """Whether the next run can use the processes that are there; if not, they are ended.

        Only synchronous runs on a CPU share a stack: other kinds keep state in processes that are not reset.
        """
        shared = self.keep and backend == "cpu" and not args.train.async_enable and not args.train.replay
        needed = shape(args, variables) if shared else ""
        if shared and self._shape == needed:
            return True
        self.end()
        self._shape = needed
        return False

    def use(self, places: Mapping[tuple[str, str], Any]) -> None:
        """Make the host look up classes of actors (`(module, attribute)` -> class), and placement, in this stack."""
        for (module, attribute), one in places.items():
            if hasattr(one, "remote"):  # the others are classes of this process
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

    def end(self) -> None:
        """Stop Ray and wait for its processes, if it was started."""
        if self._shape is None:
            return
        import ray

        self._shape, self._actors, self._groups = None, {}, []
        with swept(mark()):
            ray.shutdown()
            forks.stop()


class _Reused:
    """Stands for a Ray actor class: the n-th actor that a run asks for is the n-th of the last run, if there is one."""

    def __init__(self, actor_class: Any, actors: list[Any], left: Iterator[Any] | None = None) -> None:
        self._class, self._actors = actor_class, actors
        self._left = iter([*actors]) if left is None else left

    def options(self, **options: Any) -> _Reused:
        """Return the class with these options, which apply to actors that are started."""
        return _Reused(self._class.options(**options), self._actors, self._left)

    def remote(self, *args: Any, **kwargs: Any) -> Any:
        """Return an actor constructed with these arguments."""
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
    """Drop everything that the actor has, and construct it as in a new process."""
    vars(actor).clear()
    gc.unfreeze()
    gc.collect()
    actor.__init__(*args, **kwargs)
