"""In the engine: rollouts that fail, and an engine that was started again.

An agent, a reward or a verifier that raises costs its prompt another try, then its group, never the run. Every engine
waits for what is imported here before its model loads: neither the host's trainer nor DeepSpeed is.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from functools import cached_property, partial, wraps
from typing import Any

import ray

from openrlhf_ktae.faults.config import RETRIES_VARIABLE
from openrlhf_ktae.faults.cut_off import CutOff, seen_in_rollout
from openrlhf_ktae.faults.deaths import ENGINE_GONE, of_type
from openrlhf_ktae.faults.gpu_memory import Memory, until_free
from openrlhf_ktae.trainer.ppo_utils.group_filter import TrainingStopped
from openrlhf_ktae.trainer.ppo_utils.seeded_sampling import SEED_KEY
from openrlhf_ktae.verifier.user_reward import label_and_row

DEATH_POLL_SECONDS = 1.0
FAILURE = "failure"  # key of a response that stands for one that could not be made
DEATH_SECONDS = 1.0  # a core that shuts down cuts its responses off first, and is known to be dead after that


class OutdatedEngine(RuntimeError):
    """The engine was started again and has not got the current weights yet."""


class NotLoaded:
    """In the place of vLLM's engine in a process that was started again and has not loaded it yet."""

    def __getattr__(self, name: str) -> Any:
        raise OutdatedEngine("an engine that was started again has no model yet")


class AgentGaveUp(RuntimeError):
    """An agent wanted to end its process, or its task."""


def contained(execute: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """Return `execute`, a method of an agent, whose SystemExit and CancelledError are errors like others.

    In a task the first would end the engine's event loop, and nobody would hear of the second; one that Ray
    or vLLM has asked for stays what it is. A response that was cut off fails the rollout, whatever the agent makes
    of it.
    """

    @wraps(execute)
    async def rollout(*args: Any, **kwargs: Any) -> Any:
        cut: list[CutOff] = []
        seen_in_rollout.set(cut)
        try:
            answer = await execute(*args, **kwargs)
            if cut:
                raise cut[0]
            return answer
        except (SystemExit, asyncio.CancelledError) as error:
            task = asyncio.current_task()
            if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
                raise
            raise AgentGaveUp(f"the agent raised {type(error).__name__}({error})") from error

    return rollout


class RetryingRollouts:
    """Mixin before an engine's actor class.

    In a process that Ray has started again the constructor loads nothing: the trainer may be in the middle of an update
    and fill the GPU. It calls `come_back` when its own memory is offloaded. Engines that sleep between the steps sleep
    then, as the others do.
    """

    llm: Any
    gpu_memory: Callable[[list[int] | None], Awaitable[list[Memory]]]
    """Free and total bytes of each of the engine's GPUs, where that can be told; it gets `bundle_indices`."""
    _load: Callable[[], Awaitable[None]] | None = None
    _got_weights = False
    _sleeps = False
    _share: float | None = None
    _bundles: list[int] | None = None

    async def __init__(self, *args: Any, **kwargs: Any) -> None:  # type: ignore[misc]  # Ray awaits it
        if not self._started_again:
            await super().__init__(*args, **kwargs)  # type: ignore[misc]
            return
        self._sleeps, self._share = kwargs.get("enable_sleep_mode", False), kwargs.get("gpu_memory_utilization")
        self._bundles = kwargs.get("bundle_indices")
        self.llm = NotLoaded()
        self._load = partial(super().__init__, *args, **kwargs)  # type: ignore[assignment]

    async def come_back(self) -> bool:
        """Load the model, unless it is there; return whether the engine has the current weights.

        Raises:
            GpuIsFull: the GPU's memory does not get free.
            Exception: vLLM's, where it does not start, or its core is dead.
        """
        async with self._coming_back:
            if self._load is not None:
                await until_free(self._share, partial(self.gpu_memory, self._bundles))
                await self._load()
                if self._sleeps:
                    await self.sleep()  # type: ignore[attr-defined]
                self._load = None
        return await self.answer()

    async def until_dead(self) -> None:
        """Return never; for whoever must hear at once that this process, or vLLM's core, is gone.

        Raises:
            Exception: vLLM's, once its core is dead.
        """
        while not self.llm.errored:
            await asyncio.sleep(DEATH_POLL_SECONDS)
        raise self.llm.dead_error

    async def generate_responses(self, **call: Any) -> list[dict[str, Any]]:
        """Generate as the host does; again where something raises; then empty rollouts that say why.

        Raises:
            OutdatedEngine: this process was started again and has the weights that the run began with.
        """
        if not self._current:
            raise OutdatedEngine("an engine that was started again waits for the current weights")
        error: Exception | None = None
        for _ in range(1 + int(os.environ.get(RETRIES_VARIABLE, "0"))):
            try:
                return await super().generate_responses(**call)  # type: ignore[misc]
            except TrainingStopped:  # a verifier means to stop the run
                raise
            except Exception as raised:  # whatever an agent may raise
                if of_type(raised, ENGINE_GONE):
                    raise
                if of_type(raised, (CutOff.__name__,)):
                    await asyncio.sleep(DEATH_SECONDS)
                if self.llm.errored:  # whatever the agent has made of it
                    raise self.llm.dead_error from raised
                error = raised
                logging.getLogger(__name__).exception("a rollout failed on the prompt %.80r", call["prompt"])
        return [empty_response(call, f"{type(error).__name__}: {error}") for _ in range(call.get("num_samples", 1))]

    async def answer(self) -> bool:
        """Return whether the engine has the current weights.

        Raises:
            Exception: vLLM's, where its core is dead.
        """
        if self._load is not None:
            return False
        if self.llm.errored:
            raise self.llm.dead_error
        return self._current

    async def take_weights(self) -> None:
        """Know that the current weights have come."""
        self._got_weights = True

    @cached_property
    def _coming_back(self) -> asyncio.Lock:
        return asyncio.Lock()

    @property
    def _current(self) -> bool:
        return self._got_weights or not self._started_again

    @cached_property
    def _started_again(self) -> bool:
        return started_again()


def empty_response(call: dict[str, Any], failure: str) -> dict[str, Any]:
    """Return a response without a token: its score is unknown, so it leaves its group's statistics."""
    tokenizer = call["hf_tokenizer"]
    tokens = tokenizer(text=call["prompt"], add_special_tokens=False)["input_ids"][-call["max_length"] :]
    tokens = list(tokens) or [tokenizer.eos_token_id]
    return {
        "prompt": call["prompt"],
        "label": label_and_row(call["label"])[0],
        "images": call.get("images"),
        "mm_train_inputs": None,
        "observation_tokens": tokens,
        "action_ranges": [(len(tokens), len(tokens))],
        "rollout_log_probs": None if call["sampling_params"].logprobs is None else [0.0] * len(tokens),
        "truncated": False,
        "reward": 0.0,
        "scores": float("nan"),
        "extra_logs": {},
        FAILURE: failure,
        **({} if call["sampling_params"].seed is None else {SEED_KEY: call["sampling_params"].seed}),
    }


def started_again() -> bool:
    """Whether Ray has started the actor of this process again; False outside an actor."""
    if not ray.is_initialized():
        return False
    context = ray.get_runtime_context()
    return context.get_actor_id() is not None and bool(context.was_current_actor_reconstructed)
