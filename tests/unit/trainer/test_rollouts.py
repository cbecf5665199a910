"""A prompt whose rollouts raise is retried, then gets empty rollouts; too many such prompts stop the run."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
import torch

from openrlhf_ktae.base.faults_config import RETRIES_VARIABLE, FaultsConfig


class EngineDeadError(RuntimeError):
    """Named like vLLM's error."""


@pytest.fixture
def engine(host, monkeypatch):
    """Build an engine that raises given errors, then answers."""
    from openrlhf_ktae.trainer.ray.retrying_rollouts import RetryingRollouts

    class Engine:
        async def __init__(self, *errors):
            self.errors, self.calls = list(errors), 0
            self.llm = SimpleNamespace(errored=False, dead_error=EngineDeadError("the core is gone"))

        async def generate_responses(self, **call):
            self.calls += 1
            if self.errors:
                raise self.errors.pop(0)
            return [{"answer": self.calls}] * call["num_samples"]

    monkeypatch.setenv(RETRIES_VARIABLE, "1")
    retrying = type("Retrying", (RetryingRollouts, Engine), {})

    def make(*errors):
        made = retrying.__new__(retrying)
        asyncio.run(made.__init__(*errors))
        return made

    return make


def call(tokenizer, prompt="compute 3 + 4 :", logprobs=None):
    params = SimpleNamespace(logprobs=logprobs, seed=None)
    names = {"prompt": prompt, "label": "7", "sampling_params": params, "max_length": 8, "num_samples": 2}
    return {**names, "hf_tokenizer": tokenizer, "images": None}


def test_a_failed_rollout_is_retried(engine, tokenizer):
    made = engine(ValueError("once"))
    asyncio.run(made.confirm_weights(7))
    answers = asyncio.run(made.generate_responses(**call(tokenizer)))
    assert answers == [{"answer": 2, "weights_step": 7}] * 2  # the step of the weights at its start


def test_after_retries_rollouts_are_empty_with_the_reason(engine, tokenizer):
    made = engine(ValueError("once"), KeyError("twice"))
    responses = asyncio.run(made.generate_responses(**call(tokenizer, logprobs=1)))
    assert made.calls == 2
    assert len(responses) == 2
    assert "twice" in responses[0]["failure"]
    assert len(responses[0]["rollout_log_probs"]) == len(responses[0]["observation_tokens"])


def test_a_dead_engine_and_a_stopping_verifier_are_not_failed_rollouts(engine, tokenizer):
    from openrlhf_ktae.base.errors import TrainingStopped

    for error in (EngineDeadError("the core died"), TrainingStopped("more than max_unknown_share allows")):
        made = engine(error)
        with pytest.raises(type(error)):
            asyncio.run(made.generate_responses(**call(tokenizer)))
        assert made.calls == 1


def test_an_agents_error_after_an_engine_death_is_not_a_failed_rollout(engine, tokenizer):
    made = engine(KeyError("no output"))
    made.llm.errored = True
    with pytest.raises(EngineDeadError):
        asyncio.run(made.generate_responses(**call(tokenizer)))


@pytest.mark.parametrize("text", ["EngineDeadError: core died", "OutdatedEngine", "more than max_unknown_share allows"])
def test_an_agent_that_quotes_an_engine_error_counts_as_failed(text, engine, tokenizer):
    made = engine(RuntimeError(text), RuntimeError(text))
    responses = asyncio.run(made.generate_responses(**call(tokenizer)))
    assert made.calls == 2
    assert text in responses[0]["failure"]


class Agent:
    def __init__(self, error=None):
        self.error = error

    async def execute(self, **_):
        if self.error is None:
            await asyncio.Event().wait()
        await asyncio.sleep(0)
        raise self.error


@pytest.fixture
def host_engine(host, monkeypatch):
    """Build our engine actor around an agent by its own `__init__`; the host's would start vLLM."""
    from openrlhf_ktae.trainer.ray import vllm_engine
    from openrlhf_ktae.trainer.ray.retrying_rollouts import RetryingRollouts

    core = SimpleNamespace(errored=False, dead_error=EngineDeadError("the core is gone"))

    async def never(*args, **kwargs):
        await asyncio.Event().wait()

    for name in (*vllm_engine.ANSWERED_BY_THE_CORE, "generate"):
        setattr(core, name, never)

    async def init(self, agent, logprobs_mode, worker_extension_cls):
        assert logprobs_mode == "processed_logprobs"
        assert blocked, "SIGINT must be blocked before the host starts the core, which inherits it"
        self.executor, self.llm = agent, core

    monkeypatch.setattr(vllm_engine._HostRolloutActor, "__init__", init)
    blocked = []
    monkeypatch.setattr(vllm_engine, "leave_interrupts_to_the_driver", lambda: blocked.append(True))
    monkeypatch.setattr(vllm_engine, "DEATH_POLL_SECONDS", 0.05)
    monkeypatch.setenv(RETRIES_VARIABLE, "1")
    guarded = type("Guarded", (RetryingRollouts, vllm_engine.KTAERolloutActor), {})

    async def make(agent):
        made = guarded.__new__(guarded)
        await made.__init__(agent)
        return made

    return make


@pytest.mark.parametrize("seed", [None, 5])
@pytest.mark.parametrize("error", [SystemExit(3), asyncio.CancelledError("a timeout of its own")])
def test_an_agent_that_exits_the_process_counts_as_failed(error, seed, host_engine, tokenizer):
    """The host runs agents in asyncio tasks, where SystemExit would end the engine's event loop."""

    async def run():
        made = await host_engine(Agent(error))
        request = call(tokenizer)
        request["sampling_params"].seed = seed
        return await made.generate_responses(**request)

    responses = asyncio.run(run())
    assert len(responses) == 2
    assert type(error).__name__ in responses[0]["failure"]


def test_a_call_cancelled_by_ray_ends(host_engine, tokenizer):
    async def run():
        made = await host_engine(Agent())
        asked = asyncio.ensure_future(made.generate_responses(**call(tokenizer)))
        await asyncio.sleep(0.1)
        asked.cancel()
        await asked

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(run())


def test_every_call_of_the_core_fails_when_it_dies(host_engine):
    from openrlhf_ktae.trainer.ray.vllm_engine import ANSWERED_BY_THE_CORE

    async def run():
        made = await host_engine(Agent())
        made.llm.errored = True
        asked = [getattr(made.llm, name)() for name in ANSWERED_BY_THE_CORE]
        return await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), 10)

    assert {type(error) for error in asyncio.run(run())} == {EngineDeadError}


@pytest.fixture
def generator(host, tokenizer):
    from openrlhf_ktae.trainer.ppo_utils.failed_rollouts import SurvivingGenerator

    faults = SimpleNamespace(config=FaultsConfig(max_failed_share=0.25))
    plain = {"vllm": SimpleNamespace(enable_sleep=False), "train": SimpleNamespace(async_enable=False)}
    args = SimpleNamespace(faults=faults, **plain)
    return SurvivingGenerator(SimpleNamespace(args=args), [], [], tokenizer, [])


def test_an_empty_rollout_merges_with_others_and_leaves_the_statistics(generator, tokenizer):
    from openrlhf.trainer.ppo_utils.experience import Experience

    from openrlhf_ktae.trainer.ppo_utils.experience_maker import credited_scores
    from openrlhf_ktae.trainer.ppo_utils.failed_rollouts import FAILED
    from openrlhf_ktae.trainer.ray.retrying_rollouts import empty_response

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
    assert credited_scores(merged).isnan().tolist() == [False, True]


def test_too_many_failed_prompts_stop_the_run(generator, tokenizer):
    from openrlhf_ktae.base.errors import TrainingStopped
    from openrlhf_ktae.trainer.ppo_utils.failed_rollouts import FAILED, WINDOW

    def samples(share):
        bad = [number < share * WINDOW for number in range(WINDOW)]
        return [SimpleNamespace(info={FAILED: torch.tensor([float(one)])}) for one in bad]

    generator._settle(samples(0.25)[: WINDOW // 2], 1)  # half failed, but there are too few for a share
    generator._settle(samples(0.0), 1)
    with pytest.raises(TrainingStopped, match=r"--faults.max_failed_share 0.25: .* prompts failed"):
        generator._settle(samples(0.5), 1)
