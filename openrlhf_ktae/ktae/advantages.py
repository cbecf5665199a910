"""The public computation: rollout-level advantages plus the key-token value of each action token.

Legend: `B` rollouts, `T` positions of one rollout, `N` positions of all rollouts end to end, `Q` groups.
"""

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from openrlhf_ktae.ktae.batch import Batch, floats_B, plain_batch, plain_ids
from openrlhf_ktae.ktae.config import KTAEConfig
from openrlhf_ktae.ktae.statistics import split_tables

POSITIONS_PER_THREAD = 200_000
"""Below this (about a millisecond of work) another thread costs more than it saves."""
CHUNKS_PER_THREAD = 4
"""Chunks of groups handed to each thread, so that uneven groups even out."""
KEPT_FORMULAS = 64
"""Configurations whose `Formula` is cached: reading the options takes as long as processing a group's tokens."""


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
    """Return the advantage of each token: its rollout's advantage plus the token's key-token value (arXiv 2505.16826).

    Args:
        token_ids: (B, T) integers, tensor or array, any device.
        action_mask: (B, T) 0/1 or bool, true on response tokens only.
        scores: (B,) raw verifier scores; NaN is an unknown verdict.
        group_ids: (B,) integers; equal for rollouts of one prompt, in any order.
        rollout_advantages: (B,) floats.
        config: options; default: the paper's.
        special_token_ids: ids that never get a value (end, padding, ...).
        num_threads: threads over groups, at least 1; default: chosen by size. It does not change any bit of the result.

    Returns:
        float32 (B, T) on the device of `token_ids`; 0 outside the mask.

    Raises:
        ValueError: an argument is invalid; the message names it, its value and what to give.
    """
    config = config or KTAEConfig()
    batch = plain_batch(token_ids, action_mask, scores, group_ids, config.correct_threshold)
    base_B = floats_B("rollout_advantages", rollout_advantages, len(batch.side_B))
    return _filled(batch, base_B, config, special_token_ids, num_threads).view(batch.shape)


def compute_key_token_values(
    token_ids: Any,
    action_mask: Any,
    scores: Any,
    group_ids: Any,
    config: KTAEConfig | None = None,
    special_token_ids: Iterable[int] = (),
    num_threads: int | None = None,
    row_edges: Any = None,
) -> torch.Tensor:
    """Return the weighted K of each action token, 0 elsewhere: float32 in the shape of `token_ids`.

    Arguments are those of `compute_ktae_advantages`. With `row_edges` (B + 1,), ids, mask and values are rows of
    unequal length end to end (N,), without padding. The values are bit-identical.
    """
    config = config or KTAEConfig()
    batch = plain_batch(token_ids, action_mask, scores, group_ids, config.correct_threshold, row_edges)
    return _filled(batch, np.zeros(len(batch.side_B)), config, special_token_ids, num_threads).view(batch.shape)


def _filled(
    batch: Batch,
    base_B: NDArray[np.float64],
    config: KTAEConfig,
    special_token_ids: Iterable[int],
    num_threads: int | None,
) -> torch.Tensor:
    """base + weight * K on action tokens, 0 elsewhere: (N,)."""
    excluded = plain_ids("special_token_ids", [*special_token_ids, *config.excluded_ids])
    threads = _threads(num_threads, batch.ids_N.size)
    if config.weight == 0 or not batch.mixed_Q.any():
        base_N = np.repeat(base_B.astype(np.float32), np.diff(batch.edges_B))
        base_N[batch.mask_N == 0] = 0.0
        return torch.from_numpy(base_N).to(batch.device)
    out_N = np.empty(batch.ids_N.shape, dtype=np.float32)  # numpy requests huge pages, torch does not
    _run_groups(batch, base_B, config, excluded, out_N, threads)
    return torch.from_numpy(out_N).to(batch.device)


def _run_groups(
    batch: Batch,
    base_B: NDArray[np.float64],
    config: KTAEConfig,
    excluded: NDArray[np.int64],
    out_N: NDArray[np.float32],
    threads: int,
) -> None:
    from openrlhf_ktae.ktae import compiled  # imported on first use, so that importing the package stays cheap

    places_Q, tables = _packed_tables(batch, config)
    formula = formula_of(config)

    def run(first: int, last: int) -> Any:
        return compiled.fill_groups(
            batch.ids_N, batch.mask_N, batch.edges_B, batch.rows_B, batch.starts_Q, batch.sizes_Q2, batch.side_B,
            base_B, places_Q, tables, excluded, formula, first, last, out_N,
        )  # fmt: skip

    groups = len(batch.sizes_Q2)
    if threads == 1:
        beyond = [run(0, groups)]
    else:
        cuts = np.linspace(0, groups, min(groups, threads * CHUNKS_PER_THREAD) + 1).astype(int).tolist()
        with ThreadPoolExecutor(threads) as pool:
            beyond = list(pool.map(run, cuts[:-1], cuts[1:]))
    refuse_odd_ids(beyond)


def refuse_odd_ids(beyond: list[int]) -> None:
    """Raise ValueError if a compiled loop found an id that does not fit in 32 bits."""
    if any(beyond):
        raise ValueError(
            "token_ids holds an id below 0 or above 4294967295 under action_mask: "
            "give vocabulary ids there, and mask out all other positions"
        )


def _packed_tables(batch: Batch, config: KTAEConfig) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the start of each group's tables (Q,), and the tables of every split in the batch, end to end."""
    splits = [(correct, wrong) for correct, wrong in batch.sizes_Q2.tolist()]
    places: dict[tuple[int, int], int] = {}
    parts: list[NDArray[np.float64]] = []
    used = 0
    for split in set(splits):
        places[split] = used
        if min(split) > 0:
            parts.append(split_tables(*split, config).packed())
            used += parts[-1].size
    return np.array([places[split] for split in splits], dtype=np.int64), np.concatenate(parts)


@lru_cache(maxsize=KEPT_FORMULAS)
def formula_of(config: KTAEConfig) -> Any:
    """Return the options of the compiled loops as plain numbers."""
    from openrlhf_ktae.ktae.compiled import Formula

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
        by_failure=config.by_failure,
    )


def _threads(asked: int | None, positions: int) -> int:
    if asked is not None and asked < 1:
        raise ValueError(f"num_threads={asked} must be at least 1; leave it out to choose by size")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return asked or max(1, min(cores, positions // POSITIONS_PER_THREAD))
