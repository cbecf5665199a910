"""Rows of micro-batches concatenated end to end, without padding them to the longest row of the batch.

Shapes: `B` rollouts of the batch, `N` positions of all micro-batches.
"""

import sys
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

IN_A_LIST = 3
"""Reference count of an unused block: the list, the loop variable and `getrefcount` hold one each."""
SPARE = 1.1
"""Size of a block relative to the request, because batches differ in size."""


def row_edges(parts: Sequence[torch.Tensor]) -> NDArray[np.int64]:
    """Return the start of each row of the concatenated `parts`, and the end of the last: (B + 1,)."""
    widths_B = np.repeat([part.size(1) for part in parts], [part.size(0) for part in parts])
    return np.concatenate([[0], np.cumsum(widths_B, dtype=np.int64)])


class Memory:
    """Allocates large tensors in the memory of earlier steps: clearing fresh pages takes longer than filling them.

    A block is reused once no tensor refers to it.
    """

    def __init__(self) -> None:
        self._blocks: list[NDArray[np.uint8]] = []

    def empty(self, count: int, dtype: torch.dtype) -> torch.Tensor:
        """Return an uninitialised tensor (count,)."""
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


class Pieces:
    """One float32 tensor (N,), handed out as tables one after another."""

    def __init__(self, memory: Memory, count: int) -> None:
        self.whole_N = memory.empty(count, torch.float32)
        self._used = 0

    def next(self, shape: torch.Size) -> torch.Tensor:
        """Return an uninitialised table; allocated separately if too little is left."""
        rest_N = self.whole_N[self._used :]
        if shape.numel() > len(rest_N):
            return torch.empty(shape)
        self._used += shape.numel()
        return rest_N[: shape.numel()].view(shape)


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
