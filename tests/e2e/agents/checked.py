"""The verifier's agent; it logs the sum of the engine's weights before generating."""

from __future__ import annotations

import os
from pathlib import Path

from openrlhf_ktae.verifier.agent import AgentExecutor as VerifierAgent

VARIABLE = "KTAE_TEST_CHECKSUMS"


class AgentExecutor(VerifierAgent):
    """Writes one float64 sum per response, in the order of the responses."""

    async def execute(self, prompt, label, sampling_params, max_length, hf_tokenizer, llm_engine, images=None):
        with Path(os.environ[VARIABLE]).open("a") as file:
            file.write(f"{await llm_engine.weight_checksum()!r}\n")
        return await super().execute(
            prompt, label, sampling_params, max_length, hf_tokenizer, llm_engine, images=images
        )
