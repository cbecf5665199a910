"""The caller's arguments, validated and converted: numpy arrays on the CPU, rows labelled and sorted by group.

Legend: `B` rollouts, `T` positions of one rollout, `N` positions of all rollouts end to end, `Q` groups.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from openrlhf_ktae.ktae.config import integers

UNKNOWN, WRONG, CORRECT = -1, 0, 1
"""Labels of a rollout."""


@dataclass(frozen=True)
class Batch:
    """A batch of rollouts, ready for the compiled loops."""

    ids_N: NDArray[Any]
    mask_N: NDArray[np.uint8]
    edges_B: NDArray[np.int64]
    """Where each rollout starts among the N positions, and the end of the last: shape (B + 1,)."""
    side_B: NDArray[np.int8]
    rows_B: NDArray[np.int64]
    """Row numbers, group after group; within a group in the given order."""
    starts_Q: NDArray[np.int64]
    """Where each group starts in `rows_B`, and the end of the last: shape (Q + 1,)."""
    sizes_Q2: NDArray[np.int64]
    """Correct and wrong rollouts of each group."""
    shape: tuple[int, ...]
    """(B, T), or (N,) for rows of unequal length."""
    device: torch.device

    @property
    def mixed_Q(self) -> NDArray[np.bool_]:
        """Groups with both labels; K can differ from 0 only in these."""
        return (self.sizes_Q2[:, 0] > 0) & (self.sizes_Q2[:, 1] > 0)


def plain_batch(
    token_ids: Any, action_mask: Any, scores: Any, group_ids: Any, correct_threshold: float, row_edges: Any = None
) -> Batch:
    """Check shapes and dtypes, copy accelerator tensors to the CPU once, label rows and sort them by group.

    `token_ids` and `action_mask` are tables (B, T), or with `row_edges` (B + 1,) rows of any length end to end (N,).
    Raises ValueError if an argument is invalid; the message names it and what to give.
    """
    device = token_ids.device if isinstance(token_ids, torch.Tensor) else torch.device("cpu")
    ids = _integers("token_ids", token_ids, ndim=2 if row_edges is None else 1)
    mask = _mask(action_mask, ids.shape)
    edges_B = _edges(row_edges, ids.shape)
    rows = len(edges_B) - 1
    scores_B = floats_B("scores", scores, rows)
    groups_B = _integers("group_ids", group_ids, ndim=1)
    if groups_B.size != rows:
        raise ValueError(f"group_ids has {groups_B.size} entries: give one integer for each of the {rows} rows")
    side_B = np.where(above(scores, correct_threshold), CORRECT, WRONG).astype(np.int8)
    side_B[np.isnan(scores_B)] = UNKNOWN
    rows_B = np.argsort(groups_B, kind="stable")
    sorted_B = groups_B[rows_B]
    starts_Q = np.flatnonzero(np.concatenate([sorted_B[:1] == sorted_B[:1], sorted_B[1:] != sorted_B[:-1]]))
    sides = [np.add.reduceat(side_B[rows_B] == side, starts_Q) if rows else starts_Q for side in (CORRECT, WRONG)]
    return Batch(
        ids_N=ids.reshape(-1),
        mask_N=mask.reshape(-1).view(np.uint8),
        edges_B=edges_B,
        side_B=side_B,
        rows_B=rows_B.astype(np.int64),
        starts_Q=np.append(starts_Q, rows).astype(np.int64),
        sizes_Q2=np.stack(sides, axis=1).astype(np.int64),
        shape=ids.shape,
        device=device,
    )


def floats_B(name: str, values: Any, rows: int) -> NDArray[np.float64]:
    """Return one float64 per row, from a tensor, array or list of floats or integers."""
    if isinstance(values, torch.Tensor):
        values = values.detach().to(device="cpu", dtype=torch.float64).numpy()
    array = np.asarray(values, dtype=np.float64)
    if array.shape != (rows,):
        raise ValueError(f"{name} has shape {array.shape}: give one number for each of the {rows} rows of token_ids")
    return array


def above(scores: Any, threshold: float) -> NDArray[np.bool_]:
    """Return which scores are above the threshold rounded to their type: 0.1 in float32 is above the float 0.1."""
    if isinstance(scores, torch.Tensor) and scores.is_floating_point():
        threshold = torch.tensor(threshold, dtype=scores.dtype).item()  # NumPy has no bfloat16
    given = _array(scores)
    return given > (given.dtype.type(threshold) if given.dtype.kind == "f" else threshold)


def plain_ids(name: str, ids: Iterable[Any]) -> NDArray[np.int64]:
    """Return the distinct ids, sorted."""
    plain = integers(name, list(ids), "leave out ids that the tokenizer does not define")
    return np.array(sorted(set(plain)), dtype=np.int64)


def _array(values: Any) -> NDArray[Any]:
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        return values.float().numpy() if values.dtype == torch.bfloat16 else values.numpy()
    return np.asarray(values)


def _integers(name: str, values: Any, ndim: int) -> NDArray[Any]:
    """Return a contiguous int32 or int64 array, without a copy if `values` already is one."""
    array = _array(values)
    if array.size == 0 and array.ndim == ndim:
        array = array.astype(np.int64)  # an empty list has no integer dtype
    if array.ndim != ndim or array.dtype.kind not in "iu":
        wanted = "a (B, T) table of integers" if ndim == 2 else "one integer for each row"
        wanted = "integers (N,), the rows that row_edges marks" if (name, ndim) == ("token_ids", 1) else wanted
        raise ValueError(f"{name} is {array.dtype} of shape {array.shape}: give {wanted}")
    kind = np.int32 if np.can_cast(array.dtype, np.int32) else np.int64
    return np.ascontiguousarray(array, dtype=kind)


def _mask(action_mask: Any, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    mask = _array(action_mask)
    if mask.shape != shape:
        raise ValueError(f"action_mask has shape {mask.shape}: give the shape of token_ids, {shape}")
    return np.ascontiguousarray(mask if mask.dtype == np.bool_ else mask != 0)


def _edges(row_edges: Any, shape: tuple[int, ...]) -> NDArray[np.int64]:
    if row_edges is None:
        return np.arange(shape[0] + 1, dtype=np.int64) * shape[1]
    edges_B = _integers("row_edges", row_edges, ndim=1).astype(np.int64)
    if edges_B.size == 0 or edges_B[0] != 0 or edges_B[-1] != shape[0] or (np.diff(edges_B) < 0).any():
        raise ValueError(
            f"row_edges of {edges_B.size} entries must rise from 0 to the length of token_ids, {shape[0]}: "
            "give where each row starts, and the end of the last"
        )
    return edges_B
