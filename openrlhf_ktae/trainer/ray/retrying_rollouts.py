"""In the engine: failed rollouts, and restarts of the engine.

If an agent, reward or verifier raises, its prompt is retried. If that fails, its group is given up and the run
continues. Imports here delay the start of every engine, so neither the host's trainers nor DeepSpeed is imported.
"""

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from functools import cached_property, partial, wraps
from typing import Any

import ray

from openrlhf_ktae.base.cut_off import CutOff, seen_in_rollout
from openrlhf_ktae.base.errors import TrainingStopped
from openrlhf_ktae.base.faults_config import RETRIES_VARIABLE
from openrlhf_ktae.processes.deaths import ENGINE_GONE, of_type
from openrlhf_ktae.trainer.ppo_utils.seeded_sampling import SEED_KEY
from openrlhf_ktae.trainer.ray.gpu_memory import engine_memory, until_free
from openrlhf_ktae.trainer.staleness import WEIGHTS_STEP
from openrlhf_ktae.verifier.user_reward import label_and_row

DEATH_POLL_SECONDS = 1.0
FAILURE = "failure"  # key of a placeholder for a failed response
DEATH_SECONDS = 1.0  # until the death of a core is known; while shutting down, it first cuts responses off


class OutdatedEngine(RuntimeError):
    """The engine was restarted and does not have the current weights yet."""


class NotLoaded:
    """Placeholder for vLLM's engine in a restarted process that has not loaded it yet."""

    def __getattr__(self, name: str) -> Any:
        raise OutdatedEngine("a restarted engine has no model yet")


class AgentGaveUp(RuntimeError):
    """An agent tried to exit its process or cancel its task."""


def contained(execute: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """Return `execute`, a method of an agent, with SystemExit and CancelledError turned into ordinary errors.

    In a task, SystemExit would end the engine's event loop, and CancelledError would go unnoticed. A cancellation by
    Ray or vLLM is passed on. A response that was cut off fails the rollout, even if the agent handles the error.
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
    """Mixin for an engine's actor class.

    In a process that Ray has restarted, the constructor loads nothing: the trainer may be in an update that fills the
    GPU. The trainer calls `reload` once its own memory is offloaded. With sleep mode, the engine then goes to sleep
    like the others.
    """

    llm: Any
    uses_gpu: bool
    """Whether the engine runs on GPUs; one on a CPU does not, even if the machine has one."""
    released = False
    """Whether the weights were released for an update, and no new ones were confirmed; only engines on CPUs do this."""
    _load: Callable[[], Awaitable[None]] | None = None
    _got_weights = False
    _weights_step = 0
    _sleeps = False
    _share: float | None = None
    _bundles: list[int] | None = None

    async def __init__(self, *args: Any, **kwargs: Any) -> None:  # type: ignore[misc]  # Ray awaits it
        if not self._was_restarted:
            await super().__init__(*args, **kwargs)  # type: ignore[misc]
            return
        self._sleeps, self._share = kwargs.get("enable_sleep_mode", False), kwargs.get("gpu_memory_utilization")
        self._bundles = kwargs.get("bundle_indices")
        self.llm = NotLoaded()
        self._load = partial(super().__init__, *args, **kwargs)  # type: ignore[assignment]

    async def reload(self) -> bool:
        """Load the model unless it is loaded; return whether the engine has the current weights.

        Raises:
            GpuFull: the GPU's memory does not become free.
            Exception: vLLM's, if it does not start or its core is dead.
        """
        async with self._reload_lock:
            if self._load is not None:
                if self.uses_gpu:
                    await until_free(self._share, partial(engine_memory, self._bundles))
                await self._load()
                if self._sleeps:
                    await self.sleep()  # type: ignore[attr-defined]
                self._load = None
        return await self.answer()

    async def until_dead(self) -> None:
        """Never return, so that callers soon learn when this process or vLLM's core dies.

        Raises vLLM's error once its core is dead.
        """
        while not self.llm.errored:
            await asyncio.sleep(DEATH_POLL_SECONDS)
        raise self.llm.dead_error

    async def responses_to(self, call: dict[str, Any]) -> list[dict[str, Any]]:
        """Generate responses for the arguments in `call` (`messages.OneArgument`)."""
        return await self.generate_responses(**call)

    async def generate_responses(self, **call: Any) -> list[dict[str, Any]]:
        """Generate as the host does. Retry on errors, then return empty rollouts with the reason.

        Each answer has the step of the weights that sampled its first token. Raises OutdatedEngine if this process was
        restarted and does not have the current weights yet, and RuntimeError if it has released its weights.
        """
        if self.released:
            raise RuntimeError("the engine has released its weights for an update, and has not received new ones")
        if not self._current:
            raise OutdatedEngine("a restarted engine waits for the current weights")
        step = self._weights_step
        answers = await self._answers(call)
        for answer in answers:
            answer[WEIGHTS_STEP] = step
        return answers

    async def _answers(self, call: dict[str, Any]) -> list[dict[str, Any]]:
        error: Exception | None = None
        for _ in range(1 + int(os.environ.get(RETRIES_VARIABLE, "0"))):
            try:
                return await super().generate_responses(**call)  # type: ignore[misc]
            except TrainingStopped:  # the verifier stops the run
                raise
            except Exception as raised:  # agents may raise anything
                if of_type(raised, ENGINE_GONE):
                    raise
                if of_type(raised, (CutOff.__name__,)):
                    await asyncio.sleep(DEATH_SECONDS)
                if self.llm.errored:  # even if the agent raised another error
                    raise self.llm.dead_error from raised
                error = raised
                logging.getLogger(__name__).exception("a rollout failed on the prompt %.80r", call["prompt"])
        return [empty_response(call, f"{type(error).__name__}: {error}") for _ in range(call.get("num_samples", 1))]

    async def answer(self) -> bool:
        """Return whether the engine has the current weights. Raises vLLM's error if its core is dead."""
        if self._load is not None:
            return False
        if self.llm.errored:
            raise self.llm.dead_error
        return self._current

    async def confirm_weights(self, step: int) -> None:
        """Confirm that the weights after `step` steps have arrived."""
        self._got_weights, self.released, self._weights_step = True, False, step

    @cached_property
    def _reload_lock(self) -> asyncio.Lock:
        return asyncio.Lock()

    @property
    def _current(self) -> bool:
        return self._got_weights or not self._was_restarted

    @cached_property
    def _was_restarted(self) -> bool:
        """Whether Ray has restarted the actor of this process; False outside an actor."""
        if not ray.is_initialized():
            return False
        context = ray.get_runtime_context()
        return context.get_actor_id() is not None and bool(context.was_current_actor_reconstructed)


def empty_response(call: dict[str, Any], failure: str) -> dict[str, Any]:
    """Return a response without tokens: its score is unknown, so group statistics exclude it."""
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
