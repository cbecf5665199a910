"""Responses that neither ended nor reached their limit. Only this module reads vLLM's `finish_reason`.

vLLM returns partial text when a request is aborted or its engine shuts down (`abort`, `error`, `repetition`, or none).
Partial text is not an answer: the verifier would call it wrong, and the run would train on that verdict.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from contextvars import ContextVar
from functools import wraps
from typing import Any

FINISHED = ("stop", "length")  # any other reason means that the response was cut off


class CutOff(RuntimeError):
    """A response was cut off before it ended or reached its limit."""


seen_in_rollout: ContextVar[list[CutOff] | None] = ContextVar("seen_in_rollout", default=None)
"""Errors of cut-off responses in the current rollout and all tasks that its agent starts; None outside a rollout."""


def require_complete(output: Any) -> Any:
    """Return `output`, vLLM's RequestOutput, if all its responses ended or reached their limit.

    Raises CutOff if one did not, or there is none.
    """
    responses = output.outputs if output is not None and output.finished else []
    cut = [one for one in responses if one.finish_reason not in FINISHED]
    if cut or not responses:
        tokens, reason = (len(cut[0].token_ids), cut[0].finish_reason) if cut else (0, "no finish reason")
        raise CutOff(f"vLLM cut off a response after {tokens} tokens ({reason}); it is not used")
    return output


def only_complete(generate: Callable[..., AsyncIterator[Any]]) -> Callable[..., AsyncIterator[Any]]:
    """Wrap `generate` of vLLM's asynchronous engine: it raises `CutOff` instead of returning a partial answer.

    `seen_in_rollout` keeps the error, so an agent that swallows it cannot hide it.
    """

    @wraps(generate)
    async def outputs(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        last = None
        async with aclosing(generate(*args, **kwargs)) as stream:  # type: ignore[type-var]
            async for last in stream:
                if not last.finished:
                    yield last
        try:
            yield require_complete(last)
        except CutOff as error:
            seen = seen_in_rollout.get()
            if seen is not None:
                seen.append(error)
            raise

    return outputs
