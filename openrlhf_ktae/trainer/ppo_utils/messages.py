"""Cheaper messages between controller and engines.

The host sends the tokenizer with every `generate_responses`. With 150,000 entries it takes 50 ms to pickle, and 0.6 s
to unpickle on the engine's event loop. For 1,024 prompts this is a minute on the controller and 20 s on each of 32
engines. Answers are lists of Python integers, which take longer to unpickle and convert than the rest of a rollout.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray

TOKENS, LOG_PROBS = "observation_tokens", "rollout_log_probs"
KINDS = {TOKENS: np.int32, LOG_PROBS: np.float32}
"""Lists of numbers in an answer -> the dtype in which they are sent."""
_received: dict[Any, Any] = {}


class SentOnce:
    """Wrapper for a call's argument; each receiving process fetches the value once, then reuses the object."""

    def __init__(self, value: Any) -> None:
        self._reference = ray.put(value)

    def __reduce__(self) -> tuple[Callable[[Any], Any], tuple[Any]]:
        return received, (self._reference,)


def received(reference: Any) -> Any:
    """Return the value; fetch it the first time this process asks."""
    if reference not in _received:
        _received[reference] = ray.get(reference)
    return _received[reference]


class OneArgument:
    """An engine handle that sends a prompt's seven arguments as one: Ray serializes each argument and its name."""

    def __init__(self, engine: Any) -> None:
        self.get_num_unfinished_requests = engine.get_num_unfinished_requests
        self.generate_responses = SimpleNamespace(remote=lambda **call: engine.responses_to.remote(call))


def cheap(engine: Any) -> Any:
    """Return a handle for `generate_responses`: a call takes the controller 160 us instead of 295."""
    return OneArgument(engine) if hasattr(engine, "responses_to") else engine


class Answers(list[dict[str, Any]]):
    """An engine's answers to one prompt, pickled with one array for all tokens and one for all log-probabilities."""

    def __reduce__(self) -> tuple[Callable[..., list[Answer]], tuple[Any, ...]]:
        given = {name: [answer.get(name) for answer in self] for name in KINDS}
        whole: dict[str, list[Any]] = {
            name: parts for name, parts in given.items() if self and all(part is not None for part in parts)
        }
        arrays = {name: np.concatenate([np.asarray(p, KINDS[name]) for p in whole[name]]) for name in whole}
        lengths = {name: [len(part) for part in parts] for name, parts in whole.items()}
        return arrived, ([{k: v for k, v in answer.items() if k not in whole} for answer in self], arrays, lengths)


class Answer(dict[str, Any]):
    """A received answer: number `place` of the answers `among` to its prompt, with views into their arrays."""

    among: Arrived
    place: int

    def __missing__(self, name: str) -> Any:
        array, lengths = self.among.arrays[name], self.among.lengths[name]
        start = sum(lengths[: self.place])
        return array[start : start + lengths[self.place]]


class Arrived:
    """The received answers to one prompt, their arrays by name, and the length of each answer's part."""

    def __init__(
        self, answers: list[dict[str, Any]], arrays: dict[str, NDArray[Any]], lengths: dict[str, list[int]]
    ) -> None:
        self.answers, self.arrays, self.lengths = list(map(Answer, answers)), arrays, lengths
        for place, answer in enumerate(self.answers):
            answer.among, answer.place = self, place
        for array in arrays.values():
            array.flags.writeable = False  # like the arrays that Ray maps
        self.made: Sequence[Any] | None = None
        """The rollouts that the controller made from them."""


def arrived(*parts: Any) -> list[Answer]:
    """Rebuild the answers from a pickled `Answers`."""
    return Arrived(*parts).answers
