"""A small batch with the special cases of a run, to warm up estimators and to check users' estimators."""

from collections.abc import Iterable
from dataclasses import fields
from typing import Any

import numpy as np
import torch

from openrlhf_ktae.credit.batch import NEEDS, CreditBatch
from openrlhf_ktae.credit.registry import Estimator


def sample_batch(wanted: Iterable[str] = NEEDS) -> CreditBatch:
    """Return three groups of three: mixed with a tool's answer, all right, and all wrong with an unknown verdict.

    Rows have a prompt, every other row has padding, one rollout has no action token, and every other token has no
    value. Of `NEEDS`, the batch has the `wanted` inputs.
    """
    ids_BT = torch.arange(72).view(9, 8) % 5
    ids_BT[:, 2] = 1  # all responses begin with the same token
    mask_BT = torch.ones(9, 8, dtype=torch.bool)
    mask_BT[:, :2], mask_BT[::2, 6:], mask_BT[0, 4], mask_BT[7] = False, False, False, False
    generator = torch.Generator().manual_seed(0)
    needs: dict[str, Any] = {name: torch.rand(9, 8, generator=generator) for name in NEEDS}
    needs["log_probs"] = -needs["log_probs"]
    needs["values"][:, ::2] = torch.nan
    needs = {name: needs[name] for name in wanted}
    scores_B = torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0, 0.0, torch.nan])
    base_B = torch.tensor([1.0, -0.5, -0.5, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    groups_B = torch.arange(9) // 3
    return CreditBatch.from_tables(ids_BT, mask_BT, scores_B, groups_B, base_B, special_ids=(0,), **needs)


def wrong_with(estimator: Estimator, options: Any = None) -> str:
    """Return the fault in an estimator's credit on `sample_batch`; empty if there is none.

    Args:
        estimator: the estimator to try.
        options: its options; None means the defaults.

    Raises:
        Exception: any error that the estimator raises.
    """
    batch, untouched = sample_batch(estimator.needs), sample_batch(estimator.needs)
    try:
        found = estimator(batch, options)
    except Exception:
        estimator(sample_batch(), options)  # raises the same error, unless an input was missing
        return "it reads inputs that it does not declare; name them in register(NAME, needs=(...))"
    unknown_N = torch.arange(72) >= 64
    given = [(field.name, getattr(batch, field.name), getattr(untouched, field.name)) for field in fields(batch)]
    for name, after, before in given:
        if before is not None and not np.array_equal(after, before, equal_nan=True):
            return f"it modifies {name}, which others read after it; work on a copy"
    if not found.added_N.isfinite().all():
        return "it gives a token NaN or an infinite number; return finite numbers, 0 where nothing is known"
    for name, values_N in found.figures.items():
        if not values_N[batch.mask_N].isfinite().all():
            return f"its figure {name} is NaN or infinite at an action token; means over these are logged"
    if found.added_N[~batch.mask_N].any():
        return "it gives credit outside of mask_N; batch.on_tokens(values_N) sets that to 0"
    if found.added_N[unknown_N].any():
        return "it gives credit to a rollout whose score is NaN; batch.on_tokens(values_N) sets that to 0"
    return ""
