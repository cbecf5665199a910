"""Departure from the host: no forward pass for old log-probabilities that the update computes anyway.

The importance ratio of a token is pi / pi_old. If a batch is one optimizer step, pi and pi_old come from the same
weights, however the batch is split into micro-batches: the ratio is 1, and its gradient is that of log pi. The host
computes pi_old in an extra pass over the whole batch, a third of the update's arithmetic.
"""

import math
from types import SimpleNamespace
from typing import Any

import torch

from openrlhf_ktae.base.batches import one_update
from openrlhf_ktae.credit import OF_POLICY


def update_computes_log_probs(args: SimpleNamespace, rollouts: int, has_reference: bool) -> bool:
    """Return whether the log-probabilities of the update serve as the old ones for a batch of `rollouts`.

    This requires a single pass in one optimizer step, no reference model (its KL needs the old ones earlier), and no
    estimator of token-level credit that needs what the pass computes.
    """
    needed = (
        has_reference or args.actor.recompute_log_probs or any(need in OF_POLICY for need in args.algo.credit.needs)
    )
    return one_update(args, rollouts) and not needed


def left_out(action_masks: list[torch.Tensor]) -> list[torch.Tensor]:
    """Return NaN placeholders for old log-probabilities, one tensor (rollouts, T) per micro-batch."""
    return [torch.full(mask.shape, torch.nan) for mask in action_masks]


class UpdateLogProbs(torch.nn.Module):
    """The host's policy loss; if old log-probabilities were skipped, those of this pass are used.

    `mismatch` describes the last call: how much the sampler's log-probabilities differ from the old ones.
    """

    def __init__(self, loss: torch.nn.Module) -> None:
        super().__init__()
        self.loss = loss
        self.mismatch: dict[str, torch.Tensor] = {}

    def forward(
        self,
        log_probs: torch.Tensor,
        old_log_probs: torch.Tensor,
        *args: Any,
        rollout_log_probs: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Return the host's loss and its figures; log-probabilities are (rollouts, T)."""
        old_log_probs = torch.where(torch.isnan(old_log_probs), log_probs.detach(), old_log_probs)
        self.mismatch = {}
        if rollout_log_probs is not None:
            self.mismatch = mismatch(old_log_probs, rollout_log_probs, kwargs["action_mask"])
        return self.loss(log_probs, old_log_probs, *args, rollout_log_probs=rollout_log_probs, **kwargs)


@torch.no_grad()
def mismatch(old_BT: torch.Tensor, sampled_BT: torch.Tensor, action_mask_BT: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return scalars of |log p of the trainer - log p of the sampler| over action tokens, in nats; 0 without tokens.

    `mismatch/mean`, `mismatch/p99` (99th percentile) and `mismatch/quarter1` to `4`: the mean by position in the
    response. Check these first when a run collapses: engine and trainer should differ only by rounding.
    """
    acted_BT = action_mask_BT.bool()
    gaps_BT = (old_BT - sampled_BT).abs().float().masked_fill(~acted_BT, 0.0)
    position_BT = acted_BT.cumsum(dim=-1) - 1
    quarter_BT = (4 * position_BT) // acted_BT.sum(dim=-1, keepdim=True).clamp(min=1)
    gaps = gaps_BT[acted_BT]
    highest = gaps.kthvalue(max(1, math.ceil(0.99 * len(gaps)))).values if len(gaps) else gaps_BT.new_zeros(())
    figures = {"mismatch/mean": gaps.sum() / max(len(gaps), 1), "mismatch/p99": highest}
    for quarter in range(4):
        chosen_BT = acted_BT & (quarter_BT == quarter)
        figures[f"mismatch/quarter{quarter + 1}"] = gaps_BT[chosen_BT].sum() / chosen_BT.sum().clamp(min=1)
    return figures
