"""The public computation: rollout-level advantages plus the key-token value of each action token.

Legend: `B` rollouts, `T` positions, `Q` groups.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from openrlhf_ktae.ktae.batch import CORRECT, UNKNOWN, Batch, floats_B, plain_batch, plain_ids
from openrlhf_ktae.ktae.config import KTAEConfig
from openrlhf_ktae.ktae.statistics import split_tables

POSITIONS_PER_THREAD = 200_000
"""Below this a second thread costs more than it saves."""
CHUNKS_PER_THREAD = 4
"""Chunks of groups handed to each thread, so that uneven groups even out."""


@dataclass(frozen=True)
class KeyTokenValues:
    """K of a batch and what there was to compute it from."""

    values_BT: torch.Tensor
    """float32 on the device of the token ids: weighted K on action tokens, 0 elsewhere."""
    groups: int
    mixed_groups: int
    """Groups with both correct and wrong rollouts; K is 0 in the others."""
    unknown_rollouts: int
    """Rollouts whose score is NaN: they take no part and get K = 0."""
    correct_B: torch.Tensor
    known_B: torch.Tensor


def compute_ktae_advantages(
    token_ids: Any,
    action_mask: Any,
    scores: Any,
    group_ids: Any,
    rollout_advantages: Any,
    config: KTAEConfig | None = None,
    special_token_ids: Iterable[int] = (),
    num_threads: int | None = None,
) -> torch.Tensor:
    """Advantage of each token: the rollout's plus its key-token value (arXiv 2505.16826, Eq. 11).

    Args:
        token_ids: (B, T) integers, tensor or array, any device.
        action_mask: (B, T) 0/1 or bool, true on response tokens only.
        scores: (B,) raw verifier scores; NaN is "unknown".
        group_ids: (B,) integers; equal for rollouts of one prompt, in any order.
        rollout_advantages: (B,) floats.
        config: options; the paper's when left out.
        special_token_ids: ids that never get a value (end, padding, ...).
        num_threads: threads over groups, at least 1; as many as useful when left out. Same bits either way.

    Returns:
        float32 (B, T) on the device of `token_ids`; 0 outside the mask.

    Raises:
        ValueError: shapes or kinds do not fit.
    """
    config = config or KTAEConfig()
    batch = plain_batch(token_ids, action_mask, scores, group_ids, config.correct_threshold)
    base_B = floats_B("rollout_advantages", rollout_advantages, batch.ids_BT.shape[0])
    return _filled(batch, base_B, config, special_token_ids, num_threads)


def compute_key_token_values(
    token_ids: Any,
    action_mask: Any,
    scores: Any,
    group_ids: Any,
    config: KTAEConfig | None = None,
    special_token_ids: Iterable[int] = (),
    num_threads: int | None = None,
) -> KeyTokenValues:
    """Weighted K of each action token, and counts of what it was computed from; arguments as above."""
    config = config or KTAEConfig()
    batch = plain_batch(token_ids, action_mask, scores, group_ids, config.correct_threshold)
    values_BT = _filled(batch, np.zeros(batch.ids_BT.shape[0]), config, special_token_ids, num_threads)
    return KeyTokenValues(
        values_BT=values_BT,
        groups=len(batch.sizes_Q2),
        mixed_groups=int(batch.mixed_Q.sum()),
        unknown_rollouts=int((batch.side_B == UNKNOWN).sum()),
        correct_B=torch.from_numpy(batch.side_B == CORRECT).to(batch.device),
        known_B=torch.from_numpy(batch.side_B != UNKNOWN).to(batch.device),
    )


def _filled(
    batch: Batch,
    base_B: NDArray[np.float64],
    config: KTAEConfig,
    special_token_ids: Iterable[int],
    num_threads: int | None,
) -> torch.Tensor:
    """base + weight * K on action tokens, 0 elsewhere."""
    excluded = plain_ids("special_token_ids", [*special_token_ids, *config.excluded_ids])
    if config.weight == 0 or not batch.mixed_Q.any():
        base = torch.from_numpy(base_B).to(torch.float32)[:, None]
        filled = torch.where(torch.from_numpy(batch.mask_BT), base, torch.zeros((), dtype=torch.float32))
        return filled.to(batch.device)
    out_BT = torch.empty(batch.ids_BT.shape, dtype=torch.float32)
    _run_groups(batch, base_B, config, excluded, out_BT.numpy(), _threads(num_threads, batch.ids_BT.size))
    return out_BT.to(batch.device)


def _run_groups(
    batch: Batch,
    base_B: NDArray[np.float64],
    config: KTAEConfig,
    excluded: NDArray[np.int64],
    out_BT: NDArray[np.float32],
    threads: int,
) -> None:
    from openrlhf_ktae.ktae import contingency  # compiled on first use: importing the package stays cheap

    places_Q3, tables = _packed_tables(batch, config)
    formula = _formula(config)

    def run(first: int, last: int) -> None:
        contingency.fill_groups(
            batch.ids_BT, batch.mask_BT, batch.rows_B, batch.starts_Q, batch.sizes_Q2, batch.side_B, base_B,
            places_Q3, tables, excluded, formula, first, last, out_BT,
        )  # fmt: skip

    groups = len(batch.sizes_Q2)
    if threads == 1 or groups == 1:
        return run(0, groups)
    cuts = np.unique(np.linspace(0, groups, threads * CHUNKS_PER_THREAD + 1).astype(int)).tolist()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(run, cuts[:-1], cuts[1:]))
    return None


def _packed_tables(batch: Batch, config: KTAEConfig) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The tables of every split in the batch end to end, and where each group's three start: (Q, 3)."""
    splits, split_Q = np.unique(batch.sizes_Q2, axis=0, return_inverse=True)
    places = np.zeros((len(splits), 3), np.int64)
    parts: list[NDArray[np.float64]] = []
    used = 0
    for number, (correct, wrong) in enumerate(splits.tolist()):
        if correct and wrong:
            found = split_tables(correct, wrong, config)
            for column, part in enumerate((found.strength_TF, found.direction_TF, found.null_n)):
                places[number, column] = used
                parts.append(part.ravel())
                used += part.size
    return places[split_Q.reshape(-1)], np.concatenate(parts)


def _formula(config: KTAEConfig) -> Any:
    from openrlhf_ktae.ktae.contingency import Formula

    return Formula(
        calibrated=config.variant == "calibrated",
        relative=config.resolved().term_frequency == "relative",
        h3=config.number("h3"),
        k1=config.number("k1"),
        b=config.number("b"),
        epsilon=config.number("ratio_epsilon"),
        two_scale=2.0 * config.number("scale"),
        value_range=config.number("value_range"),
        weight=config.number("weight"),
        noise=config.number("noise_budget"),
        centre=config.centre,
    )


def _threads(asked: int | None, positions: int) -> int:
    if asked is not None:
        if asked < 1:
            raise ValueError(f"num_threads={asked} must be at least 1: leave it out to choose by size")
        return asked
    return max(1, min(len(os.sched_getaffinity(0)), positions // POSITIONS_PER_THREAD))
