"""Input and output of every estimator of token credit: plain tensors on the CPU, independent of any trainer.

Legend: `B` rollouts, `T` positions of a table's row, `N` positions of all rollouts end to end (rollout b from
`edges_B[b]` to `edges_B[b + 1]`), `A` action tokens among them, `Q` groups.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from openrlhf_ktae.ktae.batch import above

NEEDS = ("log_probs", "entropies", "sum_squares", "values", "in_prompt")
"""Inputs that are computed only for estimators that need them, each the field `NAME_N` of `CreditBatch`."""
OF_POLICY = NEEDS[:3]
"""Those of `NEEDS` that one forward pass of the policy provides."""
Indices = NDArray[np.int64]


@dataclass(frozen=True)
class CreditBatch:
    """Rollouts of whole groups, concatenated in any order. `mask_N` excludes the prompts and padding of rows.

    Cached properties are computed on first use.
    """

    token_ids_N: torch.Tensor
    """int64. In a run, this package's own estimators get int32, which takes half the memory."""
    mask_N: torch.Tensor
    """bool: action tokens, which the policy sampled."""
    edges_B: Indices
    """Start of each rollout, and the end of the last: shape (B + 1,)."""
    scores_B: torch.Tensor
    """The verifier's raw scores, float32. NaN means an unknown verdict: the rollout is ignored and gets no credit."""
    groups_B: torch.Tensor
    """Group of each rollout: equal integers for rollouts of one prompt."""
    base_N: torch.Tensor
    """Rollout-level advantages at each token, float32; undefined where `mask_N` is false."""
    special_ids: tuple[int, ...] = ()
    """Special ids, such as the end of a text."""
    correct_threshold: float = 0.0
    """A rollout with a score above this is correct."""
    log_probs_N: torch.Tensor | None = None
    """log pi of each token, float32, by the trained policy at the sampling temperature."""
    entropies_N: torch.Tensor | None = None
    """Entropy of the policy before each token, in nats."""
    sum_squares_N: torch.Tensor | None = None
    """Sum of the squared probabilities of all ids before each token."""
    values_N: torch.Tensor | None = None
    """Estimated mean score of continuations after each token, NaN where there is no estimate."""
    in_prompt_N: torch.Tensor | None = None
    """1.0 where the rollout's prompt has the token's id, else 0.0 (see `tokens_in_prompt`)."""

    @classmethod
    def from_tables(
        cls,
        token_ids: Any,
        action_mask: Any,
        scores: Any,
        group_ids: Any,
        rollout_advantages: Any,
        special_ids: Iterable[int] = (),
        correct_threshold: float = 0.0,
        **needs: Any,
    ) -> CreditBatch:
        """Build a batch from tables (B, T) of ids, mask and `needs` (named as in `NEEDS`), and (B,) scores and groups.

        `rollout_advantages` is (B,), or (B, T) if tokens differ, as with a KL penalty in the reward. Raises ValueError
        if a need is unknown or a shape does not fit; the message names the argument and what to give.
        """
        ids_BT = torch.as_tensor(token_ids).detach().cpu()
        if ids_BT.dim() != 2:
            raise ValueError(f"token_ids has shape {tuple(ids_BT.shape)}: give a table (rollouts, positions)")
        rows, width = ids_BT.shape

        def table(name: str, values: Any) -> torch.Tensor:
            made = torch.as_tensor(values).detach().cpu()
            if made.shape != ids_BT.shape:
                raise ValueError(f"{name} has shape {tuple(made.shape)}: give that of token_ids, {(rows, width)}")
            return made.reshape(-1)

        def column(name: str, values: Any) -> torch.Tensor:
            made = torch.as_tensor(values).detach().cpu()
            if made.shape != (rows,):
                raise ValueError(f"{name} has shape {tuple(made.shape)}: give one number for each of {rows} rollouts")
            return made

        if unknown := set(needs) - set(NEEDS):
            raise ValueError(f"{min(unknown)}: no such input; there are {', '.join(NEEDS)}")
        base = torch.as_tensor(rollout_advantages).detach().cpu().float()
        base = base[:, None].expand(rows, width) if base.shape == (rows,) else base
        return cls(
            token_ids_N=ids_BT.long().reshape(-1),
            mask_N=table("action_mask", action_mask).bool(),
            edges_B=np.arange(rows + 1, dtype=np.int64) * width,
            scores_B=column("scores", scores).float(),
            groups_B=column("group_ids", group_ids).long(),
            base_N=table("rollout_advantages", base),
            special_ids=tuple(special_ids),
            correct_threshold=correct_threshold,
            **{f"{name}_N": table(name, values).float() for name, values in needs.items() if values is not None},
        )

    def needed(self, name: str) -> torch.Tensor:
        """Return the input `name` of `NEEDS` (N,). Raises ValueError if the batch does not have it."""
        values: torch.Tensor | None = getattr(self, f"{name}_N")
        if values is None:
            raise ValueError(
                f"{name}: the batch has none; give {name}=, or in a file register(NAME, needs=({name!r},))"
            )
        return values

    @cached_property
    def known_B(self) -> NDArray[np.bool_]:
        """Rollouts with a verdict and an action token."""
        return ~np.isnan(self.scores_B.numpy()) & (self.lengths_B > 0)

    @cached_property
    def correct_B(self) -> NDArray[np.bool_]:
        """Rollouts whose score is above the threshold."""
        return self.known_B & above(self.scores_B, self.correct_threshold)

    @cached_property
    def group_B(self) -> Indices:
        """Group of each rollout, numbered from 0."""
        return np.unique(self.groups_B.numpy(), return_inverse=True)[1].astype(np.int64)

    @cached_property
    def mixed_Q(self) -> NDArray[np.bool_]:
        """Groups with both correct and wrong rollouts."""
        groups = int(self.group_B.max(initial=-1)) + 1
        sides = (self.correct_B, self.known_B & ~self.correct_B)
        has = [np.bincount(self.group_B, weights=side, minlength=groups) > 0 for side in sides]
        return has[0] & has[1]

    @cached_property
    def lengths_B(self) -> Indices:
        """Action tokens of each rollout."""
        mask_N, edges = self.mask_N.numpy(), self.edges_B.tolist()  # counting each row is faster than any sum of all
        return np.array([np.count_nonzero(mask_N[a:b]) for a, b in pairwise(edges)], np.int64)

    @cached_property
    def at_A(self) -> Indices:
        """Position of each action token among the N."""
        return np.flatnonzero(self.mask_N.numpy())

    @cached_property
    def row_A(self) -> Indices:
        """Rollout of each action token."""
        return np.repeat(np.arange(len(self.lengths_B)), self.lengths_B)

    @cached_property
    def first_B(self) -> Indices:
        """Start of each rollout's action tokens among the A."""
        return np.cumsum(self.lengths_B) - self.lengths_B

    @cached_property
    def column_A(self) -> Indices:
        """Number of each token's column: tokens at the same index of the group's rollouts share one."""
        longest_Q = np.zeros(int(self.group_B.max(initial=-1)) + 1, np.int64)
        np.maximum.at(longest_Q, self.group_B, self.lengths_B)
        start_Q = np.cumsum(longest_Q) - longest_Q
        return np.arange(len(self.at_A)) + (start_Q[self.group_B] - self.first_B)[self.row_A]

    @cached_property
    def advantage_B(self) -> NDArray[np.float64]:
        """Advantage of each rollout at its first action token, which covers the whole return; 0 if it has none."""
        advantage_B = np.zeros(len(self.lengths_B))
        acted = self.lengths_B > 0
        advantage_B[acted] = self.base_N.numpy()[self.at_A[self.first_B[acted]]]
        return advantage_B

    def on_tokens(self, values_N: torch.Tensor) -> torch.Tensor:
        """Return `values_N` as float32, set to 0 except at action tokens of rollouts with a verdict."""
        kept_N = self.mask_N
        if not self.known_B.all():
            kept_N = kept_N & torch.from_numpy(np.repeat(self.known_B, np.diff(self.edges_B)))
        return torch.where(kept_N, values_N.float(), 0.0)

    def spread(self, values_A: NDArray[Any]) -> torch.Tensor:
        """Scatter values of action tokens (A,) to (N,) float32; 0 elsewhere and for rollouts without a verdict."""
        values_N = np.zeros(len(self.mask_N), np.float32)
        values_N[self.at_A] = np.where(self.known_B[self.row_A], values_A, 0.0)
        return torch.from_numpy(values_N)


def tokens_in_prompt(ids_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    """Return 1.0 where an id is also before the row's first action token, else 0.0: float32 (B, T)."""
    starts_B = mask_BT.int().argmax(1).tolist()
    rows = [torch.isin(ids_T, ids_T[:start]) for ids_T, start in zip(ids_BT, starts_B, strict=True)]
    return torch.stack(rows).float()


@dataclass(frozen=True)
class TokenCredit:
    """Output of an estimator: the advantage of a token is its base plus a weight times `added_N`."""

    added_N: torch.Tensor
    """float32 (N,): the difference from the base; 0 outside the mask and for unknown verdicts."""
    figures: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """Intermediate results, (N,) each. Their means over action tokens are logged, and records show them."""
