"""The verifier's agent with faults: depending on the prompt's number it raises once, raises always, or scores inf."""

from __future__ import annotations

import asyncio
import os

from openrlhf_ktae.verifier.agent import AgentExecutor as Verified

RAISES_ONCE, RAISES_ALWAYS, INFINITE = 3, 5, 18  # at 8 prompts a step: both errors in step 1, infinity in step 3
HANGS = 20


class AgentExecutor(Verified):
    def __init__(self):
        super().__init__()
        self._numbers: dict[str, int] = {}
        self._raised: set[str] = set()

    async def execute(self, prompt, label, *args, **kwargs):
        number = self._numbers.setdefault(prompt, len(self._numbers) + 1)
        if number == RAISES_ALWAYS or (number == RAISES_ONCE and prompt not in self._raised):
            self._raised.add(prompt)
            raise ValueError("this agent does not like the prompt")
        output = await super().execute(prompt, label, *args, **kwargs)
        if number == HANGS and "KTAE_TEST_HANG" in os.environ:
            await asyncio.sleep(1e6)
        if number == INFINITE:
            output.update(scores=float("inf"), reward=float("inf"))
        return output
