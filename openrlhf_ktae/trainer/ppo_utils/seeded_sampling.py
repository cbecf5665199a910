"""Departure from the host: with `--train.full_determinism_enable`, rollouts depend only on the seed and the prompt.

The host's engines sample all requests from one random generator in order of arrival, and groups return as they finish.
Here each rollout has its own seed, derived from `--train.seed`, the number of its prompt in the run and its number in
the group. All requests of a call are scheduled at once, because the last bits of a logit depend on the batch size.
Groups are sorted back into the order of their prompts.
"""

import hashlib
from types import SimpleNamespace
from typing import Any

import ray
from openrlhf.trainer.ppo_utils.experience import Experience

from openrlhf_ktae.trainer.ppo_utils.data_position import PositionedGenerator
from openrlhf_ktae.trainer.ppo_utils.messages import Answer, cheap

SEED_KEY = "sampling_seed"
"""Key of the prompt's seed in an engine's answer."""
TRAIN, EVALUATION = "train", "evaluation"
SEED_BYTES = 7  # keeps seeds below 2^63, the limit of torch's generators


def derived_seed(*parts: int | str) -> int:
    """Return a 56-bit seed for the parts, the same in every process."""
    text = "\0".join(map(str, parts))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=SEED_BYTES).digest(), "big")


class SeededEngine:
    """An engine handle that adds a seed to the prompt sent through it."""

    def __init__(self, engine: Any, seed: int) -> None:
        self.get_num_unfinished_requests = engine.get_num_unfinished_requests

        def send(*, sampling_params: Any, **request: Any) -> Any:
            sampling_params.seed = seed
            return cheap(engine).generate_responses.remote(sampling_params=sampling_params, **request)

        self.generate_responses = SimpleNamespace(remote=send)


class SeededSamplesGenerator(PositionedGenerator):
    """The host's generator with seeds; unchanged without `--train.full_determinism_enable`."""

    KEPT = "prompts_sent"
    args: Any
    vllm_engines: list[Any]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.prompts_sent = 0
        """Prompts sent to engines for training in this run, including those before a resume."""
        self._evaluated: int | None = None  # prompts sent in the current evaluation; None outside one
        self._order: dict[int, int] = {}  # seed of a prompt -> its place in the call
        self._place: dict[int, int] = {}  # id of a rollout -> the place of its prompt

    def generate_eval_samples(self, **generate_kwargs: Any) -> list[Experience]:
        """Evaluate as the host does; every evaluation uses the same prompts with the same seeds."""
        self._evaluated = self._evaluated or 0
        return super().generate_eval_samples(**generate_kwargs)

    @property
    def evaluating(self) -> bool:
        """Whether an evaluation is running."""
        return self._evaluated is not None

    def evaluation_ends(self) -> None:
        """Reset, so that the next evaluation starts with the first seed."""
        self._evaluated = None

    def _generate_vllm(
        self, dataloader_iter: Any, num_prompts: int, dynamic_filtering: bool, **generate_kwargs: Any
    ) -> tuple[list[Experience], int, bool]:
        self._order, self._place = {}, {}
        sent, evaluated = self.prompts_sent, self._evaluated
        try:
            samples, drawn, exhausted = super()._generate_vllm(
                dataloader_iter, num_prompts, dynamic_filtering, **generate_kwargs
            )
        except Exception:
            self.prompts_sent, self._evaluated = sent, evaluated  # prompts that are sent again get the same seeds
            raise
        if self._order:
            samples = sorted(samples, key=lambda rollout: self._place[id(rollout)])
        return samples, drawn, exhausted

    def _dispatch_prompts_to_vllm(
        self, prompts: list[str], labels: list[str], *, images: Any = None, **generate_kwargs: Any
    ) -> list[Any]:
        if not self.args.train.full_determinism_enable:
            return super()._dispatch_prompts_to_vllm(prompts, labels, images=images, **generate_kwargs)
        engines, refs = self.vllm_engines, []
        ray.get([engine.hold.remote() for engine in engines])
        samples = generate_kwargs.get("n_samples_per_prompt", self.args.rollout.n_samples_per_prompt)
        expected = [0] * len(engines)
        try:
            for place, (prompt, label, image) in enumerate(
                zip(prompts, labels, images or [None] * len(prompts), strict=True)
            ):
                number, seed = self._next_seed()
                self._order[seed] = place
                engine = number % len(engines)
                expected[engine] += samples
                self.vllm_engines = [SeededEngine(engines[engine], seed)]
                refs += super()._dispatch_prompts_to_vllm([prompt], [label], images=[image], **generate_kwargs)
        finally:
            self.vllm_engines = engines
            ray.get([engine.release.remote(count) for engine, count in zip(engines, expected, strict=True)])
        return refs

    def _next_seed(self) -> tuple[int, int]:
        """Return the number of the next prompt and its seed."""
        if self._evaluated is not None:
            number, purpose = self._evaluated, EVALUATION
            self._evaluated += 1
        else:
            number, purpose = self.prompts_sent, TRAIN
            self.prompts_sent += 1
        return number, derived_seed(self.args.train.seed, purpose, number)

    def _process_response_into_experience(self, response: dict[str, Any], **generate_kwargs: Any) -> Experience:
        rollout = super()._process_response_into_experience(response, **generate_kwargs)
        if SEED_KEY in response:
            made = response.among.made if isinstance(response, Answer) else None
            self._place |= dict.fromkeys(map(id, made or [rollout]), self._order[response[SEED_KEY]])
        return rollout
