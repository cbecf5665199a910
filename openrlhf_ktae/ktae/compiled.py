"""Compiled loops: from the rollouts of a batch to counts per group and id, and from counts to values.

Legend: `B` rollouts, `T` positions, `G` rollouts of a group, `Q` groups, `U` distinct ids of a group, `C` the
columns of an id's record. One pass over a group's tokens numbers its ids in order of appearance with a small hash
table, counts them per side and marks presence; a second goes over the ids; a third writes values back. The cost
of a token does not depend on the vocabulary, and no group sees another, so any way of cutting the batch between
groups gives the same bits.
"""

# ruff: noqa: ANN001, ANN201
from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numba import njit

EMPTY = -1
FIRST_BITS = 12
"""The hash table starts with 2^12 slots, 16 KB: it fits the L1 cache and doubles when a group needs more."""
GOLDEN = np.uint64(0x9E3779B97F4A7C15)
"""2^64 over the golden ratio: multiplicative hashing spreads neighbouring ids."""
MEMO = 4
"""Counts below this share K with every id of equal counts; most distinct ids of a text are that rare."""
HALF = 0.5
"""Jeffreys prior: half a count on each side keeps the ratio of frequencies finite and near 1 for rare ids."""

# Columns of an id's record.
ON_WRONG, ON_CORRECT, IN_WRONG, IN_CORRECT, LAST_ROW = 0, 1, 2, 3, 4
RECORD_WIDTH = 5


class Formula(NamedTuple):
    """The options that the loops need, as plain numbers."""

    calibrated: bool
    relative: bool
    h3: float
    k1: float
    b: float
    epsilon: float
    two_scale: float
    value_range: float
    weight: float
    noise: float
    centre: bool


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile with the disk cache, or without it where no cache folder can be written."""
    try:
        return njit(nogil=True, cache=True)(function)
    except RuntimeError:
        return njit(nogil=True)(function)


@compiled
def locate(key, keys_U, slots):  # type: ignore[no-untyped-def]
    """Slot that holds the number of `key`, or the empty slot where it belongs."""
    wrap = np.uint64(slots.size - 1)
    slot = ((np.uint64(key) * GOLDEN) >> np.uint64(32)) & wrap
    while True:
        u = slots[slot]
        if u == EMPTY or keys_U[u] == key:
            return slot
        slot = (slot + np.uint64(1)) & wrap


@compiled
def grown(keys_U, records_UC, slots):  # type: ignore[no-untyped-def]
    """The same tables with twice the room."""
    count = keys_U.size
    keys = np.empty(2 * count, np.int64)
    records = np.empty((2 * count, RECORD_WIDTH), np.int32)
    keys[:count] = keys_U
    records[:count] = records_UC
    table = np.full(2 * slots.size, EMPTY, np.int32)
    for u in range(count):
        table[locate(keys[u], keys, table)] = u
    return keys, records, table


@compiled
def count_group(ids_BT, mask_BT, rows_G, side_B, keys_U, records_UC, slots, token_u):  # type: ignore[no-untyped-def]
    """Count the labelled rows of one group.

    Returns U and the tables, larger ones where they had to grow; `token_u` receives each token's id number.
    """
    ids = 0
    tokens = 0
    slots[:] = EMPTY
    for position in range(rows_G.size):
        row = rows_G[position]
        side = side_B[row]
        if side < 0:
            continue
        for t in range(ids_BT.shape[1]):
            if not mask_BT[row, t]:
                continue
            key = np.int64(ids_BT[row, t])
            slot = locate(key, keys_U, slots)
            u = slots[slot]
            if u == EMPTY:
                if 2 * ids == slots.size:
                    keys_U, records_UC, slots = grown(keys_U, records_UC, slots)
                    slot = locate(key, keys_U, slots)
                u = np.int32(ids)
                ids += 1
                slots[slot] = u
                keys_U[u] = key
                records_UC[u] = 0
                records_UC[u, LAST_ROW] = -1
            record = records_UC[u]
            record[side] += 1
            record[IN_WRONG + side] += record[LAST_ROW] != position
            record[LAST_ROW] = position
            token_u[tokens] = u
            tokens += 1
    return ids, keys_U, records_UC, slots


@compiled
def bm25(frequency, relative_length, k1, b):  # type: ignore[no-untyped-def]
    """Saturated frequency of one side; 0 where the id is absent."""
    if frequency == 0.0:
        return 0.0
    return (k1 + 1.0) * frequency / (k1 * (1.0 - b + b * relative_length) + frequency)


@compiled
def direction(presence, counts, sizes, lengths, formula):  # type: ignore[no-untyped-def]
    """Direction of one id from its presence part and counts; pairs are (correct, wrong): uses, rollouts, tokens."""
    if formula.calibrated:
        use_correct = (counts[0] + HALF) / (sizes[0] + 1.0)
        use_wrong = (counts[1] + HALF) / (sizes[1] + 1.0)
        length_correct, length_wrong = lengths[0] / sizes[0], lengths[1] / sizes[1]
    else:
        use_correct, use_wrong = float(counts[0]), float(counts[1])
        if formula.relative:
            use_correct /= max(lengths[0], 1)
            use_wrong /= max(lengths[1], 1)
        length_correct, length_wrong = float(lengths[0]), float(lengths[1])
    mean_length = max((length_correct + length_wrong) / 2.0, 1e-300)
    correct = bm25(use_correct, length_correct / mean_length, formula.k1, formula.b)
    wrong = bm25(use_wrong, length_wrong / mean_length, formula.k1, formula.b)
    if formula.calibrated:
        agreement = correct / wrong if presence > 0 else wrong / correct
        return presence * min(1.0, agreement) ** formula.h3
    return presence + formula.h3 * (correct / (wrong + formula.epsilon) - wrong / (correct + formula.epsilon))


@compiled
def id_values(ids, records_UC, sizes, strength_TF, direction_TF, null_n, formula, values_U):  # type: ignore[no-untyped-def]
    """K of every id of one group, before `weight`; `sizes` are its (correct, wrong) rollouts."""
    lengths = (records_UC[:ids, ON_CORRECT].sum(), records_UC[:ids, ON_WRONG].sum())
    memo = np.full((MEMO, MEMO, MEMO, MEMO), np.nan)
    for u in range(ids):
        used = (records_UC[u, ON_CORRECT], records_UC[u, ON_WRONG])
        a, b = records_UC[u, IN_CORRECT], records_UC[u, IN_WRONG]
        rare = used[0] < MEMO and used[1] < MEMO
        if rare and not np.isnan(memo[used[0], used[1], a, b]):
            values_U[u] = memo[used[0], used[1], a, b]
            continue
        value = 0.0
        if strength_TF[a, b] != 0.0:
            towards = direction(direction_TF[a, b], used, sizes, lengths, formula)
            value = formula.value_range * np.tanh(strength_TF[a, b] * towards / formula.two_scale)
        values_U[u] = value
        if rare:
            memo[used[0], used[1], a, b] = value
    if formula.calibrated:
        values_U[:ids] *= noise_factor(ids, records_UC, null_n, formula.noise * formula.value_range)


@compiled
def noise_factor(ids, records_UC, null_n, allowed):  # type: ignore[no-untyped-def]
    """Factor (at most 1) that keeps the expected |K| per token under random labels at `allowed`."""
    tokens_n = np.zeros(null_n.size, np.int64)
    for u in range(ids):
        n = records_UC[u, IN_CORRECT] + records_UC[u, IN_WRONG]
        tokens_n[n] += records_UC[u, ON_CORRECT] + records_UC[u, ON_WRONG]
    expected = 0.0
    for n in range(null_n.size):
        expected += tokens_n[n] * null_n[n]
    tokens = tokens_n.sum()
    return min(1.0, allowed * tokens / expected) if expected > 0.0 else 1.0


@compiled
def write_row(mask_T, token_u, start, values_U, excluded_U, base, formula, out_T):  # type: ignore[no-untyped-def]
    """Write base + K on the action tokens of one row and 0 elsewhere; returns where the next row's tokens start."""
    shift = 0.0
    if formula.centre:
        shift = row_mean(mask_T, token_u, start, values_U, excluded_U)
    for t in range(mask_T.size):
        if mask_T[t]:
            u = token_u[start]
            start += 1
            moved = 0.0 if excluded_U[u] else values_U[u] - shift
            out_T[t] = base + formula.weight * moved
        else:
            out_T[t] = 0.0
    return start


@compiled
def row_mean(mask_T, token_u, start, values_U, excluded_U):  # type: ignore[no-untyped-def]
    """Mean K over the tokens of one row that may have a value."""
    total = 0.0
    tokens = 0
    for t in range(mask_T.size):
        if mask_T[t]:
            u = token_u[start]
            start += 1
            if not excluded_U[u]:
                total += values_U[u]
                tokens += 1
    return total / max(tokens, 1)


@compiled
def write_base(mask_T, base, out_T):  # type: ignore[no-untyped-def]
    """Write the rollout's advantage on action tokens and 0 elsewhere."""
    for t in range(mask_T.size):
        out_T[t] = base if mask_T[t] else 0.0


@compiled
def fill_groups(  # type: ignore[no-untyped-def]
    ids_BT,
    mask_BT,
    rows_B,
    starts_Q,
    sizes_Q2,
    side_B,
    base_B,
    tables_Q3,
    tables,
    excluded,
    formula,
    first,
    last,
    out_BT,
):
    """Values of groups `first` to `last` (exclusive) into `out_BT`.

    `rows_B` lists the rows group after group from `starts_Q` on; `side_B` is 1 (correct), 0 (wrong) or -1 (unknown);
    `tables_Q3` are the places in `tables` of each group's strength, direction and null tables.
    """
    keys_U = np.empty(1 << (FIRST_BITS - 1), np.int64)
    records_UC = np.empty((keys_U.size, RECORD_WIDTH), np.int32)
    slots = np.empty(1 << FIRST_BITS, np.int32)
    token_u = np.empty(0, np.int32)
    values_U = np.empty(keys_U.size)
    excluded_U = np.zeros(keys_U.size, np.bool_)
    for q in range(first, last):
        rows_G = rows_B[starts_Q[q] : starts_Q[q + 1]]
        correct, wrong = sizes_Q2[q]
        if correct == 0 or wrong == 0:
            for row in rows_G:
                write_base(mask_BT[row], base_B[row], out_BT[row])
            continue
        if token_u.size < rows_G.size * ids_BT.shape[1]:
            token_u = np.empty(rows_G.size * ids_BT.shape[1], np.int32)
        ids, keys_U, records_UC, slots = count_group(
            ids_BT, mask_BT, rows_G, side_B, keys_U, records_UC, slots, token_u
        )
        if values_U.size < ids:
            values_U = np.empty(keys_U.size)
            excluded_U = np.zeros(keys_U.size, np.bool_)
        shape = (correct + 1, wrong + 1)
        strength_TF = tables[tables_Q3[q, 0] :][: shape[0] * shape[1]].reshape(shape)
        direction_TF = tables[tables_Q3[q, 1] :][: shape[0] * shape[1]].reshape(shape)
        null_n = tables[tables_Q3[q, 2] :][: correct + wrong + 1]
        id_values(ids, records_UC, (correct, wrong), strength_TF, direction_TF, null_n, formula, values_U)
        excluded_U[:ids] = False
        for key in excluded:
            u = slots[locate(key, keys_U, slots)]
            if u != EMPTY:
                excluded_U[u] = True
        start = 0
        for row in rows_G:
            if side_B[row] < 0:
                write_base(mask_BT[row], base_B[row], out_BT[row])
            else:
                start = write_row(
                    mask_BT[row], token_u, start, values_U, excluded_U, base_B[row], formula, out_BT[row]
                )
