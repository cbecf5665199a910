"""Departure from the host: each rank's part of a checkpoint goes to the staging folder, with its random states."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from openrlhf_ktae.checkpoint.folder import RANDOM
from openrlhf_ktae.checkpoint.random_state import random_state, restore_random_state
from openrlhf_ktae.trainer.checkpointing import checkpoints_at, written_by


class CheckpointedActor:
    """Mixin before a host model actor that is trained."""

    role = ""
    strategy: Any
    _rank: int

    def init_model_from_pretrained(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Load as the host does, from the checkpoint that the command chose."""
        source = strategy.args.run.resume_from
        with checkpoints_at(strategy.args, source):
            super().init_model_from_pretrained(strategy, *args, **kwargs)  # type: ignore[misc]
        path = Path(source or "") / RANDOM / self._random_file
        if source and path.is_file():
            restore_random_state(torch.load(path, weights_only=True))

    def save_checkpoint(self, tag: str, *args: Any, **kwargs: Any) -> None:
        """Save as the host does, below the staging folder of `tag`."""
        options = self.strategy.args
        folder = written_by(options, tag)
        with checkpoints_at(options, folder):
            super().save_checkpoint(tag, *args, **kwargs)  # type: ignore[misc]
        (folder / RANDOM).mkdir(parents=True, exist_ok=True)
        torch.save(random_state(), folder / RANDOM / self._random_file)

    @property
    def _random_file(self) -> str:
        return f"{self.role}_rank{self._rank:05d}.pt"
