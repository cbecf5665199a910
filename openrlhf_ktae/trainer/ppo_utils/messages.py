"""Cheaper messages between controller and engines.

The host passes the tokenizer to every `generate_responses`. With 150,000 entries it takes 50 ms to pickle and 0.6 s to
unpickle, on the engine's event loop: a minute of the controller and 20 s of each of 32 engines for 1,024 prompts.
Answers come as lists of Python integers, which take longer to read and convert than the rest of a rollout.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray

TOKENS, LOG_PROBS = "observation_tokens", "rollout_log_probs"
KINDS = {TOKENS: (np.int32, np.int64), LOG_PROBS: (np.float32, np.float32)}
"""Lists of numbers in an answer: their types on the way, and where they arrive. The host makes the same of them."""
_received: dict[Any, Any] = {}


class SentOnce:
    """Proxy for a value in the arguments of calls; a receiver gets the value itself, the same object every time."""

    def __init__(self, value: Any) -> None:
        self._reference = ray.put(value)

    def __reduce__(self) -> tuple[Callable[[Any], Any], tuple[Any]]:
        return received, (self._reference,)


def received(reference: Any) -> Any:
    """Return the value, fetched when this process first receives it."""
    if reference not in _received:
        _received[reference] = ray.get(reference)
    return _received[reference]


class Answers(list[dict[str, Any]]):
    """An engine's answers to one prompt. On their way, their tokens are one array, and so are log-probabilities."""

    def __reduce__(self) -> tuple[Callable[..., list[Answer]], tuple[Any, ...]]:
        given = {name: [answer.get(name) for answer in self] for name in KINDS}
        whole: dict[str, list[Any]] = {
            name: parts for name, parts in given.items() if self and all(part is not None for part in parts)
        }
        arrays = {name: np.concatenate([np.asarray(p, KINDS[name][0]) for p in whole[name]]) for name in whole}
        lengths = {name: [len(part) for part in parts] for name, parts in whole.items()}
        return arrived, ([{k: v for k, v in answer.items() if k not in whole} for answer in self], arrays, lengths)


class Answer(dict[str, Any]):
    """One of them as it arrives, with views of the arrays; `among` is what came with it, itself included."""

    among: Arrived
    place: int


class Arrived:
    """The answers to one prompt: what belongs to each, and the arrays of all by name, with the length of each part."""

    def __init__(
        self, answers: list[dict[str, Any]], arrays: dict[str, NDArray[Any]], lengths: dict[str, list[int]]
    ) -> None:
        self.answers, self.lengths = answers, lengths
        self.arrays = {name: np.array(array, KINDS[name][1]) for name, array in arrays.items()}  # Ray's are read-only
        self.made: Sequence[Any] | None = None
        """What the controller has made of all of them."""

    def parts(self, name: str) -> list[NDArray[Any]]:
        """Return the parts of an array as views."""
        array = self.arrays[name]
        return [array[start:end] for start, end in pairwise(accumulate(self.lengths[name], initial=0))]


def arrived(*parts: Any) -> list[Answer]:
    """Return the answers that `Answers` were made of."""
    among = Arrived(*parts)
    arrays = {name: among.parts(name) for name in among.arrays}
    answers = []
    for place, rest in enumerate(among.answers):
        answer = Answer(rest)
        answer.update({name: views[place] for name, views in arrays.items()})
        answer.among, answer.place = among, place
        answers.append(answer)
    return answers
