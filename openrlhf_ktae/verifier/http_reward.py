"""Rewards from a server (`--reward.remote_url http://...`). Failed queries are retried; then the rollout fails.

This departs from the host, which turns every error into `None` and crashes on it some steps later.
"""

import asyncio
import json
import logging
import math
import os
import time
from collections.abc import Mapping
from itertools import cycle
from typing import Any

import aiohttp
from openrlhf.utils.agent import SingleTurnAgentExecutor

from openrlhf_ktae.base.errors import TrainingStopped
from openrlhf_ktae.base.faults_config import SERVER_VARIABLE, FaultsConfig
from openrlhf_ktae.base.secrets import redacted
from openrlhf_ktae.verifier.user_reward import finite_number, read_result

logger = logging.getLogger(__name__)

FIRST_PAUSE_SECONDS = 1.0  # doubled after each try
CONNECT_SECONDS = 5.0
FAILED_IN_A_ROW = 64  # after this many failed queries, each with all its tries, even a responding server counts as gone
UNREACHABLE = (aiohttp.ClientConnectionError, OSError)  # includes TimeoutError; other errors mean a bad answer


class BadAnswer(RuntimeError):
    """A reward server's answer has no usable reward."""


class HttpAgentExecutor(SingleTurnAgentExecutor):
    """The host's single-turn agent, judged by reward servers that may fail temporarily."""

    def __init__(self, addresses: list[str]) -> None:
        super().__init__()  # gets no address, so that the host does not query a server
        self.addresses = list(addresses)
        self._next = cycle(self.addresses)
        seconds, tries = os.environ.get(SERVER_VARIABLE, "").split() or (
            FaultsConfig.reward_timeout_s,
            FaultsConfig.reward_tries,
        )
        self._timeout = aiohttp.ClientTimeout(total=float(seconds), sock_connect=CONNECT_SECONDS)
        self._tries = int(tries)
        self._answered, self._failed_in_a_row = -math.inf, 0

    async def execute(
        self, prompt: Any, label: Any, sampling_params: Any, max_length: int, hf_tokenizer: Any, *rest: Any, **more: Any
    ) -> dict[str, Any]:
        """Generate as the host does; add a server's `reward`, `scores` and `extra_logs` to the output.

        Raises:
            BadAnswer: all tries failed.
            TrainingStopped: no server was reachable, or `FAILED_IN_A_ROW` queries failed.
        """
        output = await super().execute(prompt, label, sampling_params, max_length, hf_tokenizer, *rest, **more)
        query = hf_tokenizer.decode(output["observation_tokens"], skip_special_tokens=False)
        return {**output, **await self.reward({"query": [query], "prompts": [prompt], "labels": [label]})}

    async def reward(self, query: Mapping[str, Any]) -> dict[str, Any]:
        """Return the reward of one query; raises as `execute` does."""
        began, reason, unreachable = time.monotonic(), "", True
        for number in range(self._tries):
            if number:
                await asyncio.sleep(FIRST_PAUSE_SECONDS * 2 ** (number - 1))
            address = next(self._next)
            try:
                found = read(await self._ask(address, query))
            except (aiohttp.ClientError, OSError, ValueError, BadAnswer) as error:
                reason = f"{redacted(address, ())}: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
                unreachable &= isinstance(error, UNREACHABLE)
                logger.info("a reward server failed (%s), try %d of %d", reason, number + 1, self._tries)
            else:
                self._answered, self._failed_in_a_row = time.monotonic(), 0
                return found
        self._failed_in_a_row += 1
        if (unreachable and self._answered < began) or self._failed_in_a_row >= FAILED_IN_A_ROW:
            addresses = ",".join(redacted(address, ()) for address in self.addresses)
            raise TrainingStopped(
                f"--reward.remote_url {addresses}: gives no rewards any more, last error {reason}; restart the server "
                "and continue with --resume auto"
            )
        raise BadAnswer(f"--reward.remote_url gave no reward in {self._tries} tries, last error {reason}")

    async def _ask(self, address: str, query: Mapping[str, Any]) -> Any:
        async with (
            aiohttp.ClientSession(timeout=self._timeout) as session,
            session.post(address, json=query) as response,
        ):
            text = await response.text(errors="replace")
            if response.status != 200:
                raise BadAnswer(f"HTTP {response.status} {response.reason}: {text[:100]!r}")
        try:
            return json.loads(text)
        except ValueError:
            raise BadAnswer(f"is not JSON: {text[:100]!r}") from None


def read(answer: Any) -> dict[str, Any]:
    """Return `reward`, `scores` and `extra_logs` of one rollout from a server's answer, read as a reward function's.

    Raises BadAnswer if the answer does not have exactly one finite reward.
    """
    try:
        reward, score, logs = read_result(answer, "openrlhf")
    except (TypeError, ValueError) as error:
        raise BadAnswer(str(error)) from None
    figures = {str(name): figure for name, given in logs.items() if (figure := finite_number(given)) is not None}
    return {"reward": reward, "scores": score, "extra_logs": figures}
