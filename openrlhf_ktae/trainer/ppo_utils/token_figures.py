"""Departure from the host: entropies and sums of squared probabilities of each token, for estimators that need them.

They are computed from the logits of the pass for old log-probabilities, so they need no extra pass. The policy's
process returns them together with the log-probabilities; the experience maker separates them.

Legend: `b` rollouts of a micro-batch, `T` positions, `V` ids, `F` figures.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from openrlhf.models import actor as host
from openrlhf.trainer.ppo_utils.experience import Experience

from openrlhf_ktae.base.temporarily import temporarily

LOG_PROBS = "log_probs"
PLACE = "token_figures"
"""Attribute of an experience that holds the figures until credit is computed."""
POSITIONS_AT_ONCE = 1024
"""Positions processed at once, so that temporaries take a fraction of the logits' memory."""
Figures = dict[str, list[torch.Tensor]]
"""Name -> values of each position, one table (b, T) per micro-batch."""


def _entropies(logits: torch.Tensor) -> torch.Tensor:
    log_probs = torch.log_softmax(logits, dim=-1)
    least = torch.finfo(log_probs.dtype).min  # ids that a model rules out have -inf, and 0 x -inf is NaN
    return -(log_probs.exp() * log_probs.clamp(min=least)).sum(dim=-1)


def _sum_squares(logits: torch.Tensor) -> torch.Tensor:
    return torch.softmax(logits, dim=-1).square().sum(dim=-1)


FORMULAS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"entropies": _entropies, "sum_squares": _sum_squares}


def figures_of(logits: torch.Tensor, names: Sequence[str]) -> torch.Tensor:
    """Return figures (b, T, F) of logits (b, T, V), in the order of `names`."""
    chunks = logits.flatten(0, -2).split(POSITIONS_AT_ONCE)
    columns = [torch.cat([FORMULAS[name](chunk.float()) for chunk in chunks]) for name in names]
    return torch.stack(columns, dim=-1).view(*logits.shape[:-1], len(names))


class WatchedActor:
    """The host's model for one pass: returns log-probabilities as it does, and stores the figures (b, T) in `found`."""

    def __init__(self, actor: Any, names: Sequence[str]) -> None:
        self._actor, self._names = actor, list(names)
        self.found: dict[str, torch.Tensor] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._actor, name)

    def __call__(self, sequences: torch.Tensor, action_mask: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Return log-probabilities of actions (b, T)."""
        # The host gathers and pads the result of `compute_entropy`, so the figures are returned from there.
        with temporarily(host, compute_entropy=lambda logits: figures_of(logits, self._names)):
            log_probs, output = self._actor(
                sequences, action_mask, *args, return_output=True, return_entropy=True, **kwargs
            )
        rows, width = action_mask.shape
        table = output.entropy.reshape(rows, -1, len(self._names))[:, -width:]
        self.found = {name: (table[..., i] * action_mask).cpu() for i, name in enumerate(self._names)}
        return log_probs


def apart(results: Sequence[Any]) -> tuple[list[torch.Tensor], list[dict[str, torch.Tensor]]]:
    """Split the policy's answers for each micro-batch into log-probabilities and figures, if there are any."""
    if not any(isinstance(one, dict) for one in results):
        return list(results), []
    figures = [{name: table for name, table in one.items() if name != LOG_PROBS} for one in results]
    return [one[LOG_PROBS] for one in results], figures


def taken(experiences: Sequence[Experience]) -> Figures:
    """Remove the figures from the experiences; return them, with the log-probabilities if all have them."""
    parts = [vars(experience).pop(PLACE, {}) for experience in experiences]
    figures: Figures = {name: [part[name] for part in parts] for name in (parts[0] if parts else {})}
    if all(experience.action_log_probs is not None for experience in experiences):
        figures[LOG_PROBS] = [experience.action_log_probs for experience in experiences]
    return figures
