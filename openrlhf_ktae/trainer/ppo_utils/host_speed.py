"""Faster equivalents of host functions that the controller calls for every prompt or rollout.

Times are for 1,024 prompts of 16 rollouts. Remove one when the host is as fast.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import heapq
from bisect import insort
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import ray
import torch
from openrlhf.trainer import ppo_trainer
from openrlhf.trainer.ppo_utils import experience, experience_maker, samples_generator

from openrlhf_ktae.ktae.compiled import compiled
from openrlhf_ktae.trainer.ppo_utils.columns import Experiences

_hosts_padding = experience.zero_pad_sequences
_hosts_partitions = experience_maker.get_seqlen_balanced_partitions
_hosts_balance = ppo_trainer.balance_experiences
_hosts_reward = experience_maker.compute_reward

TOGETHER = 16
"""Number of prompts whose answers are collected together, if that many are ready."""
LOOKED_AT = 256
"""Number of pending answers that one call scans."""
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
KEPT_BLOCK, KEPT_BYTES = 32 * 2**20, 2**31 - 1
"""malloc reuses freed blocks up to the first size, and keeps up to the second in the process; glibc's maxima."""
COLLECT_AFTER = 500_000, 100, 100
"""Thresholds of the garbage collector; Python's default of 700 objects causes a thousand passes per step."""
PATIENCE_SECONDS = 0.25
"""How long to wait for `TOGETHER` answers."""

Set = tuple[int, int, list[tuple[int, int]]]
"""Sum of lengths, number of rollouts, and the rollouts as (index, length); compared in this order, as in the host."""


def install() -> None:
    """Replace the host's functions, which it looks up as module globals."""
    experience.zero_pad_sequences = zero_pad_sequences
    experience_maker.get_seqlen_balanced_partitions = get_seqlen_balanced_partitions
    experience_maker.get_minimum_num_micro_batch_size = get_minimum_num_micro_batch_size
    experience_maker.compute_reward = compute_reward
    samples_generator.ray = PatientRay()
    ppo_trainer.balance_experiences = balance_experiences


def tune_process() -> None:
    """Tune the garbage collector and malloc of this process, once everything is loaded.

    The half million objects of libraries are excluded from collections, because a step triggers several full
    collections (1.7 s). Freed memory is kept, because the kernel clears every page that it hands out again (0.5 s).
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECT_AFTER)
    atexit.register(gc.unfreeze)  # libraries complain at exit about objects that are never collected
    with suppress(OSError, AttributeError):  # only glibc has `mallopt`
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, KEPT_BLOCK)
        libc.mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)


class PatientRay:
    """Replaces Ray in the host's loop over answers. The loop waits for one answer at a time, and each call scans all
    pending ones. The work is quadratic in the number of prompts: 0.5 s at 4,096 even for 16 answers at a time."""

    def wait(self, refs: list[Any], *, num_returns: int = 1, timeout: float | None = None) -> Any:
        """Wait for some answers; return ready and pending ones. If too few were ready, the next call scans others."""
        some, rest = refs[:LOOKED_AT], refs[LOOKED_AT:]
        wanted = max(num_returns, min(TOGETHER, len(some)))
        patience = PATIENCE_SECONDS if timeout is None else min(timeout, PATIENCE_SECONDS)
        ready, pending = ray.wait(some, num_returns=wanted, timeout=patience)
        return ready, rest + pending if len(ready) < wanted else pending + rest

    def __getattr__(self, name: str) -> Any:
        return getattr(ray, name)


def balance_experiences(experiences: list[Any], args: Any) -> Experiences:
    """Balance as the host does; the result is sent by columns."""
    return Experiences(_hosts_balance(experiences, args))


def zero_pad_sequences(
    sequences: list[torch.Tensor], side: str = "left", value: int = 0, stack: bool = False
) -> torch.Tensor:
    """Concatenate tensors, padded to the longest. The host pads each separately, even single numbers (1.7 s)."""
    widths = [sequence.size(-1) if sequence.dim() else -1 for sequence in sequences]
    if min(widths) == max(widths) >= 0:
        return torch.stack(sequences) if stack else torch.cat(sequences)
    first = sequences[0]
    rows = 1 if stack else 2  # dimensions of a rollout's row
    plain = all(s.dim() == rows and s.dtype == first.dtype and s.numel() == s.size(-1) for s in sequences)
    if side != "right" or not plain or not all(widths):
        return _hosts_padding(sequences, side, value, stack)
    parts = [sequence.view(-1) for sequence in sequences]
    return torch.nn.utils.rnn.pad_sequence(parts, batch_first=True, padding_value=value)


class State:
    """A division of some rollouts into k sets; only non-empty sets are stored, in ascending order."""

    __slots__ = ("k", "sets")

    def __init__(self, sets: list[Set], k: int) -> None:
        self.sets, self.k = sets, k

    @property
    def spread(self) -> int:
        """Difference between the largest and the smallest sum."""
        return self.sets[-1][0] - (self.sets[0][0] if len(self.sets) == self.k else 0)

    def __lt__(self, other: State) -> bool:
        mine, others = self.spread, other.spread
        return mine > others if mine != others else self.sets[-1] > other.sets[-1]

    def merge(self, other: State) -> None:
        """Join our largest set with the other's smallest, and so on; empty sets are the smallest."""
        mine, theirs = self.sets, other.sets
        both = max(len(mine) + len(theirs) - self.k, 0)
        # Set i of ours pairs with set k - 1 - i of the other. Only the smallest `both` of each meet a non-empty set.
        joined = [joint(mine[i], theirs[both - 1 - i]) for i in range(both)]
        if len(theirs) == 1:
            del mine[:both]
            insort(mine, (joined or theirs)[0])
            return
        self.sets = sorted(mine[both:] + joined + theirs[both:])


def joint(one: Set, other: Set) -> Set:
    """Return both sets as one."""
    return one[0] + other[0], one[1] + other[1], one[2] + other[2]


def get_seqlen_balanced_partitions(seqlen_list: list[int], k_partitions: int, equal_size: bool) -> list[list[int]]:
    """Divide rollouts into k parts of about equal sums by the largest differencing method.

    The host keeps k sets for every rollout, including empty ones. It takes 19 s, and time and memory are quadratic.
    """
    if equal_size or min(seqlen_list, default=0) <= 0 or len(seqlen_list) < k_partitions:
        return _hosts_partitions(seqlen_list, k_partitions, equal_size)
    heap: list[State] = []
    for length, i in sorted((length, i) for i, length in enumerate(seqlen_list)):
        heapq.heappush(heap, State([(length, 1, [(i, length)])], k_partitions))
    while len(heap) > 1:
        first = heapq.heappop(heap)
        first.merge(heapq.heappop(heap))
        heapq.heappush(heap, first)
    return [sorted(i for i, _ in items) for _, _, items in reversed(heap[0].sets)]


def compute_reward(
    r: torch.Tensor, kl_coef: float, kl: Any, action_mask: Any = None, reward_clip_range: Any = None
) -> torch.Tensor:
    """Return the reward of each token: the KL penalty, plus the rollout's reward at its last action.

    The host copies each mask three times, once in 64 bits (60 ms).
    """
    tables = [table for table in (kl, action_mask) if isinstance(table, torch.Tensor) and table.is_cpu]
    if len(tables) < 2 or kl.dtype != torch.float32 or kl.shape != action_mask.shape:
        return _hosts_reward(r, kl_coef, kl, action_mask, reward_clip_range)
    if reward_clip_range:
        r = r.clamp(min=reward_clip_range[0], max=reward_clip_range[1])
    out_BT = torch.empty_like(kl, memory_format=torch.contiguous_format)
    factor = np.float32(-(kl_coef if kl_coef > 0 else 0.0))
    token_rewards(r.to(kl.dtype).numpy(), factor, kl.numpy(), action_mask.numpy(), out_BT.numpy())
    return out_BT


@compiled
def token_rewards(rewards_B: Any, factor: Any, kl_BT: Any, mask_BT: Any, out_BT: Any) -> None:
    """Fill `out_BT`: a rollout's reward at its last 1 of the mask (the last position if it has none) + factor x KL."""
    rows, width = kl_BT.shape
    for b in range(rows):
        last = width - 1
        while last >= 0 and not mask_BT[b, last]:
            last -= 1
        last = last if last >= 0 else width - 1
        for t in range(width):
            out_BT[b, t] = np.float32(0.0) + factor * kl_BT[b, t]
        if width:
            out_BT[b, last] = rewards_B[b] + factor * kl_BT[b, last]


def mean_of_zeros(zeros_BT: torch.Tensor, mask_BT: torch.Tensor, dim: int) -> torch.Tensor:
    """Return the host's `masked_mean` of a table of zeros: NaN for a row without a 1 in the mask, else 0."""
    return zeros_BT.new_zeros(len(mask_BT)) / mask_BT.sum(dim=dim)


@compiled
def first_fit(lengths: Any, limit: int) -> int:
    """Count the batches of at most `limit` tokens that first fit needs; a longer rollout gets its own batch."""
    batches = np.zeros(lengths.size, np.int64)
    used = 0
    for length in lengths:
        place = 0
        while place < used and batches[place] + length > limit:
            place += 1
        used = max(used, place + 1)
        batches[place] += length
    return used


def get_minimum_num_micro_batch_size(
    total_lengths: Sequence[int], max_tokens_per_gpu: int, ring_attn_size: int, ds_tensor_parallel_size: int
) -> int:
    """Return how many micro-batches of `max_tokens_per_gpu` tokens first fit needs. The host's loop takes 0.5 s."""
    limit = max_tokens_per_gpu * ring_attn_size * ds_tensor_parallel_size
    return int(first_fit(np.asarray(total_lengths, np.int64), limit))
