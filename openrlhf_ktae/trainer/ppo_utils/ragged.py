"""Rows of micro-batches end to end, without padding each row to the longest of the batch.

Shapes: `B` rollouts of the batch, `N` positions of all micro-batches.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray


def row_edges(parts: Sequence[torch.Tensor]) -> NDArray[np.int64]:
    """Return the start of each row of `parts` laid end to end, and the end of the last: (B + 1,)."""
    widths_B = np.repeat([part.size(1) for part in parts], [part.size(0) for part in parts])
    return np.concatenate([[0], np.cumsum(widths_B, dtype=np.int64)])


def end_to_end(parts: Sequence[torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
    """Return the rows of the tables `parts` as one tensor (N,) of `dtype` on the CPU."""
    whole_N = torch.empty(sum(part.numel() for part in parts), dtype=dtype)
    for part, place in zip(parts, whole_N.split([part.numel() for part in parts]), strict=True):
        place.view(part.shape).copy_(part)
    return whole_N


def back_to_tables(whole_N: torch.Tensor, parts: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return views of `whole_N` in the shapes of `parts`."""
    places = whole_N.split([part.numel() for part in parts])
    return [place.view(part.shape) for place, part in zip(places, parts, strict=True)]
