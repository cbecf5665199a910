"""Departure from the host: each rank saves its part to the staging folder, with state that the host does not save.

That state is the rank's random states and, with `--train.enable_ema`, its shard of the averaged weights. A resumed run
uses its own options of optimizer and schedule, although checkpoints contain them too.
"""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from openrlhf_ktae.base.free_port import free_port
from openrlhf_ktae.base.temporarily import temporarily
from openrlhf_ktae.checkpoint.files import files_below
from openrlhf_ktae.checkpoint.folder import RANDOM
from openrlhf_ktae.checkpoint.model_files import NOT_SAVED, always_save_weights, in_part, require_all
from openrlhf_ktae.checkpoint.random_state import random_state, restore_random_state
from openrlhf_ktae.checkpoint.write import staging


class CheckpointedActor:
    """Mixin for the host's actor of a trained model."""

    role = ""
    strategy: Any
    ema_model: Any = None
    _rank: int
    _get_free_port = staticmethod(free_port)  # port at which the ranks meet

    def init_model_from_pretrained(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Load as the host does, from the checkpoint chosen by the command."""
        source = strategy.args.run.resume_from
        with temporarily(strategy.args.ckpt, path=str(source or strategy.args.ckpt.path)), options_kept(strategy):
            super().init_model_from_pretrained(strategy, *args, **kwargs)  # type: ignore[misc]
        path = Path(source or "") / RANDOM / self._random_file
        if source and path.is_file():
            state = torch.load(path, weights_only=True)
            if self.ema_model is not None and state["average"]:
                load_shares(self.ema_model, state["average"])
                self.strategy.time_steps["ema"] = state["averaged"]
            restore_random_state(state["random"])

    def save_checkpoint(self, tag: str, *args: Any, **kwargs: Any) -> None:
        """Save as the host does, in the staging folder of `tag`."""
        options = self.strategy.args
        folder = staging(options.ckpt.path, tag)
        with temporarily(options.ckpt, path=str(folder)), always_save_weights(self.strategy) as failed:
            super().save_checkpoint(tag, *args, **kwargs)  # type: ignore[misc]
        if failed:
            (folder / NOT_SAVED).write_text(in_part(failed, f"{tag}_hf"), encoding="utf-8")
        (folder / RANDOM).mkdir(parents=True, exist_ok=True)
        state = {
            "random": random_state(),
            "average": [] if self.ema_model is None else shares(self.ema_model),
            "averaged": self.strategy.time_steps["ema"],
        }
        torch.save(state, folder / RANDOM / self._random_file)

    def save_model(self) -> None:
        """Save as the host does; weights are saved even if other files fail.

        Raises SavedInPart if a file other than the weights could not be saved.
        """
        with always_save_weights(self.strategy) as failed:
            super().save_model()  # type: ignore[misc]
        require_all(failed, self.strategy.args.ckpt.output_dir)

    def files_seen(self, tag: str) -> tuple[str, dict[str, int]]:
        """Return this rank's node, and path -> bytes of the files that it sees in the staging folder of `tag`."""
        folder = staging(self.strategy.args.ckpt.path, tag)
        files = {str(path.relative_to(folder)): path.stat().st_size for path in files_below(folder)}
        return node_name(), files

    @property
    def _random_file(self) -> str:
        return f"{self.role}_rank{self._rank:05d}.pt"


@contextmanager
def options_kept(strategy: Any) -> Iterator[None]:
    """Make `strategy` temporarily ignore optimizer and schedule options in the checkpoints that it loads."""
    load = strategy.load_ckpt

    def load_state(model: Any, *args: Any, **kwargs: Any) -> Any:
        groups = [dict(group) for group in model.optimizer.param_groups]
        clip = getattr(model.optimizer, "clip_grad", None)
        base_rates = list(getattr(model.lr_scheduler, "base_lrs", ()))
        loaded = load(model, *args, **kwargs)
        if clip is not None:
            model.optimizer.clip_grad = clip
        set_optimizer_options(model.optimizer, model.lr_scheduler, groups, base_rates)
        return loaded

    strategy.load_ckpt = load_state
    try:
        yield
    finally:
        del strategy.load_ckpt


def set_optimizer_options(
    optimizer: Any, scheduler: Any, groups: list[dict[str, Any]], base_rates: list[float]
) -> None:
    """Set the options of `groups` on every parameter group, and the schedule's learning rate at its position.

    Args:
        optimizer: has the moments, and perhaps the options, of a checkpoint; keeps its parameters and moments.
        scheduler: has the position of a checkpoint and this run's shape.
        groups: options of a new optimizer of this run.
        base_rates: the learning rate of each group before the schedule's factor.
    """
    for group, own in zip(optimizer.param_groups, groups, strict=True):
        group.update({name: value for name, value in own.items() if name not in ("params", "lr", "step")})
    if not base_rates:
        return
    scheduler.base_lrs = base_rates
    factors = [factor(scheduler.last_epoch) for factor in scheduler.lr_lambdas]
    rates = [rate * factor for rate, factor in zip(base_rates, factors, strict=True)]
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    scheduler._last_lr = rates


def shares(model: torch.nn.Module) -> list[torch.Tensor]:
    """Return this rank's part of each parameter: its ZeRO-3 shard, else the whole parameter."""
    return [_share(parameter).detach().cpu().clone() for parameter in model.parameters()]


@torch.no_grad()
def load_shares(model: torch.nn.Module, saved: list[torch.Tensor]) -> None:
    """Restore the parts that `shares` returned."""
    for parameter, value in zip(model.parameters(), saved, strict=True):
        _share(parameter).copy_(value)


def _share(parameter: Any) -> torch.Tensor:
    return getattr(parameter, "ds_tensor", parameter.data)


def node_name() -> str:
    """Return this node's address in the cluster and its host name."""
    import ray

    return f"{ray.util.get_node_ip_address()} ({socket.gethostname()})"
