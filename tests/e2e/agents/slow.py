"""The verifier's agent, each rollout some seconds late: there is time for something to happen in a generation."""

from __future__ import annotations

import asyncio

from openrlhf_ktae.verifier.agent import AgentExecutor as Verified

SECONDS = 4.0


class AgentExecutor(Verified):
    """Generates and judges as usual, later."""

    async def execute(self, *args, **kwargs):
        """Return a rollout in the host's format."""
        await asyncio.sleep(SECONDS)
        return await super().execute(*args, **kwargs)
