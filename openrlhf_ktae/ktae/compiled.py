"""Compiled loops: from the rollouts of a batch to counts per group and id, to values, and back to the batch.

Legend: `B` rollouts, `N` positions of all rollouts end to end (rollout b from `edges_B[b]` to `edges_B[b + 1]`), `T`
positions of one, `G` rollouts of a group, `Q` groups, `U` distinct ids of a group (numbered from 1 in order of
appearance), `W` fields of an id's record. The first pass over the tokens of a group numbers its ids with a small
hash table and counts them. A second pass goes over the ids, a third writes the values back. The cost per token does
not depend on the vocabulary. Groups are independent: any way of splitting the batch between groups gives the same bits.

The first pass takes the same path for new and known ids, because a mispredicted branch costs more than all other work
on a token. Indices are unsigned, because signed ones are checked for negative values on every access. These loops are
in one file, because numba's disk cache detects changes of a function's own file but not of that file's imports.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

Row = NDArray[Any]
Records = NDArray[np.int64]
Slots = NDArray[np.uint64]

U64 = np.uint64
LOW, HIGH = U64(0xFFFFFFFF), U64(32)
"""A word packs two 32-bit numbers: (id, its number) in a hash slot, (rollouts, uses) in a record."""
GOLDEN = U64(0x9E3779B97F4A7C15)
"""2^64 over the golden ratio: multiplicative hashing spreads neighbouring ids."""
SMALLEST_BITS, USUAL_BITS = 8, 15
"""Hash slots, as powers of two: a small group starts small; 2^15 slots (256 KB) stay in the L2 cache and keep
collisions rare in a group of 16 x 1,000 tokens. The table grows before it could become more than half full."""
MEMO = 4
"""K is computed once for all ids of equal counts below this; most distinct ids of a text are that rare."""
HALF = 0.5
"""Jeffreys prior: half a count on each side keeps the ratio of frequencies finite and near 1 for rare ids."""

WRONG_WORD, CORRECT_WORD, LAST_ROW = U64(0), U64(1), U64(2)
RECORD_WIDTH = 3
EXCLUDED = -1
"""Stored in the field `LAST_ROW` of an id that gets no value."""


class Formula(NamedTuple):
    """The options of the loops as plain numbers."""

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
    by_failure: bool


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile with the disk cache, or without it if no cache folder is writable."""
    try:
        return njit(nogil=True, cache=True)(function)
    except RuntimeError:
        return njit(nogil=True)(function)


@compiled
def slot_of(key: Any, slots: Slots, bits: int) -> Any:
    """Return the slot that holds `key`, or the empty slot where it belongs."""
    slot = (key * GOLDEN) >> U64(64 - bits)
    entry = slots[slot]
    while (entry != U64(0)) & ((entry >> HIGH) != key):
        slot = (slot + U64(1)) & U64((1 << bits) - 1)
        entry = slots[slot]
    return slot


@compiled
def new_tables(bits: int) -> Any:
    """Return 2^bits hash slots (all empty), and records (all zero) for half as many ids."""
    return np.zeros(1 << bits, np.uint64), np.zeros(((1 << bits) // 2 + 1, RECORD_WIDTH), np.int64)


@compiled
def room(bits: int, ids: int, more: int, slots: Slots, records_UW: Records) -> Any:
    """Return tables that stay at most half full with `more` additional ids: the given ones, or larger copies."""
    wanted = bits
    while 2 * (ids + more) > 1 << wanted:
        wanted += 1
    if wanted == bits:
        return bits, slots, records_UW
    larger, records = new_tables(max(wanted, USUAL_BITS))
    records[: ids + 1] = records_UW[: ids + 1]
    for entry in slots[: 1 << bits]:
        if entry != U64(0):
            larger[slot_of(entry >> HIGH, larger, wanted)] = entry
    return wanted, larger, records


@compiled
def ones(mask_T: Row, start: int, end: int) -> int:
    """Count the masked-in positions from `start` to `end`; compiles to a vector sum."""
    total = 0
    for t in range(U64(start), U64(end)):
        total += mask_T[t]
    return total


@compiled
def next_run(mask_T: Row, start: int, left: int) -> Any:
    """Return the next run of masked-in positions from `start`; the row has `left` (at least one) of them left."""
    while not mask_T[start]:
        start += 1
    end = start + left
    if end <= mask_T.size and ones(mask_T, start, end) == left:
        return start, end  # the usual row: one run
    end = start
    while end < mask_T.size and mask_T[end]:
        end += 1
    return start, end


@compiled
def count_row(
    ids_T: Row, mask_T: Row, side: int, mark: int, slots: Slots, bits: int, records_UW: Records, token_u: Row,
    tokens: int, ids: int,
) -> Any:  # fmt: skip
    """Count one rollout; return the group's tokens and distinct ids so far, and the bits of its ids above the 32nd."""
    word, number, place, overflow = U64(side), U64(ids), U64(tokens), U64(0)
    left = ones(mask_T, 0, mask_T.size)
    end = 0
    while left > 0:
        start, end = next_run(mask_T, end, left)
        left -= end - start
        for t in range(U64(start), U64(end)):
            key = U64(ids_T[t])
            overflow |= key
            key &= LOW
            slot = slot_of(key, slots, bits)
            known = slots[slot] & LOW
            is_new = U64(known == U64(0))
            number += is_new
            u = known + is_new * number
            slots[slot] = (key << HIGH) | u
            first_in_row = np.int64(records_UW[u, LAST_ROW] != mark)
            records_UW[u, word] += 1 + (first_in_row << 32)
            records_UW[u, LAST_ROW] = mark
            token_u[place] = u
            place += U64(1)
    return np.int64(place), np.int64(number), overflow >> HIGH


@compiled
def positions_of(rows_G: Row, edges_B: Row) -> int:
    """Return the total positions of some rollouts, masked out or not."""
    total = 0
    for row in rows_G:
        total += edges_B[row + 1] - edges_B[row]
    return total


@compiled
def count_group(
    ids_N: Row, mask_N: Row, edges_B: Row, rows_G: Row, side_B: Row, slots: Slots, records_UW: Records, token_u: Row
) -> Any:
    """Count the labelled rows of one group into `records_UW`, which must hold zeros.

    Returns distinct ids, (correct, wrong) tokens, the bits of ids above the 32nd, log2 of the hash slots in use, and
    the hash table and records, which may have grown.
    """
    ids, tokens, on_correct, overflow = 0, 0, 0, U64(0)
    bits = SMALLEST_BITS
    positions = positions_of(rows_G, edges_B)
    while bits < USUAL_BITS and 1 << bits < 2 * positions:
        bits += 1
    slots[: 1 << bits] = 0
    for position in range(rows_G.size):
        row = rows_G[position]
        if side_B[row] < 0:
            continue
        ids_T, mask_T = ids_N[edges_B[row] : edges_B[row + 1]], mask_N[edges_B[row] : edges_B[row + 1]]
        bits, slots, records_UW = room(bits, ids, ids_T.size, slots, records_UW)
        before = tokens
        tokens, ids, beyond = count_row(
            ids_T, mask_T, side_B[row], position + 1, slots, bits, records_UW, token_u, tokens, ids
        )
        overflow |= beyond
        on_correct += (tokens - before) * side_B[row]
    return ids, (on_correct, tokens - on_correct), overflow, bits, slots, records_UW


@compiled
def bm25(frequency: float, relative_length: float, k1: float, b: float) -> float:
    """Saturated frequency of one side; 0 if the id is absent."""
    if frequency == 0.0:
        return 0.0
    return (k1 + 1.0) * frequency / (k1 * (1.0 - b + b * relative_length) + frequency)


@compiled
def term_frequencies(uses: Any, sizes: Any, lengths: Any, formula: Formula) -> Any:
    """BM25's frequencies of an id. Every pair is (correct, wrong); `sizes` counts rollouts, `lengths` tokens."""
    correct, wrong = float(uses[0]), float(uses[1])
    length_correct, length_wrong = float(lengths[0]), float(lengths[1])
    if formula.calibrated:
        correct, wrong = (correct + HALF) / (sizes[0] + 1.0), (wrong + HALF) / (sizes[1] + 1.0)
        length_correct, length_wrong = length_correct / sizes[0], length_wrong / sizes[1]
    elif formula.relative:
        correct, wrong = correct / max(length_correct, 1.0), wrong / max(length_wrong, 1.0)
    mean_length = (length_correct + length_wrong) / 2.0  # above 0, since the id occurs
    correct = bm25(correct, length_correct / mean_length, formula.k1, formula.b)
    return correct, bm25(wrong, length_wrong / mean_length, formula.k1, formula.b)


@compiled
def frequency_part(presence: float, frequencies: Any, formula: Formula) -> float:
    """Frequency part of the direction, from `term_frequencies`.

    In `paper` and `reference` it is a term: h3 times the difference of the ratio of frequencies and its inverse. In
    `calibrated` it is a factor: 1, or less if uses per rollout contradict the sign of `presence`.
    """
    correct, wrong = frequencies
    if formula.calibrated:
        return min(1.0, correct / wrong if presence > 0 else wrong / correct) ** formula.h3
    return formula.h3 * (correct / (wrong + formula.epsilon) - wrong / (correct + formula.epsilon))


@compiled
def id_value(strength: float, presence: float, frequency: float, formula: Formula) -> float:
    """K of one id before `weight`."""
    if formula.calibrated:
        return formula.value_range * strength * presence * frequency
    return formula.value_range * np.tanh(strength * (presence + frequency) / formula.two_scale)


@compiled
def id_values(
    ids: int, records_UW: Records, sizes: Any, lengths: Any, strength: Row, presence: Row, formula: Formula,
    values_U: Row,
) -> None:  # fmt: skip
    """K of every id of one group. `strength` and `presence` are indexed by a * (F + 1) + b."""
    memo = np.full(MEMO**4, np.nan)
    for u in range(U64(1), U64(ids + 1)):
        uses = (records_UW[u, CORRECT_WORD] & 0xFFFFFFFF, records_UW[u, WRONG_WORD] & 0xFFFFFFFF)
        a, b = records_UW[u, CORRECT_WORD] >> 32, records_UW[u, WRONG_WORD] >> 32
        rare = (uses[0] < MEMO) & (uses[1] < MEMO)
        like = U64(((uses[0] * MEMO + uses[1]) * MEMO + a) * MEMO + b)
        if rare and memo[like] == memo[like]:
            values_U[u] = memo[like]
            continue
        table = U64(a * (sizes[1] + 1) + b)
        value = 0.0
        if strength[table] != 0.0:
            frequency = frequency_part(presence[table], term_frequencies(uses, sizes, lengths, formula), formula)
            value = id_value(strength[table], presence[table], frequency, formula)
        values_U[u] = value
        if rare:
            memo[like] = value


@compiled
def split_parts(block: Row, correct: int, wrong: int, calibrated: bool) -> Any:
    """The parts of `SplitTables.packed`: strength, presence, narrow curve, and both expectations under the null."""
    size, margins = (correct + 1) * (wrong + 1), correct + wrong + 1
    ends = (2 * size, 3 * size, 3 * size + margins, 3 * size + 2 * margins)
    if not calibrated:
        ends = (2 * size, 2 * size, 2 * size, 2 * size)
    return (
        block[:size],
        block[size : ends[0]],
        block[ends[0] : ends[1]],
        block[ends[1] : ends[2]],
        block[ends[2] : ends[3]],
    )


@compiled
def tokens_by_presence(ids: int, records_UW: Records, rollouts: int) -> Any:
    """Occurrences of ids in n rollouts, for each n; sums of integers, so the order of rows does not matter."""
    tokens_n = np.zeros(rollouts + 1, np.int64)
    for u in range(U64(1), U64(ids + 1)):
        both = records_UW[u, CORRECT_WORD] + records_UW[u, WRONG_WORD]
        tokens_n[both >> 32] += both & 0xFFFFFFFF
    return tokens_n


@compiled
def noise_mix(tokens_n: Row, open_null_n: Row, narrow_null_n: Row, noise: float) -> Any:
    """Factors of the (open, narrow) curve that keep the expected size of K under random labels at `noise`."""
    tokens, from_open, from_narrow = 0, 0.0, 0.0
    for n in range(tokens_n.size):
        tokens += tokens_n[n]
        from_open += tokens_n[n] * open_null_n[n]
        from_narrow += tokens_n[n] * narrow_null_n[n]
    allowed = noise * tokens
    if from_open <= allowed:
        return 1.0, 0.0
    if from_narrow >= allowed:
        return 0.0, allowed / from_narrow
    opened = (allowed - from_narrow) / (from_open - from_narrow)
    return opened, 1.0 - opened


@compiled
def exclude(excluded: Row, slots: Slots, bits: int, records_UW: Records, values_U: Row) -> None:
    """Set to 0 the values of the excluded ids that the group contains, and mark their records `EXCLUDED`."""
    for key in excluded:
        u = slots[slot_of(U64(key), slots, bits)] & LOW
        if u != U64(0):
            records_UW[u, LAST_ROW] = EXCLUDED
            values_U[u] = 0.0


@compiled
def row_mean(tokens: int, token_u: Row, place: int, records_UW: Records, values_U: Row) -> float:
    """Return the mean value over the tokens of one row, without tokens whose id is excluded."""
    total = 0.0
    valued = 0
    for token in range(U64(place), U64(place + tokens)):
        u = token_u[token]
        if records_UW[u, LAST_ROW] != EXCLUDED:
            total += values_U[u]
            valued += 1
    return total / max(valued, 1)


@compiled
def write_row(
    mask_T: Row, base: float, centre: bool, token_u: Row, place: int, records_UW: Records, values_U: Row, out_T: Row
) -> int:
    """Write base + value on action tokens of one row and 0 elsewhere; return the next row's start in `token_u`."""
    left = ones(mask_T, 0, mask_T.size)
    shift = row_mean(left, token_u, place, records_UW, values_U) if centre else 0.0
    out_T[:] = 0.0
    end = 0
    token = U64(place)
    while left > 0:
        start, end = next_run(mask_T, end, left)
        left -= end - start
        for t in range(U64(start), U64(end)):
            u = token_u[token]
            token += U64(1)
            out_T[t] = base + values_U[u]
            if centre and records_UW[u, LAST_ROW] != EXCLUDED:
                out_T[t] = base + (values_U[u] - shift)
    return int(token)


@compiled
def write_base(mask_T: Row, base: float, out_T: Row) -> None:
    """Write the rollout's advantage on action tokens and 0 elsewhere."""
    for t in range(mask_T.size):
        out_T[t] = base if mask_T[t] else 0.0


@compiled
def fill_groups(
    ids_N: Row, mask_N: Row, edges_B: Row, rows_B: Row, starts_Q: Row, sizes_Q2: Row, side_B: Row, base_B: Row,
    places_Q: Row, tables: Row, excluded: Row, formula: Formula, first: int, last: int, out_N: Row,
) -> Any:  # fmt: skip
    """Write base + weight * K of groups `first` to `last` (exclusive) to `out_N`; return bits of ids above the 32nd.

    `rows_B` lists the rows group after group from `starts_Q` on; `side_B` is 1 (correct), 0 (wrong) or
    -1 (unknown); `places_Q` holds the start in `tables` of the packed tables of each group's split.
    """
    slots, records_UW = new_tables(USUAL_BITS)
    token_u = np.empty(0, np.uint32)
    values_U = np.empty(records_UW.shape[0])
    overflow = U64(0)
    for q in range(first, last):
        rows_G = rows_B[starts_Q[q] : starts_Q[q + 1]]
        sizes = (sizes_Q2[q, 0], sizes_Q2[q, 1])
        if sizes[0] == 0 or sizes[1] == 0:
            for row in rows_G:
                start, end = edges_B[row], edges_B[row + 1]
                write_base(mask_N[start:end], base_B[row], out_N[start:end])
            continue
        if token_u.size < positions_of(rows_G, edges_B):
            token_u = np.empty(positions_of(rows_G, edges_B), np.uint32)
        ids, lengths, beyond, bits, slots, records_UW = count_group(
            ids_N, mask_N, edges_B, rows_G, side_B, slots, records_UW, token_u
        )
        overflow |= beyond
        if values_U.size <= ids:
            values_U = np.empty(records_UW.shape[0])
        block = tables[places_Q[q] :]
        strength, presence, narrow, open_null_n, narrow_null_n = split_parts(block, *sizes, formula.calibrated)
        if formula.calibrated:
            tokens_n = tokens_by_presence(ids, records_UW, sizes[0] + sizes[1])
            mix = noise_mix(tokens_n, open_null_n, narrow_null_n, formula.noise)
            strength = mix[0] * strength + mix[1] * narrow
        id_values(ids, records_UW, sizes, lengths, strength, presence, formula, values_U)
        values_U[: ids + 1] *= formula.weight
        if formula.by_failure:
            values_U[: ids + 1] *= 2.0 * sizes[1] / (sizes[0] + sizes[1])
        exclude(excluded, slots, bits, records_UW, values_U)
        place = 0
        for row in rows_G:
            mask_T, out_T = mask_N[edges_B[row] : edges_B[row + 1]], out_N[edges_B[row] : edges_B[row + 1]]
            if side_B[row] < 0:
                write_base(mask_T, base_B[row], out_T)
            else:
                place = write_row(mask_T, base_B[row], formula.centre, token_u, place, records_UW, values_U, out_T)
        records_UW[: ids + 1] = 0
    return overflow


@compiled
def credit_sums(ids_N: Row, mask_N: Row, values_N: Row, base_N: Row, edges_B: Row, known: int) -> Any:
    """Compute a step's logged figures of K in one pass over action tokens.

    Returns (sum |K|, sum |A|, sign flips), the sum of K and the tokens of each rollout, the sum of K and the uses of
    each id below `known`, and the bits of larger ids, which are not counted by id.
    """
    rows = edges_B.size - 1
    sums_B, tokens_B = np.zeros(rows), np.zeros(rows, np.int64)
    sums_V, uses_V = np.zeros(known), np.zeros(known, np.int64)
    k_mass, a_mass, flips, beyond = 0.0, 0.0, 0, U64(0)
    for row in range(rows):
        row_sum = 0.0
        for t in range(U64(edges_B[row]), U64(edges_B[row + 1])):
            if not mask_N[t]:
                continue
            k, a, v = values_N[t], base_N[t], U64(ids_N[t])
            row_sum += k
            tokens_B[row] += 1
            k_mass += abs(k)
            a_mass += abs(a)
            flips += a * (a + k) < 0
            if v < U64(known):
                sums_V[v] += k
                uses_V[v] += 1
            else:
                beyond |= v
        sums_B[row] = row_sum
    return (k_mass, a_mass, flips), sums_B, tokens_B, sums_V, uses_V, beyond


@compiled
def returns(rewards_BT: Row, gamma: Any, out_BT: Row) -> None:
    """Discounted sums of the rewards from each position to the last, in the type and order of the host's loop."""
    for row in range(rewards_BT.shape[0]):
        total = np.float32(0.0)
        for t in range(rewards_BT.shape[1] - 1, -1, -1):
            total = rewards_BT[row, t] + gamma * total
            out_BT[row, t] = total


@compiled
def repeated_grams(ids_N: Row, mask_N: Row, edges_B: Row, n: int) -> Any:
    """Return (n-grams of action tokens that occurred earlier in the same rollout, all n-grams)."""
    slots, tokens = np.zeros(1 << SMALLEST_BITS, np.uint32), np.empty(0, ids_N.dtype)
    repeated, total = 0, 0
    oldest = U64(1)  # factor of the first of n tokens in the polynomial hash
    for _ in range(n - 1):
        oldest *= GOLDEN
    for row in range(edges_B.size - 1):
        if tokens.size < edges_B[row + 1] - edges_B[row]:
            tokens = np.empty(edges_B[row + 1] - edges_B[row], ids_N.dtype)
        count = 0
        for t in range(U64(edges_B[row]), U64(edges_B[row + 1])):
            if mask_N[t]:
                tokens[count] = ids_N[t]
                count += 1
        bits = SMALLEST_BITS
        while 1 << bits < 2 * count:
            bits += 1
        if slots.size < 1 << bits:
            slots = np.zeros(1 << bits, np.uint32)
        slots[: 1 << bits] = 0
        key = U64(0)
        for i in range(min(n - 1, count)):
            key = key * GOLDEN + U64(tokens[i])
        for place in range(count - n + 1):
            key = key * GOLDEN + U64(tokens[place + n - 1])
            slot = ((key ^ (key >> HIGH)) * GOLDEN) >> U64(64 - bits)
            key -= U64(tokens[place]) * oldest
            same = False
            while (slots[slot] != 0) & (not same):
                before = np.int64(slots[slot]) - 1
                same = True
                for i in range(n):
                    same &= tokens[before + i] == tokens[place + i]
                if not same:
                    slot = (slot + U64(1)) & U64((1 << bits) - 1)
            if same:
                repeated += 1
            else:
                slots[slot] = place + 1
        total += max(count - n + 1, 0)
    return repeated, total
