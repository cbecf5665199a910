"""Cheaper messages between controller and engines.

The host sends the tokenizer with every `generate_responses`. With 150,000 entries it takes 50 ms to pickle and 0.6 s to
unpickle on the engine's event loop: for 1,024 prompts a minute on the controller and 20 s on each of 32 engines.
Answers are lists of Python integers, which take longer to unpickle and convert than everything else in a rollout.
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
"""Lists of numbers in an answer: their dtype when sent and when received. The host converts to the same."""
_received: dict[Any, Any] = {}


class SentOnce:
    """Wrapper for a call's argument; each receiving process fetches the value once and gets the same object again."""

    def __init__(self, value: Any) -> None:
        self._reference = ray.put(value)

    def __reduce__(self) -> tuple[Callable[[Any], Any], tuple[Any]]:
        return received, (self._reference,)


def received(reference: Any) -> Any:
    """Return the value; fetch it the first time this process asks."""
    if reference not in _received:
        _received[reference] = ray.get(reference)
    return _received[reference]


class Answers(list[dict[str, Any]]):
    """An engine's answers to one prompt, pickled with one array for all tokens and one for all log-probabilities."""

    def __reduce__(self) -> tuple[Callable[..., list[Answer]], tuple[Any, ...]]:
        given = {name: [answer.get(name) for answer in self] for name in KINDS}
        whole: dict[str, list[Any]] = {
            name: parts for name, parts in given.items() if self and all(part is not None for part in parts)
        }
        arrays = {name: np.concatenate([np.asarray(p, KINDS[name][0]) for p in whole[name]]) for name in whole}
        lengths = {name: [len(part) for part in parts] for name, parts in whole.items()}
        return arrived, ([{k: v for k, v in answer.items() if k not in whole} for answer in self], arrays, lengths)


class Answer(dict[str, Any]):
    """A received answer with views into the arrays: number `place` of the answers `among` to its prompt."""

    among: Arrived
    place: int


class Arrived:
    """The received answers to one prompt, their arrays by name, and the length of each answer's part."""

    def __init__(
        self, answers: list[dict[str, Any]], arrays: dict[str, NDArray[Any]], lengths: dict[str, list[int]]
    ) -> None:
        self.answers, self.lengths = answers, lengths
        self.arrays = {name: np.array(array, KINDS[name][1]) for name, array in arrays.items()}  # Ray's are read-only
        self.made: Sequence[Any] | None = None
        """The experiences that the controller built from them."""

    def parts(self, name: str) -> list[NDArray[Any]]:
        """Return each answer's part of an array, as a view."""
        array = self.arrays[name]
        return [array[start:end] for start, end in pairwise(accumulate(self.lengths[name], initial=0))]


def arrived(*parts: Any) -> list[Answer]:
    """Rebuild the answers from a pickled `Answers`."""
    among = Arrived(*parts)
    arrays = {name: among.parts(name) for name in among.arrays}
    answers = []
    for place, rest in enumerate(among.answers):
        answer = Answer(rest)
        answer.update({name: views[place] for name, views in arrays.items()})
        answer.among, answer.place = among, place
        answers.append(answer)
    return answers
