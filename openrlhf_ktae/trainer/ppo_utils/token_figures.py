"""Departure from the host: entropies and sums of squared probabilities of each token, where an estimator needs them.

They come from the logits of the pass that computes old log-probabilities: no pass of their own. The policy's process
returns them beside the log-probabilities; the experience maker takes them apart again.

Legend: `b` rollouts of a micro-batch, `T` positions, `V` ids, `F` figures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from openrlhf.models import actor as host
from openrlhf.trainer.ppo_utils.experience import Experience

from openrlhf_ktae.base.temporarily import temporarily

LOG_PROBS = "log_probs"
PLACE = "token_figures"
"""Attribute of an experience that holds them, from the pass until credit is computed."""
POSITIONS_AT_ONCE = 1024
"""Of logits, so that what is computed from them takes a fraction of their own memory."""
Figures = dict[str, list[torch.Tensor]]
"""Name -> values of each position, one table (b, T) a micro-batch."""


def _entropies(logits: torch.Tensor) -> torch.Tensor:
    log_probs = torch.log_softmax(logits, dim=-1)
    return -(log_probs.exp() * log_probs).sum(dim=-1)


def _sum_squares(logits: torch.Tensor) -> torch.Tensor:
    return torch.softmax(logits, dim=-1).square().sum(dim=-1)


FORMULAS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "entropies": _entropies,
    "sum_squares": _sum_squares,
}


def figures_of(logits: torch.Tensor, names: Sequence[str]) -> torch.Tensor:
    """Return figures (b, T, F) of logits (b, T, V), in the order of `names`."""
    chunks = logits.flatten(0, -2).split(POSITIONS_AT_ONCE)
    columns = [torch.cat([FORMULAS[name](chunk.float()) for chunk in chunks]) for name in names]
    return torch.stack(columns, dim=-1).view(*logits.shape[:-1], len(names))


class WatchedActor:
    """The host's model for one pass: returns log-probabilities as it does, and keeps `found`, (b, T) each."""

    def __init__(self, actor: Any, names: Sequence[str]) -> None:
        self._actor, self._names = actor, list(names)
        self.found: dict[str, torch.Tensor] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._actor, name)

    def __call__(self, sequences: torch.Tensor, action_mask: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Return log-probabilities of actions (b, T)."""
        # The host gathers and pads what it calls entropy: all figures take its place.
        with temporarily(host, compute_entropy=lambda logits: figures_of(logits, self._names)):
            log_probs, output = self._actor(
                sequences, action_mask, *args, return_output=True, return_entropy=True, **kwargs
            )
        rows, width = action_mask.shape
        table = output.entropy.reshape(rows, -1, len(self._names))[:, -width:]
        self.found = {name: (table[..., i] * action_mask).cpu() for i, name in enumerate(self._names)}
        return log_probs


def apart(results: Sequence[Any]) -> tuple[list[torch.Tensor], list[dict[str, torch.Tensor]]]:
    """Return log-probabilities, and figures, of what policies answered for each micro-batch: both, or the first."""
    if not any(isinstance(one, dict) for one in results):
        return list(results), []
    figures = [{name: table for name, table in one.items() if name != LOG_PROBS} for one in results]
    return [one[LOG_PROBS] for one in results], figures


def taken(experiences: Sequence[Experience]) -> Figures:
    """Take the figures from the experiences, and log-probabilities beside them."""
    parts = [vars(experience).pop(PLACE, {}) for experience in experiences]
    figures: Figures = {name: [part[name] for part in parts] for name in (parts[0] if parts else {})}
    if all(experience.action_log_probs is not None for experience in experiences):
        figures[LOG_PROBS] = [experience.action_log_probs for experience in experiences]
    return figures
