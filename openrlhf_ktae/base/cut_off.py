"""Responses that neither ended nor reached their limit: vLLM's `finish_reason` is seen here, once for everybody.

vLLM hands out what it has when a request is aborted or its engine shuts down (`abort`, `error`, `repetition`, or none).
Such text is not an answer: judged, it would be wrong, and trained on.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from contextvars import ContextVar
from functools import wraps
from typing import Any

WHOLE = ("stop", "length")  # the only reasons after which a response is what the model would have said


class CutOff(RuntimeError):
    """A response was cut off before its end and its limit."""


seen_in_rollout: ContextVar[list[CutOff] | None] = ContextVar("seen_in_rollout", default=None)
"""Cut-off responses of the rollout under way, in all tasks that its agent starts; None outside one."""


def require_whole(output: Any) -> Any:
    """Return `output`, vLLM's RequestOutput, whose responses all have ended or reached their limit.

    Raises:
        CutOff: one has not.
    """
    responses = output.outputs if output is not None and output.finished else []
    cut = [one for one in responses if one.finish_reason not in WHOLE]
    if cut or not responses:
        tokens, reason = (len(cut[0].token_ids), cut[0].finish_reason) if cut else (0, "no finish reason")
        raise CutOff(f"vLLM ended a response after {tokens} tokens ({reason}); it is not used")
    return output


def only_whole(generate: Callable[..., AsyncIterator[Any]]) -> Callable[..., AsyncIterator[Any]]:
    """Return `generate`, the method of vLLM's asynchronous engine, which raises `CutOff` in place of half an answer.

    An agent that swallows the error has seen it: `seen_in_rollout` keeps it.
    """

    @wraps(generate)
    async def outputs(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        last = None
        async with aclosing(generate(*args, **kwargs)) as stream:  # type: ignore[type-var]
            async for last in stream:
                if not last.finished:
                    yield last
        try:
            yield require_whole(last)
        except CutOff as error:
            seen = seen_in_rollout.get()
            if seen is not None:
                seen.append(error)
            raise

    return outputs
