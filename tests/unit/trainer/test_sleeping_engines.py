"""Engines that sleep between calls (`--vllm.enable_sleep`) and die asleep, while going to sleep, or awake."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest
from marks import SLOW

from openrlhf_ktae.base.faults_config import FaultsConfig

pytestmark = SLOW

PARTS = {"weights", "kv_cache"}


@pytest.fixture(scope="module")
def engine_class(ray_with_workers):
    """An engine that sleeps like vLLM's executor (`Executor.sleep`, `wake_up`) and returns its weights' version."""
    from openrlhf_ktae.trainer.ray.retrying_rollouts import RetryingRollouts

    class Engine:
        uses_gpu = False

        async def __init__(self, enable_sleep_mode):
            self.llm = SimpleNamespace(errored=False, dead_error=None)
            self.asleep, self.version, self.dies = set(), 0, None

        def maybe_die(self, call):
            if not self.llm.errored and self.dies == call:  # like vLLM's, the calls fail until a model is loaded
                os._exit(1)

        async def die_in(self, call):
            self.dies = call
            self.maybe_die("at once")

        async def sleep(self, level=1):
            self.maybe_die("sleep")
            self.asleep = self.asleep or {"weights", "kv_cache"}

        async def wake_up(self, tags=("weights", "kv_cache")):
            self.maybe_die("wake_up")
            self.asleep -= set(tags)

        async def sleeping(self):
            return self.asleep

        async def as_at_the_start(self):
            self.asleep, self.version, self.dies = {"weights", "kv_cache"}, 0, None
            await self.confirm_weights(0)

        async def receive(self, version):
            assert "weights" not in self.asleep, "its weights are asleep"
            self.version = version

        async def get_num_unfinished_requests(self):
            return 0 * self.llm.errored

        async def generate_responses(self, prompt, label, num_samples, **_):
            assert not self.asleep, "part of the engine is asleep"
            self.maybe_die("generate_responses")
            answer = {"prompt": prompt, "label": label, "observation_tokens": [5, 6, 7], "action_ranges": [(2, 3)]}
            return [{**answer, "reward": float(self.version), "rollout_log_probs": None} for _ in range(num_samples)]

    return ray_with_workers.remote(max_restarts=-1, num_cpus=0)(type("GuardedEngine", (RetryingRollouts, Engine), {}))


@pytest.fixture(scope="module")
def both(engine_class):
    return [engine_class.remote(enable_sleep_mode=True) for _ in range(2)]


@pytest.fixture
def run(ray_with_workers, both):
    """Trainer, generator and two sleeping engines of a synchronous run after its third step."""
    from openrlhf_ktae.trainer.engines import EngineKeeper, have_weights
    from openrlhf_ktae.trainer.ppo_utils.failed_rollouts import SurvivingGenerator

    engines = both
    have_weights(engines)
    ray_with_workers.get([engine.as_at_the_start.remote() for engine in engines])
    args = SimpleNamespace(
        faults=SimpleNamespace(config=FaultsConfig(engine_restarts=2)),
        vllm=SimpleNamespace(enable_sleep=True),
        train=SimpleNamespace(async_enable=False),
        rollout=SimpleNamespace(batch_size=4, n_samples_per_prompt=2, vllm_generate_batch_size=None),
        algo=SimpleNamespace(dynamic_filtering_enable=False, advantage=SimpleNamespace(is_correction_level="off")),
    )

    class Trainer(EngineKeeper):
        version = 3

        def __init__(self):
            self.args, self.vllm_engines, self.actor_model_group, self.notes = args, engines, self, []
            self.record = SimpleNamespace(note=self.notes.append)

        def async_run_method(self, method_name):
            return [engine.receive.remote(self.version) for engine in engines if method_name == "broadcast_to_vllm"]

    items = [(["d"], [f"p{number}"], ["l"], [None]) for number in range(4)]
    generator = SurvivingGenerator(SimpleNamespace(args=args), items, items, None, engines)
    trainer = Trainer()
    generator.send_weights = trainer.send_weights
    trainer.broadcast_to_vllm()

    def asleep():
        return ray_with_workers.get([engine.sleeping.remote() for engine in engines])

    return SimpleNamespace(trainer=trainer, generator=generator, engines=engines, asleep=asleep, args=args)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("evaluation", [False, True], ids=["a step", "an evaluation"])
@pytest.mark.parametrize("call", ["at once", "wake_up", "generate_responses"])
def test_an_engine_that_dies_asleep_or_awake_generates_with_current_weights(call, evaluation, run, ray_with_workers):
    """All engines must sleep again before the trainer continues, which needs their memory."""
    from ray.exceptions import RayActorError

    assert run.asleep() == [{"kv_cache"}] * 2
    if call == "at once":
        with pytest.raises(RayActorError):
            ray_with_workers.get(run.engines[1].die_in.remote(call))
    else:
        ray_with_workers.get(run.engines[1].die_in.remote(call))
    generate = run.generator.generate_eval_samples if evaluation else lambda: run.generator.generate_samples()[0]
    samples = generate()
    assert [float(sample.rewards[0]) for sample in samples] == [3.0] * 8
    assert run.asleep() == [PARTS] * 2
    assert run.trainer.engine_restarts == 1
    assert run.args.vllm.enable_sleep, "the shared options must be restored"


@pytest.mark.timeout(120)
def test_an_engine_that_dies_while_going_to_sleep_costs_no_rollout(run, ray_with_workers):
    ray_with_workers.get(run.engines[0].die_in.remote("sleep"))
    samples, _, drawn, _ = run.generator.generate_samples()
    assert (len(samples), drawn, run.trainer.engine_restarts) == (8, 4, 0)
    run.trainer.version = 4
    run.trainer.broadcast_to_vllm()
    assert run.trainer.engine_restarts == 1
    assert run.asleep() == [{"kv_cache"}] * 2, "the restarted engine must sleep like the other"
    run.generator.prompts_dataloader = run.generator.prompts_dataloader[:4]
    assert [float(sample.rewards[0]) for sample in run.generator.generate_eval_samples()] == [4.0] * 8


@pytest.mark.timeout(60)
def test_engines_sleep_after_an_error(run):
    def fails(*_, **__):
        raise ValueError("a defect")

    run.generator._dispatch_prompts_to_vllm = fails
    with pytest.raises(ValueError, match="a defect"):
        run.generator.generate_samples()
    assert run.asleep() == [PARTS] * 2
