"""The verifier's agent with random faults: some rollouts raise, some score infinity (see `soak.py`)."""

from __future__ import annotations

import os
import random
from typing import Any

from openrlhf_ktae.verifier.agent import AgentExecutor as Verified

RAISES, INFINITE = "SOAK_RAISES", "SOAK_INFINITE"  # environment variables with shares of rollouts


class AgentExecutor(Verified):
    """Raises, or scores infinity, at random."""

    def __init__(self) -> None:
        super().__init__()
        self._chance = random.Random()
        self._raises, self._infinite = (float(os.environ.get(name, "0")) for name in (RAISES, INFINITE))

    async def execute(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Generate and grade as the verifier's agent does, with random faults."""
        if self._chance.random() < self._raises:
            raise ValueError("the soak's agent does not like this rollout")
        output = await super().execute(*args, **kwargs)
        if self._chance.random() < self._infinite:
            output.update(scores=float("inf"), reward=float("inf"))
        return output
