"""Departure from the host: each rank's part of a checkpoint goes to the staging folder, with what the host forgets.

That is the random states of the rank and, with `--train.enable_ema`, its share of the averaged weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from openrlhf_ktae.checkpoint.files import files_below
from openrlhf_ktae.checkpoint.folder import RANDOM
from openrlhf_ktae.checkpoint.random_state import random_state, restore_random_state
from openrlhf_ktae.checkpoint.write import staging
from openrlhf_ktae.run.free_port import free_port
from openrlhf_ktae.run.nodes import node_name
from openrlhf_ktae.trainer.checkpointing import checkpoints_at


class CheckpointedActor:
    """Mixin before a host model actor that is trained."""

    role = ""
    strategy: Any
    ema_model: Any = None
    _rank: int
    _get_free_port = staticmethod(free_port)  # where its ranks meet

    def init_model_from_pretrained(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Load as the host does, from the checkpoint that the command chose."""
        source = strategy.args.run.resume_from
        with checkpoints_at(strategy.args, source):
            super().init_model_from_pretrained(strategy, *args, **kwargs)  # type: ignore[misc]
        path = Path(source or "") / RANDOM / self._random_file
        if source and path.is_file():
            state = torch.load(path, weights_only=True)
            if self.ema_model is not None and state["average"]:
                load_shares(self.ema_model, state["average"])
                self.strategy.time_steps["ema"] = state["averaged"]
            restore_random_state(state["random"])

    def save_checkpoint(self, tag: str, *args: Any, **kwargs: Any) -> None:
        """Save as the host does, below the staging folder of `tag`."""
        options = self.strategy.args
        folder = staging(options.ckpt.path, tag)
        with checkpoints_at(options, folder):
            super().save_checkpoint(tag, *args, **kwargs)  # type: ignore[misc]
        (folder / RANDOM).mkdir(parents=True, exist_ok=True)
        state = {
            "random": random_state(),
            "average": [] if self.ema_model is None else shares(self.ema_model),
            "averaged": self.strategy.time_steps["ema"],
        }
        torch.save(state, folder / RANDOM / self._random_file)

    def files_seen(self, tag: str) -> tuple[str, dict[str, int]]:
        """Return this rank's node, and path -> bytes of the files that it sees below the staging folder of `tag`."""
        folder = staging(self.strategy.args.ckpt.path, tag)
        files = {str(path.relative_to(folder)): path.stat().st_size for path in files_below(folder)}
        return node_name(), files

    @property
    def _random_file(self) -> str:
        return f"{self.role}_rank{self._rank:05d}.pt"


def shares(model: torch.nn.Module) -> list[torch.Tensor]:
    """Return this rank's part of each parameter: what ZeRO-3 left of it, else all."""
    return [_share(parameter).detach().cpu().clone() for parameter in model.parameters()]


@torch.no_grad()
def load_shares(model: torch.nn.Module, saved: list[torch.Tensor]) -> None:
    """Set what `shares` returned."""
    for parameter, value in zip(model.parameters(), saved, strict=True):
        _share(parameter).copy_(value)


def _share(parameter: Any) -> torch.Tensor:
    return getattr(parameter, "ds_tensor", parameter.data)
