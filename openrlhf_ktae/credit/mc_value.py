"""Values of prefixes from sampled continuations, as in VinePPO (arXiv 2410.01679). Expensive; useful as a control.

    A_it = V(s_after) - V(s_before),  V(s) = mean score of responses sampled from s

`values_N` is V after each token at which continuations were sampled, NaN elsewhere. As in the paper, the tokens between
two such places form a step, and each gets the step's difference. V before the first token is the group's mean score; V
after the last token is the rollout's own score. The differences are on the scale of raw scores, as the base
`--algo.credit.base dr_grpo` is. With another base they are scaled as the base is, for example by the group's standard
deviation with `group_norm`.

Assumptions: the trained policy samples the continuations. The paper samples 9 at each step of a solution in text. A run
samples them (`trainer/ppo_utils/continuations.py`), or the user's file returns the values.

Cost: K responses per place; without `groups all` only in groups with both verdicts.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

import numpy as np

from openrlhf_ktae.credit.batch import CreditBatch, TokenCredit
from openrlhf_ktae.credit.registry import register


@dataclass(frozen=True)
class McValueOptions:
    """`--algo.mc_value.*`: where values of prefixes come from, for every estimator that needs them."""

    samples: int = 4
    """Continuations per place; the value is their mean score."""

    every: int = 32
    """Set a place after every N tokens of a response; 0 sets none."""

    delimiter: str = ""
    """Set a place after each token that completes this text, such as a newline; empty sets none."""

    groups: Literal["mixed", "all"] = "mixed"
    """mixed skips groups with only correct or only wrong rollouts, where most prefixes have the same value."""

    file: str | None = None
    """Python file whose function values(prompt, prefixes, label) returns one value for each of prefixes (texts).
    Nothing is sampled then, and groups has no effect."""

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ValueError(f"samples={self.samples!r} must be at least 1")
        if self.every < 0:
            raise ValueError(f"every={self.every!r} must be at least 0")
        if not self.every and not self.delimiter:
            raise ValueError("every=0 leaves no places; give --algo.mc_value.delimiter, or a number of tokens")

    def places(self, texts: Sequence[str]) -> list[int]:
        """Return the numbers of tokens after which a response needs a value, ascending; `texts` has its tokens' texts.

        The result never has 0 or all tokens, where the values are the group's mean and the rollout's score.
        """
        found = set(range(self.every, len(texts), self.every)) if self.every else set()
        if self.delimiter:
            ends, text = list(accumulate(map(len, texts))), "".join(texts)
            at = text.find(self.delimiter)
            while at >= 0:
                end = at + len(self.delimiter)
                found.add(bisect_left(ends, end) + 1)
                at = text.find(self.delimiter, end)
        return sorted(found - {len(texts)})


@register("mc_value", options=McValueOptions, needs=("values",), by_verdict=True)
def mc_value(batch: CreditBatch, options: McValueOptions) -> TokenCredit:
    """Return each step's difference at the scale of the base, minus the base."""
    values_A = batch.needed("values").numpy()[batch.at_A].astype(np.float64)
    scores_B = np.where(batch.known_B, np.nan_to_num(batch.scores_B.numpy().astype(np.float64)), 0.0)
    last_B = (batch.first_B + batch.lengths_B - 1)[batch.lengths_B > 0]
    values_A[last_B] = scores_B[batch.lengths_B > 0]
    ends = np.flatnonzero(~np.isnan(values_A))  # of steps; a rollout's last token ends its last step
    step_A = np.searchsorted(ends, np.arange(len(values_A)))
    count_Q = np.maximum(np.bincount(batch.group_B, batch.known_B), 1.0)
    mean_B = (np.bincount(batch.group_B, scores_B) / count_Q)[batch.group_B]
    before = np.append(0.0, values_A[ends])[: len(ends)]
    first = np.diff(batch.row_A[ends], prepend=-1) > 0  # steps that begin a rollout
    before[first] = mean_B[batch.row_A[ends][first]]
    change_A = (values_A[ends] - before)[step_A]
    base_A = batch.base_N.numpy()[batch.at_A].astype(np.float64)
    credit_A = change_A * _scale(batch, scores_B, mean_B)[batch.row_A]
    return TokenCredit(batch.spread(credit_A - base_A), {"change": batch.spread(change_A)})


def _scale(batch: CreditBatch, scores_B: np.ndarray, mean_B: np.ndarray) -> np.ndarray:
    """Return the size of the group's advantages relative to its centred scores (B,); 1 where either is 0."""
    sizes = [
        np.bincount(batch.group_B, np.abs(values_B) * batch.known_B)
        for values_B in (batch.advantage_B, scores_B - mean_B)
    ]
    known = (sizes[0] > 0) & (sizes[1] > 0)
    return np.where(known, sizes[0] / np.where(known, sizes[1], 1.0), 1.0)[batch.group_B]
