"""A response that neither ended nor reached its limit is a failed rollout in every agent and evaluation."""

from __future__ import annotations

import asyncio

import pytest

from openrlhf_ktae.base.cut_off import CutOff
from openrlhf_ktae.processes.deaths import in_one_line

CUT_OFF = ["abort", "error", "repetition", None]


def request_output(reason, ids=(5, 6), finished=True):
    from vllm.outputs import CompletionOutput, RequestOutput

    one = CompletionOutput(0, "7", list(ids), None, None, finish_reason=reason)
    return RequestOutput("r", None, [1], None, [one], finished)


class Core:
    """Stand-in for vLLM's engine below the host's actor; each request ends with the next of `reasons`."""

    errored = False
    dead_error = RuntimeError("the core is gone")

    def __init__(self, *reasons):
        self.reasons = list(reasons)

    async def generate(self, prompt, sampling_params, request_id):
        yield request_output(None, (5,), finished=False)
        if (reason := self.reasons.pop(0) if self.reasons else "stop") != "nothing":
            yield request_output(reason)

    async def never(self, *args, **kwargs):
        await asyncio.Event().wait()


class Swallowing:
    """An agent that turns every error into a wrong answer."""

    async def execute(self, llm_engine, sampling_params, **_):
        try:
            await llm_engine.generate([1], sampling_params)
        except Exception:
            return {"reward": 0.0, "scores": 0.0}
        return {"reward": 1.0, "scores": 1.0}


class Delegating(Swallowing):
    """Also swallows errors, and calls the engine below the actor in a task of its own."""

    async def execute(self, llm_engine, sampling_params, **_):
        async def below():
            return [output async for output in llm_engine.llm.generate([1], sampling_params, "r")]

        await asyncio.gather(asyncio.create_task(below()), return_exceptions=True)
        return {"reward": 0.0, "scores": 0.0}


def turns():
    import torch
    from openrlhf.utils.agent import AgentInstanceBase, MultiTurnAgentExecutor

    class Twice(AgentInstanceBase):
        def __init__(self):
            self.turn = 0

        async def step(self, states, **_):
            self.turn += 1
            done = self.turn == 2
            return {"rewards": torch.tensor(1.0), "environment_feedback": "", "done": done}

    return MultiTurnAgentExecutor(Twice)


def single():
    from openrlhf.utils.agent import SingleTurnAgentExecutor

    return SingleTurnAgentExecutor()


@pytest.fixture
def rollouts(host, monkeypatch, root):
    """Return rollouts of one prompt from our engine actor, given an agent and a core."""
    from transformers import AutoTokenizer
    from vllm import SamplingParams

    from openrlhf_ktae.trainer.ray import retrying_rollouts as in_engine
    from openrlhf_ktae.trainer.ray import vllm_engine

    tokenizer = AutoTokenizer.from_pretrained(root / "examples/quickstart/model")
    monkeypatch.setattr(vllm_engine, "leave_interrupts_to_the_driver", lambda: None)
    monkeypatch.setattr(in_engine, "DEATH_SECONDS", 0.01)
    monkeypatch.setenv(in_engine.RETRIES_VARIABLE, "1")

    async def init(self, agent, core, **_):
        self.executor, self.llm, self._mm_pad_token_ids = agent, core, None

    monkeypatch.setattr(vllm_engine._HostRolloutActor, "__init__", init)
    for name in vllm_engine.ANSWERED_BY_THE_CORE:
        monkeypatch.setattr(Core, name, Core.never, raising=False)
    guarded = type("Guarded", (in_engine.RetryingRollouts, vllm_engine.KTAERolloutActor), {})

    def ask(agent, core, samples=1):
        async def run():
            made = guarded.__new__(guarded)
            await made.__init__(agent, core)
            return await made.generate_responses(
                prompt="compute 3 + 4 :",
                label="7",
                sampling_params=SamplingParams(max_tokens=8),
                max_length=32,
                hf_tokenizer=tokenizer,
                num_samples=samples,
                images=None,
            )

        return asyncio.run(run())

    return ask


@pytest.mark.parametrize("reason", [*CUT_OFF, "nothing"])
@pytest.mark.parametrize(
    ("agent", "before"),
    [(single, 0), (turns, 0), (turns, 1), (Swallowing, 0), (Delegating, 0)],
    ids=["one turn", "first turn", "last turn", "swallows", "delegates"],
)
def test_a_rollout_with_a_cut_off_response_is_retried_then_fails(agent, before, reason, rollouts):
    core = Core(*["stop"] * before, reason, *["stop"] * before, reason)
    (answer,) = rollouts(agent(), core)
    assert "CutOff" in answer["failure"]
    assert not core.reasons, "not retried"
    assert answer["action_ranges"][0][0] == answer["action_ranges"][0][1]


@pytest.mark.parametrize("reason", ["stop", "length"])
@pytest.mark.parametrize("agent", [single, turns])
def test_complete_answers_are_the_hosts(agent, reason, rollouts):
    (answer,) = rollouts(agent(), Core(reason, reason))
    assert "failure" not in answer
    assert answer["truncated"] == (reason == "length")


def test_a_successful_retry_counts(rollouts):
    for agent in (Swallowing(), single()):
        assert "failure" not in rollouts(agent, Core("abort"))[0]


def test_a_core_that_dies_after_cutting_off_responses_counts_as_dead(rollouts, monkeypatch):
    core = Core("abort")
    core.errored = True
    with pytest.raises(RuntimeError, match="the core is gone"):
        rollouts(single(), core)


class Engine:
    """An evaluation engine that cuts off the first `bad` answers to each request."""

    capacity = 2

    def __init__(self, bad, reason):
        self.bad, self.reason, self.asked, self.running = bad, reason, {}, []

    def submit(self, request):
        self.asked[request.key] = self.asked.get(request.key, 0) + 1
        self.running.append(request.key)

    def finished(self):
        from openrlhf_ktae.evaluation.generation import _completion

        keys, self.running = self.running, []
        return [
            _completion(key, request_output(self.reason if self.asked[key] <= self.bad else "stop")) for key in keys
        ]


@pytest.mark.parametrize("reason", CUT_OFF)
def test_an_evaluation_retries_and_stores_no_partial_answer(reason, host):
    from openrlhf_ktae.evaluation.generation import Request, generate

    requests = [Request(("b", str(number), 0), [1]) for number in range(5)]
    engine = Engine(2, reason)
    found = list(generate(engine, requests))
    assert sorted(one.key for one in found) == [one.key for one in requests]
    assert set(engine.asked.values()) == {3}
    assert not any(one.truncated or one.cut_off for one in found)
    with pytest.raises(CutOff, match="3 times for the problem"):
        list(generate(Engine(3, reason), requests))


def test_an_evaluation_through_ray_retries_too(host, monkeypatch):
    """The engine's actor raises and Ray wraps the error."""
    import ray
    from ray.exceptions import RayTaskError

    from openrlhf_ktae.evaluation.generation import RayEngines

    error = RayTaskError("generate", "a traceback", CutOff("after 2 tokens")).as_instanceof_cause()

    def get(ref):
        raise error

    monkeypatch.setattr(ray, "wait", lambda refs, **_: (list(refs), []))
    monkeypatch.setattr(ray, "get", get)
    engines = RayEngines.__new__(RayEngines)
    engines._running, engines._loads = {"ref": (("b", "1", 0), 0)}, [1]
    (one,) = engines.finished()
    assert one.cut_off and "after 2 tokens" in in_one_line(error)


def test_the_command_exits_with_3_and_says_how_to_resume(monkeypatch, capsys):
    from openrlhf_ktae.cli import eval as command

    def run(argv):
        raise CutOff("vLLM cut off a response after 2 tokens (abort)")

    monkeypatch.setattr(command, "run", run)
    assert command.main([]) == 3
    assert "run the same command again to resume" in capsys.readouterr().err


def test_only_finished_outputs_are_checked(rollouts):
    core = Core()
    seen = []

    class Streaming:
        async def execute(self, llm_engine, sampling_params, **_):
            seen.extend([one.finished async for one in llm_engine.llm.generate([1], sampling_params, "r")])
            return {"reward": 1.0, "scores": 1.0}

    assert rollouts(Streaming(), core) == [{"reward": 1.0, "scores": 1.0, "weights_step": 0}]
    assert seen == [False, True]
