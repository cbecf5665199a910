"""KTAE in this process or shared by Ray tasks, with the same bits: no group sees another.

Shapes: `B` rollouts of the batch, `T` positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import ray
import torch
from numpy.typing import NDArray

from openrlhf_ktae.ktae import KeyTokenValues, KTAEConfig, compute_key_token_values

Array = NDArray[Any]

SHARD_POSITIONS = 1_000_000_000
"""B * T from which on tasks are used unasked: ten seconds of work on one core. Below, threads are quicker: to send
a token to a task costs as much as to compute its value."""
MOST_WORKERS = 16
"""Unasked."""


def key_token_values(
    token_ids_BT: torch.Tensor,
    action_mask_BT: torch.Tensor,
    scores_B: torch.Tensor,
    group_ids_B: torch.Tensor,
    config: KTAEConfig,
    special_token_ids: Sequence[int] = (),
    num_workers: int | None = None,
) -> KeyTokenValues:
    """Return what `compute_key_token_values` does, computed by `num_workers` Ray tasks; 0 computes here.

    Left out, the number of tasks is 0 below `SHARD_POSITIONS`, else the CPUs of the cluster, at most `MOST_WORKERS`.
    Tasks ask for no resources, so they run where all CPUs are taken.

    Raises:
        ValueError: an argument does not fit, here or in a task.
        ray.exceptions.RayError: a task was lost more often than Ray repeats it.
    """
    workers = _workers(token_ids_BT.numel()) if num_workers is None else num_workers
    shards = list(_shards(group_ids_B.cpu().numpy(), workers))
    if not shards:
        return compute_key_token_values(token_ids_BT, action_mask_BT, scores_B, group_ids_B, config, special_token_ids)
    given = (token_ids_BT, action_mask_BT != 0, scores_B.double(), group_ids_B)
    arrays = [part.detach().cpu().numpy() for part in given]  # of a slice of a tensor, pickle would send the whole
    tasks = [_shard.remote([part[rows] for part in arrays], config, tuple(special_token_ids)) for rows in shards]
    values_BT = np.zeros(token_ids_BT.shape, dtype=np.float32)
    labels_2B = np.zeros((2, len(scores_B)), dtype=np.bool_)
    counts = np.zeros(3, dtype=np.int64)
    for rows, task in zip(shards, tasks, strict=True):
        values_BT[rows], labels_2B[0, rows], labels_2B[1, rows], counted = ray.get(task)
        counts += counted
    values, correct_B, known_B = (torch.from_numpy(a).to(token_ids_BT.device) for a in (values_BT, *labels_2B))
    groups, mixed, unknown = counts.tolist()
    return KeyTokenValues(values, groups, mixed, unknown, correct_B, known_B)


def _workers(positions: int) -> int:
    if positions < SHARD_POSITIONS or not ray.is_initialized():
        return 0
    return min(MOST_WORKERS, int(ray.cluster_resources().get("CPU", 0)))


def _shards(group_ids_B: Array, workers: int) -> Iterator[slice | Array]:
    """Rows of each task: whole groups, about equally many; a slice, which needs no copy, where they lie together."""
    if workers == 0:
        return
    order = np.argsort(group_ids_B, kind="stable")
    starts = np.flatnonzero(np.diff(group_ids_B[order])) + 1
    wanted = np.arange(1, workers) * len(order) / workers
    cuts = sorted({int(starts[np.argmin(np.abs(starts - cut))]) for cut in wanted} if len(starts) else [])
    for rows in np.split(order, cuts):
        if len(rows) and rows[-1] - rows[0] == len(rows) - 1 and (np.diff(rows) == 1).all():
            yield slice(int(rows[0]), int(rows[-1]) + 1)
        elif len(rows):
            yield np.sort(rows)


@ray.remote(num_cpus=0, scheduling_strategy="SPREAD")
def _shard(batch: list[Array], config: KTAEConfig, special_token_ids: tuple[int, ...]) -> tuple[Array, ...]:
    """One task, one thread, since several may share a machine: K, labels (correct, known), and the three counts."""
    ids_BT, mask_BT, scores_B, group_ids_B = batch
    found = compute_key_token_values(ids_BT, mask_BT, scores_B, group_ids_B, config, special_token_ids, num_threads=1)
    counts = np.array([found.groups, found.mixed_groups, found.unknown_rollouts])
    return found.values_BT.numpy(), found.correct_B.numpy(), found.known_B.numpy(), counts
