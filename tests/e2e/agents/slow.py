"""The verifier's agent, delayed by a few seconds so that tests can act during generation."""

from __future__ import annotations

import asyncio

from openrlhf_ktae.verifier.agent import AgentExecutor as Verified

SECONDS = 4.0


class AgentExecutor(Verified):
    """Generates and judges after a delay."""

    async def execute(self, *args, **kwargs):
        await asyncio.sleep(SECONDS)
        return await super().execute(*args, **kwargs)
