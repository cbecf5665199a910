"""What callers pass, checked and made plain: numpy arrays on the CPU, rows sorted by group, rows labelled."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

UNKNOWN, WRONG, CORRECT = -1, 0, 1
"""Labels of a rollout."""


@dataclass(frozen=True)
class Batch:
    """A batch of rollouts. `B` rows, `T` positions, `Q` groups."""

    ids_BT: NDArray[Any]
    mask_BT: NDArray[np.bool_]
    side_B: NDArray[np.int8]
    rows_B: NDArray[np.int64]
    """Row numbers, group after group; within a group in the order given."""
    starts_Q: NDArray[np.int64]
    """Where each group starts in `rows_B`, and its end: shape (Q + 1,)."""
    sizes_Q2: NDArray[np.int64]
    """Correct and wrong rollouts of each group."""
    device: torch.device

    @property
    def mixed_Q(self) -> NDArray[np.bool_]:
        """Groups with both labels: the only ones where K can differ from 0."""
        return self.sizes_Q2.min(axis=1, initial=np.iinfo(np.int64).max) > 0


def plain_batch(
    token_ids: Any, action_mask: Any, scores: Any, group_ids: Any, correct_threshold: float
) -> Batch:
    """Check shapes and kinds, move what is on an accelerator once, and sort rows by group."""
    device = token_ids.device if isinstance(token_ids, torch.Tensor) else torch.device("cpu")
    ids_BT = _integers("token_ids", token_ids, ndim=2)
    mask_BT = _mask(action_mask, ids_BT.shape)
    rows = ids_BT.shape[0]
    scores_B = floats_B("scores", scores, rows)
    groups_B = _integers("group_ids", group_ids, ndim=1)
    if groups_B.shape != (rows,):
        raise ValueError(
            f"group_ids has shape {groups_B.shape}: give one integer for each of the {rows} rows of token_ids"
        )
    side_B = np.where(scores_B > correct_threshold, CORRECT, WRONG).astype(np.int8)
    side_B[np.isnan(scores_B)] = UNKNOWN
    _, group_B, sizes_Q = np.unique(groups_B, return_inverse=True, return_counts=True)
    sizes_Q2 = np.stack(
        [np.bincount(group_B[side_B == side], minlength=sizes_Q.size) for side in (CORRECT, WRONG)], axis=1
    )
    return Batch(
        ids_BT=ids_BT,
        mask_BT=mask_BT,
        side_B=side_B,
        rows_B=np.argsort(group_B, kind="stable").astype(np.int64),
        starts_Q=np.concatenate([[0], np.cumsum(sizes_Q)]).astype(np.int64),
        sizes_Q2=sizes_Q2.astype(np.int64),
        device=device,
    )


def floats_B(name: str, values: Any, rows: int) -> NDArray[np.float64]:
    """One float64 for each row; any float or integer kind, tensor, array or list."""
    if isinstance(values, torch.Tensor):
        values = values.detach().to(device="cpu", dtype=torch.float64).numpy()
    array = np.asarray(values, dtype=np.float64)
    if array.shape != (rows,):
        raise ValueError(
            f"{name} has shape {array.shape}: give one number for each of the {rows} rows of token_ids"
        )
    return array


def plain_ids(name: str, ids: Iterable[int]) -> NDArray[np.int64]:
    """Distinct ids as int64, sorted."""
    return np.unique(
        _integers(name, np.asarray(list(ids), dtype=object if not ids else None), ndim=1).astype(np.int64)
    )


def _array(values: Any) -> NDArray[Any]:
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        return values.float().numpy() if values.dtype == torch.bfloat16 else values.numpy()
    return np.asarray(values)


def _integers(name: str, values: Any, ndim: int) -> NDArray[Any]:
    array = _array(values)
    if array.size == 0 and array.ndim == ndim:
        array = array.astype(np.int64)
    if array.ndim != ndim or array.dtype.kind not in "iu":
        raise ValueError(
            f"{name} is {array.dtype} of shape {array.shape}: give integers with {ndim} dimension{'s' * (ndim > 1)}"
        )
    kind = array.dtype if array.dtype in (np.int32, np.int64) else np.int64
    return np.ascontiguousarray(array, dtype=kind)


def _mask(action_mask: Any, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    mask = _array(action_mask)
    if mask.shape != shape:
        raise ValueError(f"action_mask has shape {mask.shape}: give the shape of token_ids, {shape}")
    return np.ascontiguousarray(mask if mask.dtype == np.bool_ else mask != 0)
