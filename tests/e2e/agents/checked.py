"""The verifier's agent; it logs the sum of the engine's weights before generating."""

from __future__ import annotations

import os
from pathlib import Path

from openrlhf_ktae.selftest.watchers import worker_sums
from openrlhf_ktae.verifier.agent import AgentExecutor as VerifierAgent

VARIABLE = "KTAE_TEST_CHECKSUMS"


class AgentExecutor(VerifierAgent):
    """Writes one line per response, in their order: the float64 sum of all absolute weights."""

    async def execute(self, prompt, label, sampling_params, max_length, hf_tokenizer, llm_engine, images=None):
        """Generate and grade as the verifier's agent does."""
        (sums,) = await llm_engine.llm.collective_rpc(worker_sums)
        with Path(os.environ[VARIABLE]).open("a") as file:
            file.write(f"{sum(absolute for _, absolute, _ in sums.values())!r}\n")
        return await super().execute(
            prompt, label, sampling_params, max_length, hf_tokenizer, llm_engine, images=images
        )
