"""Batches for benchmarks of KTAE: Zipf-distributed ids, rollouts of unequal length, random labels.

Legend: `B` rollouts, `T` positions, `Q` groups of `G` rollouts, `V` vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

VOCABULARY = 151_936
"""Vocabulary size of the paper's Qwen2.5 models."""
SHORTEST, LONGEST = 300, 1_100
ROLLOUTS = 16
ROWS_AT_ONCE = 1_024
"""Rows drawn at a time, so that the random draws of a large batch need no more memory than the batch."""


class ZipfBatch(NamedTuple):
    """Arguments of `compute_ktae_advantages`, in order."""

    ids_BT: NDArray[np.integer]
    mask_BT: NDArray[np.bool_]
    scores_B: NDArray[np.float64]
    groups_B: NDArray[np.int64]
    base_B: NDArray[np.float64]

    @property
    def tokens(self) -> int:
        """Number of response tokens."""
        return int(self.mask_BT.sum())

    @property
    def input_bytes(self) -> int:
        """Bytes of all arguments."""
        return sum(part.nbytes for part in self)

    def groups(self) -> list[NDArray[np.integer]]:
        """Return the response tokens of each group, concatenated."""
        rows = np.flatnonzero(np.diff(self.groups_B)) + 1
        parts = zip(np.split(self.ids_BT, rows), np.split(self.mask_BT, rows), strict=True)
        return [ids[mask] for ids, mask in parts]


def zipf_batch(
    groups: int,
    vocabulary: int = VOCABULARY,
    rollouts: int = ROLLOUTS,
    shortest: int = SHORTEST,
    longest: int = LONGEST,
    dtype: type = np.int64,
    seed: int = 0,
) -> ZipfBatch:
    """Draw Q groups of Zipf-distributed ids (frequency 1 / rank, ranks shuffled over the vocabulary)."""
    rng = np.random.default_rng(seed)
    rows = groups * rollouts
    cumulative = np.cumsum(1.0 / np.arange(1, vocabulary + 1))
    cumulative /= cumulative[-1]
    names = rng.permutation(vocabulary).astype(dtype)
    lengths_B = rng.integers(shortest, longest + 1, rows)
    ids_BT = np.zeros((rows, longest), dtype)
    mask_BT = np.arange(longest) < lengths_B[:, None]
    for first in range(0, rows, ROWS_AT_ONCE):
        chosen = np.s_[first : first + ROWS_AT_ONCE]
        ranks = np.searchsorted(cumulative, rng.random(int(lengths_B[chosen].sum())))
        ids_BT[chosen][mask_BT[chosen]] = names[np.minimum(ranks, vocabulary - 1)]
    scores_B = (rng.random(rows) < 0.5).astype(np.float64)
    scores_B[::rollouts], scores_B[1::rollouts] = 1.0, 0.0  # every group is mixed, the costly case
    return ZipfBatch(ids_BT, mask_BT, scores_B, np.repeat(np.arange(groups), rollouts), rng.normal(size=rows))
