"""Rows of micro-batches end to end, without padding each row to the longest of the batch.

Shapes: `B` rollouts of the batch, `N` positions of all micro-batches.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

IN_A_LIST = 3
"""References to a block that nobody uses: the list's, a loop's, and that of the question."""
SPARE = 1.1
"""Batches differ in size; a block has room for somewhat more."""


def row_edges(parts: Sequence[torch.Tensor]) -> NDArray[np.int64]:
    """Return the start of each row of `parts` laid end to end, and the end of the last: (B + 1,)."""
    widths_B = np.repeat([part.size(1) for part in parts], [part.size(0) for part in parts])
    return np.concatenate([[0], np.cumsum(widths_B, dtype=np.int64)])


class Memory:
    """Large tensors in memory of earlier steps: the kernel takes longer to clear fresh pages than a step to fill them.

    A block is used again once no tensor in it is left.
    """

    def __init__(self) -> None:
        self._blocks: list[NDArray[np.uint8]] = []

    def empty(self, count: int, dtype: torch.dtype) -> torch.Tensor:
        """Return a tensor (count,) of whatever was there."""
        size = count * dtype.itemsize
        free = [block for block in self._blocks if sys.getrefcount(block) == IN_A_LIST]
        fitting = [block for block in free if block.nbytes >= size]
        if fitting:
            block = min(fitting, key=len)
        else:
            outgrown = set(map(id, free))
            self._blocks = [block for block in self._blocks if id(block) not in outgrown]
            block = np.empty(int(size * SPARE), np.uint8)
            self._blocks.append(block)
        return torch.from_numpy(block[:size]).view(dtype)


def end_to_end(parts: Sequence[torch.Tensor], dtype: torch.dtype, memory: Memory | None = None) -> torch.Tensor:
    """Return the rows of the tables `parts` as one tensor (N,) of `dtype` on the CPU."""
    whole_N = (memory or Memory()).empty(sum(part.numel() for part in parts), dtype)
    for part, place in zip(parts, whole_N.split([part.numel() for part in parts]), strict=True):
        place.view(part.shape).copy_(part)
    return whole_N


def back_to_tables(whole_N: torch.Tensor, parts: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return views of `whole_N` in the shapes of `parts`."""
    places = whole_N.split([part.numel() for part in parts])
    return [place.view(part.shape) for place, part in zip(places, parts, strict=True)]
