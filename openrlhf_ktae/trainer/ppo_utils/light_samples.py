"""Departure from the host: requesting and receiving samples costs the controller less."""

from __future__ import annotations

from typing import Any

import ray
from openrlhf.trainer.ppo_utils.experience import Experience
from openrlhf.trainer.ppo_utils.samples_generator import SamplesGenerator

from openrlhf_ktae.trainer.ppo_utils import host_speed
from openrlhf_ktae.trainer.ppo_utils.messages import SentOnce, packed
from openrlhf_ktae.trainer.ray.tensors import send_tensors_plainly


class LightSamplesGenerator(SamplesGenerator):
    """The host's generator; the tokenizer is sent to each engine once, not with every prompt."""

    tokenizer: Any
    _sent: tuple[Any, SentOnce] | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        host_speed.install()
        if ray.is_initialized():
            send_tensors_plainly()

    def _dispatch_prompts_to_vllm(
        self, prompts: list[str], labels: list[str], *, images: Any = None, **generate_kwargs: Any
    ) -> list[Any]:
        tokenizer = self.tokenizer
        if tokenizer is None:
            return super()._dispatch_prompts_to_vllm(prompts, labels, images=images, **generate_kwargs)
        if self._sent is None or self._sent[0] is not tokenizer:
            self._sent = tokenizer, SentOnce(tokenizer)
        self.tokenizer = self._sent[1]
        try:
            return super()._dispatch_prompts_to_vllm(prompts, labels, images=images, **generate_kwargs)
        finally:
            self.tokenizer = tokenizer

    def _process_response_into_experience(self, response: dict[str, Any], **generate_kwargs: Any) -> Experience:
        return super()._process_response_into_experience(packed(response), **generate_kwargs)
