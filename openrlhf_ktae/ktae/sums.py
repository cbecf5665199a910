"""Sums over the action tokens of a batch, in one pass, for the figures of K that a step logs.

Legend: `B` rollouts, `N` positions of all rollouts end to end, `V` ids.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from openrlhf_ktae.ktae.advantages import compute_ktae_advantages

VOCABULARY = 1 << 20
"""Ids up to this are counted in a table. The ids of a batch with larger ones are renumbered first, ten times slower."""


@dataclass(frozen=True)
class CreditSums:
    """K and rollout-level advantages A of a batch, summed."""

    k_mass: float
    """Sum of |K|."""
    a_mass: float
    """Sum of |A|."""
    flips: int
    """Tokens whose advantage changes sign when K is added."""
    sums_B: NDArray[np.float64]
    """Sum of K over each rollout."""
    tokens_B: NDArray[np.int64]
    """Action tokens of each rollout."""
    ids_V: NDArray[np.int64]
    sums_V: NDArray[np.float64]
    """Sum of K over the uses of each id."""
    uses_V: NDArray[np.int64]

    @property
    def tokens(self) -> int:
        """Action tokens."""
        return int(self.tokens_B.sum())

    def top(self, n: int, largest: bool = True) -> list[tuple[int, float, int]]:
        """Return the `n` ids of highest (or lowest) mean K: (id, mean K, occurrences); equal means in order of id."""
        used = np.flatnonzero(self.uses_V)
        means = self.sums_V[used] / self.uses_V[used]
        keys = -means if largest else means
        if 0 < n < len(used):  # sort only candidates for the first n
            first = np.flatnonzero(keys <= np.partition(keys, n - 1)[n - 1])
            used, means, keys = used[first], means[first], keys[first]
        order = np.lexsort((self.ids_V[used], keys))[:n]
        return [(int(self.ids_V[used[u]]), float(means[u]), int(self.uses_V[used[u]])) for u in order]


def credit_sums(
    ids_N: torch.Tensor, mask_N: torch.Tensor, values_N: torch.Tensor, base_N: torch.Tensor, row_edges: Any
) -> CreditSums:
    """Return the sums of K (`values_N`) and A (`base_N`), both floats, over the tokens of `mask_N`.

    `row_edges` (B + 1,) holds the start of each rollout and the end of the last.
    """
    from openrlhf_ktae.ktae import compiled

    ids, mask = ids_N.numpy(), mask_N.numpy()
    rest = mask.view(np.uint8), values_N.numpy(), base_N.numpy(), np.asarray(row_edges, np.int64)
    known = min(max(int(ids.max(initial=-1)), -1), VOCABULARY) + 1
    names: NDArray[np.int64] = np.arange(known)
    totals, sums_B, tokens_B, sums_V, uses_V, beyond = compiled.credit_sums(ids, *rest, known)
    if beyond:  # ten times slower: the ids in use are renumbered
        names, numbers = np.unique(ids[mask], return_inverse=True)
        numbered = np.zeros_like(ids)
        numbered[mask] = numbers
        totals, sums_B, tokens_B, sums_V, uses_V, _ = compiled.credit_sums(numbered, *rest, len(names))
    k_mass, a_mass, flips = totals
    return CreditSums(k_mass, a_mass, flips, sums_B, tokens_B, names, sums_V, uses_V)


def discounted_returns(rewards_BT: torch.Tensor, gamma: float, out_BT: torch.Tensor | None = None) -> torch.Tensor:
    """Return the discounted sum of rewards from each position to the last, (B, T) float32, in `out_BT` if given.

    Bit-identical to a float32 loop over positions from the last to the first.
    """
    from openrlhf_ktae.ktae import compiled

    out_BT = torch.empty(rewards_BT.shape) if out_BT is None else out_BT
    compiled.returns(rewards_BT.contiguous().numpy(), np.float32(gamma), out_BT.numpy())
    return out_BT


def repeated_grams(ids_N: torch.Tensor, mask_N: torch.Tensor, row_edges: Any, n: int) -> tuple[int, int]:
    """Return how many n-grams of action tokens occurred earlier in the same rollout, and how many there are."""
    from openrlhf_ktae.ktae import compiled

    edges_B = np.asarray(row_edges, np.int64)
    return compiled.repeated_grams(ids_N.numpy(), mask_N.numpy().view(np.uint8), edges_B, n)


def warm_up(ids: torch.dtype = torch.int64) -> None:
    """Load the compiled loops for ids of this type before the first call; compile them (seconds) with a cold cache."""
    ids_N, mask_N, floats_N = torch.zeros(2, dtype=ids), torch.ones(2, dtype=torch.bool), torch.zeros(2)
    compute_ktae_advantages(ids_N.view(2, 1), mask_N.view(2, 1), [0.0, 1.0], [0, 0], [0.0, 0.0])
    credit_sums(ids_N, mask_N, floats_N, floats_N, [0, 1, 2])
    discounted_returns(floats_N.view(2, 1), 1.0)
    repeated_grams(ids_N, mask_N, [0, 1, 2], 1)
