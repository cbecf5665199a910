"""Departure from the host: an engine whose rollouts have seeds, scheduled together (`ppo_utils/seeded_sampling`)."""

import asyncio
from collections.abc import Awaitable, Callable
from copy import deepcopy
from functools import wraps
from typing import Any

from openrlhf.trainer.ray import vllm_engine as host
from openrlhf.utils.agent import SingleTurnAgentExecutor

from openrlhf_ktae.base.cut_off import only_complete
from openrlhf_ktae.base.host import undecorated
from openrlhf_ktae.processes.setup import leave_interrupts_to_the_driver
from openrlhf_ktae.trainer.ppo_utils.messages import Answers
from openrlhf_ktae.trainer.ppo_utils.seeded_sampling import SEED_KEY, derived_seed
from openrlhf_ktae.trainer.ray.continuations import continued
from openrlhf_ktae.trainer.ray.retrying_rollouts import DEATH_POLL_SECONDS, contained
from openrlhf_ktae.verifier.http_reward import HttpAgentExecutor

_HostRolloutActor: Any = undecorated(host.RolloutRayActor)
ARRIVAL_SECONDS = 2.0  # without a new request; then missing ones have failed, and the others run
POLL_SECONDS = 0.001
ANSWERED_BY_THE_CORE = "collective_rpc pause_generation resume_generation reset_prefix_cache sleep wake_up".split()


def unless_dead(llm: Any, call: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """Return `call`, a method of vLLM's engine, wrapped to raise if the core dies before answering.

    When a core dies, vLLM fails generation requests; all other calls would hang forever.
    """

    @wraps(call)
    async def answered(*args: Any, **kwargs: Any) -> Any:
        answer = asyncio.ensure_future(call(*args, **kwargs))
        while not answer.done():
            await asyncio.wait([answer], timeout=DEATH_POLL_SECONDS)
            if llm.errored and not answer.done():
                answer.cancel()
                raise llm.dead_error
        return answer.result()

    return answered


def with_servers(executor: Any) -> Any:
    """Return the host's executor, or our own if reward servers judge."""
    servers = getattr(executor, "reward_endpoints", [])
    if type(executor) is SingleTurnAgentExecutor and servers and not servers[0].endswith(".py"):
        return HttpAgentExecutor(servers)
    return executor


class KTAERolloutActor(_HostRolloutActor):
    """The host's engine with seeded sampling. Requests without a seed run as in the host."""

    worker_extension = "openrlhf_ktae.trainer.ray.vllm_worker_wrap.KTAEWorkerWrap"
    uses_gpu = True

    async def __init__(self, *args: Any, **kwargs: Any) -> None:  # type: ignore[misc]  # Ray awaits it
        # Log-probabilities of the sampling distribution, after temperature: the trainer computes the same.
        kwargs["logprobs_mode"] = kwargs.get("logprobs_mode") or "processed_logprobs"
        leave_interrupts_to_the_driver()  # in this thread, which starts vLLM's core
        kwargs["worker_extension_cls"] = self.worker_extension
        await super().__init__(*args, **kwargs)
        for name in ANSWERED_BY_THE_CORE:
            setattr(self.llm, name, unless_dead(self.llm, getattr(self.llm, name)))
        self.llm.generate = only_complete(self.llm.generate)
        executor: Any = with_servers(self.executor)  # type: ignore[has-type]
        executor.execute = contained(continued(executor.execute))
        self.executor = executor

    async def hold(self) -> None:
        """Stop scheduling until `release`."""
        await self.llm.pause_generation(mode="keep", clear_cache=False)

    async def release(self, expected: int) -> None:
        """Schedule the requests received since `hold`, once there are `expected` of them."""
        clock = asyncio.get_running_loop()
        came, end = 0, clock.time() + ARRIVAL_SECONDS
        while came < expected and clock.time() < end:
            await asyncio.sleep(POLL_SECONDS)
            if self.get_num_unfinished_requests() > came:
                came, end = self.get_num_unfinished_requests(), clock.time() + ARRIVAL_SECONDS
        await self.llm.resume_generation()

    async def generate_responses(
        self, *, sampling_params: Any, num_samples: int = 1, **call: Any
    ) -> list[dict[str, Any]]:
        """Generate as the host does; with a seed, each sample of the prompt gets a seed derived from it."""
        generate = super().generate_responses
        if sampling_params.seed is None:
            return Answers(await generate(sampling_params=sampling_params, num_samples=num_samples, **call))
        samples = []
        for number in range(num_samples):
            params = deepcopy(sampling_params)
            params.seed = derived_seed(sampling_params.seed, number)
            samples.append(generate(sampling_params=params, **call))
        answers_of = await asyncio.gather(*samples)
        return Answers({**answer, SEED_KEY: sampling_params.seed} for answers in answers_of for answer in answers)
