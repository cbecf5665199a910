"""Departure from the host: no forward pass for old log-probabilities that the update is about to compute anyway.

The importance ratio of a token is pi / pi_old. Where a batch is one optimizer step, the weights of the update are those
that old log-probabilities would be computed with, whatever the split into micro-batches: the ratio is 1 and its
gradient is that of log pi. The host runs a pass over the whole batch for it, a third of the update's arithmetic.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from openrlhf_ktae.run.batches import one_update


def update_has_them(args: SimpleNamespace, rollouts: int, has_reference: bool) -> bool:
    """Return whether the log-probabilities of the update serve as the old ones for a batch of `rollouts`.

    That takes one pass over one optimizer step, and no reference model, whose divergence needs the old ones before.
    """
    return one_update(args, rollouts) and not has_reference and not args.actor.recompute_log_probs


def left_out(action_masks: list[torch.Tensor]) -> list[torch.Tensor]:
    """Return what stands for old log-probabilities, one tensor (rollouts, T) a micro-batch: NaN."""
    return [torch.full(mask.shape, torch.nan) for mask in action_masks]


class UpdateLogProbs(torch.nn.Module):
    """The host's policy loss; where old log-probabilities were left out, those of this pass are the old ones."""

    def __init__(self, loss: torch.nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, log_probs: torch.Tensor, old_log_probs: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """Return the host's loss and its figures; `log_probs` and `old_log_probs` are (rollouts, T)."""
        old_log_probs = torch.where(torch.isnan(old_log_probs), log_probs.detach(), old_log_probs)
        return self.loss(log_probs, old_log_probs, *args, **kwargs)
