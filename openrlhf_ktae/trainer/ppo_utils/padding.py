"""The host pads every tensor of every rollout by a call of its own, of a single number too; here one call a field.

The host's function is a global of its module `experience`; `faster_padding` puts this one in its place for a while.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from openrlhf.trainer.ppo_utils import experience as host

_hosts = host.zero_pad_sequences


def zero_pad_sequences(
    sequences: list[torch.Tensor], side: str = "left", value: int = 0, stack: bool = False
) -> torch.Tensor:
    """Return what the host's function of this name does, for the same arguments."""
    widths = [sequence.size(-1) if sequence.dim() else -1 for sequence in sequences]
    if min(widths) == max(widths) >= 0:
        return torch.stack(sequences) if stack else torch.cat(sequences)
    first = sequences[0]
    one_row = not stack and all(s.dim() == 2 and s.size(0) == 1 and s.dtype == first.dtype for s in sequences)
    if side != "right" or not one_row:
        return _hosts(sequences, side, value, stack)
    rows = [sequence.view(-1) for sequence in sequences]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)


@contextmanager
def faster_padding() -> Iterator[None]:
    """Let the host's experiences be put together so."""
    host.zero_pad_sequences = zero_pad_sequences
    try:
        yield
    finally:
        host.zero_pad_sequences = _hosts
