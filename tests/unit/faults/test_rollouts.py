"""A prompt whose rollouts raise gets another try, then stands as empty rollouts; too many of them stop the run."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from types import SimpleNamespace

import pytest
import torch

from openrlhf_ktae.faults.config import RETRIES_VARIABLE, FaultsConfig


@pytest.fixture(scope="module")
def tokenizer(root):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(root / "examples/quickstart/model")


@pytest.fixture
def engine(host, monkeypatch):
    """An engine that raises the errors it is given, then answers."""
    from openrlhf_ktae.faults.rollouts import RetryingRollouts

    class Engine:
        def __init__(self, *errors):
            self.errors, self.calls = list(errors), 0

        async def generate_responses(self, **call):
            self.calls += 1
            if self.errors:
                raise self.errors.pop(0)
            return ["answer"] * call["num_samples"]

    monkeypatch.setenv(RETRIES_VARIABLE, "1")
    return type("Retrying", (RetryingRollouts, Engine), {})


def call(tokenizer, prompt="compute 3 + 4 :", logprobs=None):
    params = SimpleNamespace(logprobs=logprobs, seed=None)
    names = {"prompt": prompt, "label": "7", "sampling_params": params, "max_length": 8, "num_samples": 2}
    return {**names, "hf_tokenizer": tokenizer, "images": None}


def test_one_more_try(engine, tokenizer):
    made = engine(ValueError("once"))
    assert asyncio.run(made.generate_responses(**call(tokenizer))) == ["answer", "answer"]
    assert made.calls == 2


def test_then_empty_rollouts_that_say_why(engine, tokenizer):
    made = engine(ValueError("once"), KeyError("twice"))
    responses = asyncio.run(made.generate_responses(**call(tokenizer, logprobs=1)))
    assert made.calls == 2
    assert len(responses) == 2
    assert "twice" in responses[0]["failure"]
    assert len(responses[0]["rollout_log_probs"]) == len(responses[0]["observation_tokens"])


@pytest.mark.parametrize("text", ["EngineDeadError: core died", "more than max_unknown_share allows"])
def test_a_dead_engine_and_a_verifier_that_stops_are_no_failed_rollouts(text, engine, tokenizer):
    made = engine(RuntimeError(text), RuntimeError(text))
    with pytest.raises(RuntimeError):
        asyncio.run(made.generate_responses(**call(tokenizer)))
    assert made.calls == 1


@pytest.fixture
def generator(host, tokenizer):
    from openrlhf_ktae.faults.rollouts import SurvivingGenerator

    args = SimpleNamespace(faults=SimpleNamespace(config=asdict(FaultsConfig(max_failed_share=0.25))))
    return SurvivingGenerator(SimpleNamespace(args=args), [], [], tokenizer, [])


def test_an_empty_rollout_merges_with_others_and_leaves_the_statistics(generator, tokenizer):
    from openrlhf.trainer.ppo_utils.experience import Experience

    from openrlhf_ktae.faults.rollouts import FAILED, empty_response
    from openrlhf_ktae.trainer.ppo_utils.excluded_rollouts import excluded_rollouts

    empty = empty_response(call(tokenizer), "ValueError: no")
    ids = tokenizer("compute 3 + 4 : 7")["input_ids"]
    good = {
        **empty,
        "observation_tokens": ids,
        "action_ranges": [(len(ids) - 1, len(ids))],
        "reward": 1.0,
        "scores": 1.0,
    }
    good.pop("failure")
    good["extra_logs"] = {"verifier_correct": 1.0}
    samples = [generator._process_response_into_experience(one, max_len=16) for one in (good, empty)]
    generator._settle(samples, 1)
    merged = Experience.concat_experiences(samples, tokenizer.pad_token_id)
    assert merged.info["verifier_correct"].tolist() == [1, 0]
    assert merged.info[FAILED].tolist() == [0, 1]
    assert excluded_rollouts([merged]).tolist() == [False, True]


def test_too_many_failed_prompts_stop_the_run(generator, tokenizer):
    from openrlhf_ktae.faults.rollouts import FAILED, WINDOW
    from openrlhf_ktae.trainer.ppo_utils.group_filter import TrainingStopped

    def samples(share):
        bad = [number < share * WINDOW for number in range(WINDOW)]
        return [SimpleNamespace(info={FAILED: torch.tensor([float(one)])}) for one in bad]

    generator._settle(samples(0.25)[: WINDOW // 2], 1)  # half of these failed, but they are too few to judge
    generator._settle(samples(0.0), 1)
    with pytest.raises(TrainingStopped, match=r"--faults.max_failed_share 0.25: .* prompts failed"):
        generator._settle(samples(0.5), 1)
