"""What every call of an actor takes and never changes, sent to each process once.

The host gives the tokenizer to every `generate_responses`. One of 150,000 entries takes 50 ms to write and 0.6 s to
read, on the engine's event loop: a minute of the controller and 20 s of each of 32 engines for 1,024 prompts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ray

_received: dict[Any, Any] = {}


class SentOnce:
    """Stands for a value in the arguments of calls; who receives it has the value itself, the same in every call."""

    def __init__(self, value: Any) -> None:
        self._reference = ray.put(value)

    def __reduce__(self) -> tuple[Callable[[Any], Any], tuple[Any]]:
        return received, (self._reference,)


def received(reference: Any) -> Any:
    """Return the value, read when this process first meets it."""
    if reference not in _received:
        _received[reference] = ray.get(reference)
    return _received[reference]
