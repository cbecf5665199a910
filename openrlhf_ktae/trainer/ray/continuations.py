"""In the engine: a continuation of the beginning of a response, judged with it as one response.

Any single-turn executor does it unchanged: its engine takes the beginning for sampled.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from copy import deepcopy
from functools import wraps
from typing import Any

from openrlhf_ktae.verifier.user_reward import HINT

SCORE, SAMPLED = "scores", "sampled_tokens"
"""Keys of the answer: the judge's score of the whole response, and how many of its tokens were sampled."""


class Begun(str):
    """A prompt whose response begins with token ids that are given."""

    __slots__ = ("begun",)
    begun: Sequence[int]

    def __new__(cls, prompt: str, begun: Sequence[int]) -> Begun:
        """Return the prompt with `begun`."""
        made = super().__new__(cls, prompt)
        made.begun = begun
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        return Begun, (str(self), self.begun)


class ContinuingEngine:
    """An engine as the executor of one continuation sees it."""

    def __init__(self, engine: Any, begun: Sequence[int]) -> None:
        self._engine, self._begun = engine, list(begun)
        self.sampled = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    async def generate(self, prompt_token_ids: list[int], sampling_params: Any, **more: Any) -> Any:
        """Return vLLM's output of the rest, with the beginning before it; limits count both."""
        params, given = deepcopy(sampling_params), len(self._begun)
        params.logprobs, params.min_tokens = None, max(params.min_tokens - given, 0)
        if params.max_tokens is not None:
            params.max_tokens -= given
        output = await self._engine.generate([*prompt_token_ids, *self._begun], params, **more)
        response = output.outputs[0]
        self.sampled += len(response.token_ids)
        response.token_ids = [*self._begun, *response.token_ids]
        return output


def continued(execute: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """Return `execute`, a method of an executor, which continues where the prompt is `Begun`, and returns the score."""

    @wraps(execute)
    async def rollout(*, prompt: Any, llm_engine: Any, **call: Any) -> Any:
        if not isinstance(prompt, Begun):
            return await execute(prompt=prompt, llm_engine=llm_engine, **call)
        engine = ContinuingEngine(llm_engine, prompt.begun)
        answer = await execute(prompt=str(prompt), llm_engine=engine, **call)
        return {SCORE: answer[SCORE], SAMPLED: engine.sampled, HINT: answer.get(HINT, "")}

    return rollout
