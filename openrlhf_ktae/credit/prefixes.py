"""The prefix tree of each group, built by sorting rollouts token by token. The loop is compiled.

Legend as in `credit/batch.py`. A tool's answer between action tokens is part of a prefix. The prompt, which is equal in
a group, and tokens after the last action token are not.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from openrlhf_ktae.credit.batch import CreditBatch
from openrlhf_ktae.ktae.compiled import compiled

ENDED = -1
"""Stands for a token after the end of a rollout; it is a separate branch."""


def prefix_tree(batch: CreditBatch) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Return for each token the change of the mean advantage, and how many rollouts share the prefix that ends with it.

    Both are (N,), over rollouts with a verdict that share the prefix. The mean before the first token is the group's.
    Outside the mask and for unknown verdicts the change is 0 and the number 1.
    """
    order_B = np.argsort(batch.group_B, kind="stable").astype(np.int64)
    _, starts_Q = np.unique(batch.group_B[order_B], return_index=True)
    change_N = np.zeros(len(batch.mask_N), np.float32)
    count_N = np.ones(len(batch.mask_N), np.int32)
    acted = batch.lengths_B > 0
    first_B, end_B = np.zeros((2, len(acted)), np.int64)
    first_B[acted] = batch.at_A[batch.first_B[acted]]
    end_B[acted] = batch.at_A[(batch.first_B + batch.lengths_B)[acted] - 1] + 1
    mask_N = batch.mask_N.numpy().view(np.uint8)
    places = order_B, np.append(starts_Q, len(order_B)).astype(np.int64), first_B, end_B
    _walk(batch.token_ids_N.numpy(), mask_N, *places, batch.known_B, batch.advantage_B, change_N, count_N)
    return change_N, count_N


@compiled
def _walk(
    ids_N: Any,
    mask_N: Any,
    order_B: Any,
    starts_Q: Any,
    first_B: Any,
    end_B: Any,
    known_B: Any,
    value_B: Any,
    change_N: Any,
    count_N: Any,
) -> None:
    """Walk down the tree of each group; a node is a range of `order` whose rows share their first `depth` tokens."""
    for q in range(len(starts_Q) - 1):
        order = order_B[starts_Q[q] : starts_Q[q + 1]]
        size = len(order)
        low, high, depth = np.zeros(size + 1, np.int64), np.zeros(size + 1, np.int64), np.zeros(size + 1, np.int64)
        mean = np.zeros(size + 1)
        known, total = 0, 0.0
        for row in order:
            if known_B[row]:
                known, total = known + 1, total + value_B[row]
        high[0], mean[0] = size, total / max(known, 1)
        waiting = 1
        while waiting:
            waiting -= 1
            start, stop, at, above = low[waiting], high[waiting], depth[waiting], mean[waiting]
            keys = np.empty(stop - start, np.int64)
            for i in range(stop - start):
                row = order[start + i]
                keys[i] = ids_N[first_B[row] + at] if first_B[row] + at < end_B[row] else ENDED
            if (keys != keys[0]).any():
                sorting = np.argsort(keys, kind="mergesort")
                order[start:stop] = order[start:stop][sorting]
                keys = keys[sorting]
            run = start
            while run < stop:
                next_run = run + 1
                while next_run < stop and keys[next_run - start] == keys[run - start]:
                    next_run += 1
                if keys[run - start] != ENDED:
                    known, total = 0, 0.0
                    for i in range(run, next_run):
                        if known_B[order[i]]:
                            known, total = known + 1, total + value_B[order[i]]
                    here = total / known if known else above
                    for i in range(run, next_run):
                        row = order[i]
                        place = first_B[row] + at
                        if known_B[row] and mask_N[place]:
                            change_N[place], count_N[place] = here - above, known
                    if next_run - run > 1:
                        low[waiting], high[waiting], depth[waiting], mean[waiting] = run, next_run, at + 1, here
                        waiting += 1
                run = next_run
