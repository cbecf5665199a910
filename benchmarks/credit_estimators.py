"""Cost of each token-credit estimator relative to a sort of the same tokens.

    python benchmarks/credit_estimators.py [--groups 256] [--repetitions 5]

Figures are processor seconds of the fastest repetition on one thread, without the policy's forward pass (for entropies
and the like). Sort and estimators alternate, so that other load on the machine affects all of them. Exits with 1 if an
estimator costs more than 3 sorts.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from zipf_batches import ROLLOUTS, zipf_batch

from openrlhf_ktae.credit import NEEDS, CreditBatch, estimators

SORTS = 3.0
"""Goal: an estimator costs at most this many sorts of the tokens."""
SHARED = 100
"""Tokens shared at the start of half of a group's rollouts; real rollouts share some tens."""
PROMPT = 100
"""Tokens of each prompt."""


def batch_of(groups: int) -> CreditBatch:
    """Return rollouts with Zipf-distributed ids, half of each group with a common beginning, and all of `NEEDS`."""
    made = zipf_batch(groups)
    ids_BT = made.ids_BT.copy()
    for first in range(0, len(ids_BT), ROLLOUTS):
        ids_BT[first : first + ROLLOUTS // 2, :SHARED] = ids_BT[first, :SHARED]
    rng = np.random.default_rng(0)
    needs: dict[str, Any] = {name: rng.random(ids_BT.shape, dtype=np.float32) for name in NEEDS}
    needs["log_probs"] = np.log(needs["log_probs"] + 1e-3)
    needs["values"][rng.random(ids_BT.shape) < 0.9] = np.nan
    prompts_BT = np.repeat(ids_BT[::ROLLOUTS, -PROMPT:], ROLLOUTS, axis=0)
    needs["in_prompt"] = np.stack([np.isin(ids, prompt) for ids, prompt in zip(ids_BT, prompts_BT, strict=True)])
    return CreditBatch.from_tables(ids_BT, made.mask_BT, made.scores_B, made.groups_B, made.base_B, **needs)


def fresh(batch: CreditBatch) -> CreditBatch:
    """Return the batch without properties cached by other estimators."""
    return CreditBatch(**{name: getattr(batch, name) for name in CreditBatch.__dataclass_fields__})


def main() -> int:
    """Measure and print a table; return 1 if the goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", type=int, default=256, help=f"of {ROLLOUTS} rollouts (default: 256)")
    parser.add_argument("--repetitions", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    batch = batch_of(options.groups)
    tokens_A = batch.token_ids_N[batch.mask_N]
    works: dict[str, Callable[[], Any]] = {"sort": lambda: torch.sort(tokens_A, stable=True)}
    works |= {name: lambda one=one: one(fresh(batch)) for name, one in estimators().items()}  # type: ignore[misc]
    best = dict.fromkeys(works, float("inf"))
    for _ in range(options.repetitions + 1):  # the first call compiles
        for name, work in works.items():
            started = time.process_time()
            work()
            best[name] = min(best[name], time.process_time() - started)
    print(f"{len(tokens_A):,} tokens, {options.groups} groups of {ROLLOUTS}\n")
    print("| estimator | ns a token | sorts |\n|---|---:|---:|")
    for name, seconds in best.items():
        print(f"| {name} | {1e9 * seconds / len(tokens_A):.1f} | {seconds / best['sort']:.2f} |")
    dear = [name for name, seconds in best.items() if seconds > SORTS * best["sort"]]
    if dear:
        print(f"more than {SORTS:g} sorts: {', '.join(dear)}", file=sys.stderr)
    return 1 if dear else 0


if __name__ == "__main__":
    sys.exit(main())
