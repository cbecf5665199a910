"""A held engine schedules no request until all have arrived, but does not wait for failed ones."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace

import pytest


@pytest.fixture
def engine(host):
    """Our engine actor without a model."""
    from openrlhf_ktae.trainer.ray.vllm_engine import KTAERolloutActor

    made = KTAERolloutActor.__new__(KTAERolloutActor)
    made.calls, made.waiting = [], 0

    async def pause(**settings):
        made.calls.append(("pause", settings))

    async def resume():
        made.calls.append(("resume", made.waiting))

    made.llm = SimpleNamespace(
        pause_generation=pause,
        resume_generation=resume,
        output_processor=SimpleNamespace(get_num_unfinished_requests=lambda: made.waiting),
    )
    return made


def test_the_engine_resumes_when_the_last_request_arrives(engine):
    async def requests():
        for _ in range(3):
            await asyncio.sleep(0.05)
            engine.waiting += 1

    async def run():
        await engine.hold()
        await asyncio.gather(requests(), engine.release(3))

    asyncio.run(run())
    assert engine.calls == [("pause", {"mode": "keep", "clear_cache": False}), ("resume", 3)]


def test_the_engine_does_not_wait_for_a_failed_request(engine, monkeypatch):
    monkeypatch.setattr("openrlhf_ktae.trainer.ray.vllm_engine.ARRIVAL_SECONDS", 0.2)
    engine.waiting = 2
    started = time.monotonic()
    asyncio.run(engine.release(3))
    assert 0.2 <= time.monotonic() - started < 2
    assert engine.calls == [("resume", 2)]


def test_each_sample_of_a_seeded_prompt_has_its_own_seed(engine, monkeypatch):
    from openrlhf_ktae.trainer.ppo_utils.seeded_sampling import SEED_KEY

    seeds = []

    class Executor:
        async def execute(self, sampling_params, **_):
            seeds.append(sampling_params.seed)
            return {"n": sampling_params.seed}

    engine.executor = Executor()
    params = SimpleNamespace(seed=11)
    request = {"prompt": "p", "label": "l", "max_length": 8, "hf_tokenizer": None}
    answers = asyncio.run(engine.generate_responses(**request, sampling_params=params, num_samples=4))
    assert len(set(seeds)) == 4
    assert [answer["n"] for answer in answers] == seeds
    assert {answer[SEED_KEY] for answer in answers} == {11}
    assert params.seed == 11
    first, params.seed = list(seeds), None
    answers = asyncio.run(engine.generate_responses(**request, sampling_params=params, num_samples=4))
    assert seeds == [*first, None, None, None, None]
    assert all(SEED_KEY not in answer for answer in answers)


def test_calls_to_a_dead_core_raise(host, monkeypatch):
    """vLLM itself would wait forever, as when its core is killed during `hold`."""
    from openrlhf_ktae.trainer.ray import vllm_engine

    monkeypatch.setattr(vllm_engine, "DEATH_POLL_SECONDS", 0.05)
    llm = SimpleNamespace(errored=False, dead_error=RuntimeError("the core is dead"))

    async def never():
        await asyncio.Event().wait()

    async def run():
        asked = asyncio.ensure_future(vllm_engine.unless_dead(llm, never)())
        await asyncio.sleep(0.2)
        assert not asked.done(), "a live core may take its time"
        llm.errored = True
        await asyncio.wait_for(asked, 10)

    with pytest.raises(RuntimeError, match="the core is dead"):
        asyncio.run(run())


def test_answers_of_the_core_are_returned(host):
    from openrlhf_ktae.trainer.ray.vllm_engine import unless_dead

    async def answers(first, second):
        return first + second

    async def fails():
        raise ValueError("its own error")

    llm = SimpleNamespace(errored=False)
    assert asyncio.run(unless_dead(llm, answers)(1, second=2)) == 3
    with pytest.raises(ValueError, match="its own"):
        asyncio.run(unless_dead(llm, fails)())
