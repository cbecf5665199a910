"""Why an id has its value: every ingredient of K for one group, and how much of K repeats the rollout's advantage.

Legend: `G` rollouts of the group, `T` positions, `U` distinct ids of the group; `B` rollouts of a batch.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from openrlhf_ktae.ktae.advantages import formula_of, refuse_odd_ids
from openrlhf_ktae.ktae.batch import Batch, plain_batch, plain_ids
from openrlhf_ktae.ktae.config import KTAEConfig
from openrlhf_ktae.ktae.statistics import split_tables

Counts = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class GroupExplanation:
    """One entry for each distinct id among the labelled rollouts of a group, largest K first."""

    token_id: Counts
    a: Counts
    """Correct rollouts that contain the id."""
    b: Counts
    """Wrong rollouts that contain it."""
    c: Counts
    """Correct rollouts that lack it."""
    d: Counts
    """Wrong rollouts that lack it."""
    uses_correct: Counts
    """Occurrences in all correct rollouts."""
    uses_wrong: Counts
    fisher: Floats
    """p of the chosen kind. In a one-sided group it is 1, and all columns below are 0."""
    association: Floats
    information_gain: Floats
    """Bits."""
    strength: Floats
    """Factor of the direction: h1 F + h2 IG; in `calibrated` the mix of the two curves."""
    presence: Floats
    """Presence part of the direction; its sign in `calibrated`."""
    tf_correct: Floats
    """BM25's frequency in correct rollouts, as used in the formula."""
    tf_wrong: Floats
    frequency: Floats
    """Frequency part of the direction: a term with h3, in `calibrated` a factor of at most 1."""
    value: Floats
    """K before `weight`, `by_failure` and centring; 0 for excluded ids."""


def explain_group(
    token_ids: Any,
    action_mask: Any,
    scores: Any,
    config: KTAEConfig | None = None,
    special_token_ids: Iterable[int] = (),
) -> GroupExplanation:
    """Every ingredient of K for one group: (G, T) ids and mask, (G,) scores; rollouts with NaN scores are left out.

    Raises ValueError if an argument is invalid; the message names it and what to give.
    """
    config = config or KTAEConfig()
    batch = plain_batch(token_ids, action_mask, scores, np.zeros(len(token_ids), np.int64), config.correct_threshold)
    excluded = plain_ids("special_token_ids", [*special_token_ids, *config.excluded_ids])
    id_U, records_UW, lengths = _counted(batch)
    correct, wrong = batch.sizes_Q2.sum(axis=0).tolist()
    (b, a), (uses_wrong, uses_correct) = records_UW[:, :2].T >> 32, records_UW[:, :2].T & 0xFFFFFFFF
    if correct and wrong:
        measures = _measured((a, b), (uses_correct, uses_wrong), (correct, wrong), lengths, config)
        measures[-1][np.isin(id_U, excluded)] = 0.0
    else:
        measures = [np.ones(id_U.size), *np.zeros((8, id_U.size))]
    order = np.lexsort((id_U, -measures[-1]))
    counts = (id_U, a, b, correct - a, wrong - b, uses_correct, uses_wrong)
    return GroupExplanation(*(column[order] for column in (*counts, *measures)))


def _counted(batch: Batch) -> tuple[Counts, Counts, tuple[int, int]]:
    """Return the distinct ids of the labelled rows, their records, and (correct, wrong) tokens."""
    from openrlhf_ktae.ktae import compiled  # imported on first use, so that importing the package stays cheap

    slots, records_UW = compiled.new_tables(compiled.USUAL_BITS)
    token_u = np.empty(batch.ids_N.size, np.uint32)
    arrays = batch.ids_N, batch.mask_N, batch.edges_B, batch.rows_B, batch.side_B
    ids, lengths, beyond, bits, slots, records_UW = compiled.count_group(*arrays, slots, records_UW, token_u)
    refuse_odd_ids([beyond])
    entries = slots[: 1 << bits]
    entries = entries[entries != 0]
    id_U = np.empty(ids, np.int64)
    id_U[(entries & compiled.LOW).astype(np.int64) - 1] = (entries >> compiled.HIGH).astype(np.int64)
    return id_U, records_UW[1 : ids + 1], lengths


def _measured(
    present: tuple[Counts, Counts],
    uses: tuple[Counts, Counts],
    sizes: tuple[int, int],
    lengths: tuple[int, int],
    config: KTAEConfig,
) -> list[Floats]:
    """The float columns of the explanation; every pair is (correct, wrong)."""
    from openrlhf_ktae.ktae import compiled

    tables, formula = split_tables(*sizes, config), formula_of(config)
    strength_TF = tables.strength_TF
    if config.variant == "calibrated":
        tokens_n = np.bincount(sum(present), weights=sum(uses), minlength=sum(sizes) + 1).astype(np.int64)
        opened, narrowed = compiled.noise_mix(tokens_n, tables.open_null_n, tables.narrow_null_n, formula.noise)
        strength_TF = opened * tables.strength_TF + narrowed * tables.narrow_TF
    shown = (tables.fisher_TF, tables.association_TF, tables.gain_TF, strength_TF, tables.presence_TF)
    fisher, association, gain, strength, presence = (table_TF[present] for table_TF in shown)
    tf_correct, tf_wrong, frequency, value = np.zeros((4, len(fisher)))
    for u, pair in enumerate(zip(*(side.tolist() for side in uses), strict=True)):
        tf_correct[u], tf_wrong[u] = compiled.term_frequencies(pair, sizes, lengths, formula)
        frequency[u] = compiled.frequency_part(presence[u], (tf_correct[u], tf_wrong[u]), formula)
        value[u] = compiled.id_value(strength[u], presence[u], frequency[u], formula)
    value += 0.0  # no -0.0
    return [fisher, association, gain, strength, presence, tf_correct, tf_wrong, frequency, value]


def rollout_share(values_BT: Any, action_mask: Any) -> float:
    """Return the share of K's sum of squares that rollout means of K explain; 0 if K is 0 everywhere.

    At 1, K is constant within each rollout and only repeats the rollout's advantage. At 0, as when centred, K only
    moves credit between tokens.
    """
    mask_BT = torch.as_tensor(action_mask).detach().cpu().bool()
    k_BT = torch.as_tensor(values_BT).detach().cpu().double() * mask_BT
    between = (k_BT.sum(dim=1).square() / mask_BT.sum(dim=1).clamp(min=1)).sum()
    return float(between / k_BT.square().sum().clamp(min=torch.finfo(torch.float64).tiny))
