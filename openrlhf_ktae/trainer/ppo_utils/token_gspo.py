"""Departure from the host: GSPO with an advantage for each token (GSPO-token, arXiv 2507.18071, equation 13).

GSPO's ratio is per sequence: s = exp(mean over tokens of log pi - log pi_old). Its gradient spreads every
advantage of a response evenly over its tokens, so token-level credit is lost. The token form is

    s_t = stop_gradient(s) * pi_t / stop_gradient(pi_t)

It has the value of s, and the gradient of its own token. If all advantages of a response are equal, both forms have
the same loss and gradient.
"""

from types import SimpleNamespace
from typing import Any

import torch
from openrlhf.models.loss import PolicyLoss


class TokenGspo(torch.nn.Module):
    """The token form, using the host's PPO loss with old log-probabilities chosen so that its ratio is s_t."""

    def __init__(self, loss: PolicyLoss) -> None:
        super().__init__()
        self.against_rollout = loss.is_correction_level != "off"  # then the engine's are the old ones
        self.loss = PolicyLoss(
            loss.clip_eps_low, loss.clip_eps_high, loss.dual_clip, token_level_loss=False, policy_loss_type="ppo"
        )

    def forward(
        self,
        log_probs: torch.Tensor,
        old_log_probs: torch.Tensor,
        advantages: torch.Tensor,
        action_mask: torch.Tensor,
        rollout_log_probs: torch.Tensor | None = None,
        **normaliser: Any,
    ) -> Any:
        """Return the host's loss and its figures; every tensor is (rollouts, T)."""
        before = rollout_log_probs if self.against_rollout and rollout_log_probs is not None else old_log_probs
        current = log_probs.detach()
        lengths = action_mask.sum(dim=-1, keepdim=True).clamp(min=1)
        sequence = ((current - before) * action_mask).sum(dim=-1, keepdim=True) / lengths
        loss, clipped, _, *none = self.loss(
            log_probs, current - sequence, advantages, action_mask=action_mask, **normaliser
        )
        kl = ((old_log_probs - current) * action_mask).sum() / action_mask.sum().clamp(min=1)
        return loss, clipped, kl, *none


def with_token_credit(loss: PolicyLoss, args: SimpleNamespace) -> torch.nn.Module:
    """Return the loss of a run: the host's own unless that would lose token-level advantages."""
    return TokenGspo(loss) if args.algo.credit.name and loss.policy_loss_type == "gspo" else loss
