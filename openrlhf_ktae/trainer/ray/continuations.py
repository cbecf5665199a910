"""In the engine: continue the given beginning of a response, and grade both parts as one response.

Any single-turn executor works unchanged, because it sees the given tokens as if they were sampled.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from copy import deepcopy
from functools import wraps
from typing import Any

from openrlhf_ktae.verifier.user_reward import HINT

SCORE, SAMPLED = "scores", "sampled_tokens"
"""Keys of the answer: the score of the whole response, and how many of its tokens were sampled."""


class Begun(str):
    """A prompt with the first token ids of its response."""

    __slots__ = ("begun",)
    begun: Sequence[int]

    def __new__(cls, prompt: str, begun: Sequence[int]) -> Begun:
        """Attach the token ids to the prompt."""
        made = super().__new__(cls, prompt)
        made.begun = begun
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        return Begun, (str(self), self.begun)


class ContinuingEngine:
    """The engine that an executor gets for one continuation."""

    def __init__(self, engine: Any, begun: Sequence[int]) -> None:
        self._engine, self._begun = engine, list(begun)
        self.sampled = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    async def generate(self, prompt_token_ids: list[int], sampling_params: Any, **more: Any) -> Any:
        """Generate the rest; return vLLM's output with the given tokens in front. Length limits count both parts."""
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
    """Wrap an executor's `execute`. For a `Begun` prompt it returns only score, sampled tokens and the judge's hint."""

    @wraps(execute)
    async def rollout(*, prompt: Any, llm_engine: Any, **call: Any) -> Any:
        if not isinstance(prompt, Begun):
            return await execute(prompt=prompt, llm_engine=llm_engine, **call)
        engine = ContinuingEngine(llm_engine, prompt.begun)
        answer = await execute(prompt=str(prompt), llm_engine=engine, **call)
        return {SCORE: answer[SCORE], SAMPLED: engine.sampled, HINT: answer.get(HINT, "")}

    return rollout
