"""Departure from the host: requesting and receiving samples takes the controller less time."""

from typing import Any

import ray
from openrlhf.trainer.ppo_utils.experience import Experience
from openrlhf.trainer.ppo_utils.samples_generator import SamplesGenerator

from openrlhf_ktae.base.temporarily import temporarily
from openrlhf_ktae.trainer.ppo_utils import host_speed
from openrlhf_ktae.trainer.ppo_utils.messages import LOG_PROBS, TOKENS, Answer, Arrived, SentOnce, cheap
from openrlhf_ktae.trainer.ppo_utils.received import Group, Rollout
from openrlhf_ktae.trainer.ray.tensors import send_tensors_plainly

HOSTS_MAX_LEN = 2048
"""The host's default for `max_len`."""


class LightSamplesGenerator(SamplesGenerator):
    """The host's generator. It sends the tokenizer to each engine once, and makes tensors when they are read."""

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
        if tokenizer is not None:
            if self._sent is None or self._sent[0] is not tokenizer:
                self._sent = tokenizer, SentOnce(tokenizer)
            tokenizer = self._sent[1]
        with temporarily(self, tokenizer=tokenizer, vllm_engines=list(map(cheap, self.vllm_engines))):
            return super()._dispatch_prompts_to_vllm(prompts, labels, images=images, **generate_kwargs)

    def _process_response_into_experience(self, response: dict[str, Any], **generate_kwargs: Any) -> Experience:
        if not isinstance(response, Answer):
            return super()._process_response_into_experience(response, **generate_kwargs)
        among = response.among
        if among.made is None:
            among.made = rollouts_of(among, generate_kwargs.get("max_len", HOSTS_MAX_LEN))
        if not among.made:
            return super()._process_response_into_experience(response, **generate_kwargs)
        return among.made[response.place]


def rollouts_of(among: Arrived, max_len: int) -> list[Rollout]:
    """Return the rollouts of the answers to one prompt; none if only some have tokens or log-probabilities."""
    if TOKENS not in among.lengths or (
        LOG_PROBS not in among.lengths and any(a.get(LOG_PROBS) is not None for a in among.answers)
    ):
        return []
    group = Group(among, max_len)
    return [Rollout(group, place) for place in range(len(among.answers))]
