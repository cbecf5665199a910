"""Restarted engines, as real actors of which some die: who sends weights, and when an engine may generate."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from types import SimpleNamespace

import pytest
from marks import SLOW

from openrlhf_ktae.base.faults_config import FaultsConfig

pytestmark = SLOW


@pytest.fixture(scope="module")
def engine_class(ray_with_workers):
    """An engine without a model that remembers the weights it received until its process dies."""
    from openrlhf_ktae.trainer.ray.retrying_rollouts import RetryingRollouts

    class EngineDeadError(RuntimeError):
        """Named like vLLM's error."""

    class Core:
        def __init__(self):
            self.errored, self.dead_error = False, EngineDeadError("the core is gone")

    class Engine:
        uses_gpu = False

        async def __init__(self):
            self.llm, self.weights, self.group = Core(), 0, 0

        async def generate_responses(self, **call):
            if self.llm.errored:
                raise self.llm.dead_error
            return [{"weights": self.weights} for _ in range(call["num_samples"])]

        async def receive(self, weights, group):
            if group != self.group:
                raise RuntimeError("not in the group")
            if self.llm.errored:
                raise self.llm.dead_error
            self.weights = weights

        async def join(self, group):
            self.group = group

        async def break_core(self):
            self.llm.errored = True

        async def pid(self):
            return os.getpid()

    made = type("Guarded", (RetryingRollouts, Engine), {})
    return ray_with_workers.remote(max_restarts=-1, num_cpus=0)(made)


@pytest.fixture(scope="module")
def both(ray_with_workers, engine_class):
    return [engine_class.remote() for _ in range(2)]


@pytest.fixture
def engines(ray_with_workers, both):
    """Both engines, reset instead of restarted, since starting one takes seconds."""
    from openrlhf_ktae.trainer.engines import have_weights

    have_weights(both)
    ray_with_workers.get(
        [call for engine in both for call in (engine.join.remote(0), engine.confirm_weights.remote(0))]
    )
    return both


@pytest.fixture
def trainer(ray_with_workers, engines, monkeypatch):
    """The host's base trainer; its ranks send a number as weights and call `during` while sending."""
    from openrlhf.trainer.ppo_trainer import BasePPOTrainer

    from openrlhf_ktae.trainer.engines import EngineKeeper

    class Trainer(EngineKeeper):
        def __init__(self):
            faults = SimpleNamespace(config=FaultsConfig(engine_restarts=2))
            self.args = SimpleNamespace(faults=faults)
            self.vllm_engines, self.actor_model_group = engines, self
            self.notes, self.group, self.version, self.during = [], 0, 0, []
            self.record = SimpleNamespace(note=self.notes.append)

        def async_run_method(self, method_name):
            assert method_name == "rejoin_engines"
            self.group += 1
            return [engine.join.remote(self.group) for engine in engines]

    def send(self):
        for act in self.during[:1]:
            self.during = self.during[1:]
            act()
        ray_with_workers.get([engine.receive.remote(self.version, self.group) for engine in self.vllm_engines])

    monkeypatch.setattr(BasePPOTrainer, "broadcast_to_vllm", send)
    return Trainer()


def die(ray_with_workers, engine):
    from ray.exceptions import RayActorError

    os.kill(ray_with_workers.get(engine.pid.remote()), signal.SIGKILL)
    while True:  # until Ray has noticed
        try:
            return ray_with_workers.get(engine.pid.remote())
        except RayActorError:
            continue


def generated(ray_with_workers, engine):
    return ray_with_workers.get(engine.generate_responses.remote(prompt="p", num_samples=1))[0]["weights"]


def test_a_restarted_engine_generates_only_with_current_weights(ray_with_workers, engines, trainer):
    from openrlhf_ktae.trainer.engines import engine_died, wait_for_weights

    trainer.version = 1
    trainer.broadcast_to_vllm()
    assert [generated(ray_with_workers, engine) for engine in engines] == [1, 1]
    die(ray_with_workers, engines[1])
    with pytest.raises(Exception, match="waits for the current weights") as refusal:
        generated(ray_with_workers, engines[1])
    assert engine_died(refusal.value)
    assert not any("restarted" in note for note in trainer.notes)
    trainer.send_weights("somebody noticed")
    wait_for_weights(engines)
    assert [generated(ray_with_workers, engine) for engine in engines] == [1, 1]
    assert "1 of --faults.engine_restarts 2" in trainer.notes[0]
    trainer.send_weights("somebody else noticed, later")
    assert len(trainer.notes) == trainer.group == 1, "all engines already had the weights"


def test_engines_that_die_before_and_during_sending_get_the_weights(ray_with_workers, engines, trainer):
    trainer.version = 5
    ray_with_workers.get(engines[0].break_core.remote())
    trainer.during = [lambda: ray_with_workers.get(engines[1].break_core.remote())]
    trainer.broadcast_to_vllm()
    assert [generated(ray_with_workers, engine) for engine in engines] == [5, 5]
    assert trainer.engine_restarts == 2
    assert len(trainer.notes) == 1, "one broadcast, in two tries"


def test_engines_that_die_too_often_end_the_run(ray_with_workers, engines, trainer):
    from openrlhf_ktae.processes.deaths import died
    from openrlhf_ktae.trainer.engines import EnginesLost

    trainer.engine_restarts = 2
    ray_with_workers.get(engines[0].break_core.remote())
    with pytest.raises(EnginesLost, match=r"--faults.engine_restarts 2: an engine died again") as end:
        trainer.broadcast_to_vllm()
    assert died(end.value)


@pytest.mark.timeout(60)
def test_lost_engines_are_not_waited_for_again(ray_with_workers, engines, trainer):
    """Otherwise the asynchronous trainer, which retries as long as engines may return, would never end."""
    from openrlhf_ktae.trainer.engines import EnginesLost, engine_died

    trainer.engine_restarts = 2
    trainer.during = [lambda: ray_with_workers.get(engines[1].break_core.remote())]
    with pytest.raises(EnginesLost) as end:
        trainer.broadcast_to_vllm()
    assert engine_died(end.value.__cause__)
    assert not engine_died(end.value)


@pytest.mark.timeout(60)
def test_a_rank_that_dies_while_sending_ends_the_run(ray_with_workers, engines, trainer):
    """At once, and without restarting any engine."""

    class Rank:
        def send(self):
            os.kill(os.getpid(), signal.SIGKILL)

    rank = ray_with_workers.remote(num_cpus=0)(Rank).remote()
    trainer.during = [lambda: ray_with_workers.get(rank.send.remote())]
    with pytest.raises(ray_with_workers.exceptions.RayActorError):
        trainer.broadcast_to_vllm()
    assert (trainer.engine_restarts, trainer.group, trainer.notes) == (0, 0, [])


def test_other_sending_errors_are_not_retried(engines, trainer):
    def fail():
        raise ValueError("a parameter has another dtype")

    trainer.during = [fail]
    with pytest.raises(ValueError, match="dtype"):
        trainer.broadcast_to_vllm()


def test_a_permanently_dead_engine_ends_the_run(ray_with_workers):
    from openrlhf_ktae.trainer.engines import EnginesLost, have_weights

    class Engine:
        async def answer(self):
            return True

        async def reload(self):
            return True

    engine = ray_with_workers.remote(num_cpus=0)(Engine).remote()
    assert have_weights([engine])
    ray_with_workers.kill(engine)
    with pytest.raises(ray_with_workers.exceptions.RayActorError):
        while True:  # the kill takes effect some time after the call
            ray_with_workers.get(engine.answer.remote())
    with pytest.raises(EnginesLost, match="does not come back"):
        have_weights([engine])


def test_the_queue_serves_weight_requests_and_stops_on_an_order_to_end(host, tmp_path, monkeypatch):
    from queue import Queue

    from openrlhf_ktae.processes.ending import EndOrder, GivenUp
    from openrlhf_ktae.trainer import engines
    from openrlhf_ktae.trainer.engines import AnsweringQueue, WeightsWanted

    queue, answered = Queue(maxsize=4), []
    for item in (WeightsWanted("first"), WeightsWanted("second"), "rollouts", "done"):
        queue.put(item)
    order = EndOrder(tmp_path)
    answering = AnsweringQueue(queue, answered.append, order)
    assert answering.get(block=True) == "rollouts"
    assert answered == ["first", "second"]
    assert answering.qsize() == 1
    assert answering.get(block=True) == "done"
    monkeypatch.setattr(engines, "POLL_SECONDS", 0.05)
    threading.Timer(0.3, queue.put, ["late"]).start()
    assert answering.get(block=True) == "late"
    threading.Timer(0.3, order.ask).start()
    with pytest.raises(GivenUp):
        answering.get(block=True)


@pytest.fixture
def generator(ray_with_workers, root):
    """Return a generator whose only engine never answers."""
    from openrlhf_ktae.trainer.ppo_utils.failed_rollouts import SurvivingGenerator

    class Waits:
        async def get_num_unfinished_requests(self):
            return 0

        async def generate_responses(self, **_):
            await asyncio.Event().wait()

    engine = ray_with_workers.remote(max_restarts=-1, num_cpus=0)(Waits).remote()
    args = SimpleNamespace(
        faults=SimpleNamespace(config=FaultsConfig()),
        rollout=SimpleNamespace(n_samples_per_prompt=2),
        vllm=SimpleNamespace(enable_sleep=False),
        algo=SimpleNamespace(advantage=SimpleNamespace(is_correction_level="off")),
    )
    made = SurvivingGenerator(SimpleNamespace(args=args), [], [], None, [engine])
    revived = []
    made.send_weights = revived.append
    yield made
    assert not revived
    ray_with_workers.kill(engine)


def test_an_order_to_end_interrupts_a_long_generation(generator, tmp_path):
    from openrlhf_ktae.processes.ending import EndOrder, GivenUp

    order = generator.end_order = EndOrder(tmp_path)
    threading.Timer(1.0, order.ask).start()
    started = time.monotonic()
    for _ in range(2):  # the second call must not even start
        with pytest.raises(GivenUp):
            generator._generate_vllm(iter([(["d"], ["p"], ["l"], [None])]), 1, False)
        assert 0.5 < time.monotonic() - started < 30


class Recorder:
    """Stand-in for an actor of an asynchronous run; it logs calls and behaves as given."""

    def __init__(self, ray, log, **methods):
        self._ray, self._log, self._methods = ray, log, methods

    def __getattr__(self, name):
        def remote(*args):
            self._log.append((name, *args))
            return self._methods.get(name, lambda *_: self._ray.put(None))(*args)

        return SimpleNamespace(remote=remote)


@pytest.fixture
def asynchronous(ray_with_workers, tmp_path, monkeypatch):
    """An asynchronous run whose other two actors are stand-ins and whose training loop does nothing."""
    from openrlhf_ktae.trainer import ppo_trainer_async as ours

    log = []
    monkeypatch.setattr(ours._HostTrainer, "fit", lambda self: log.append(("training",)))
    made = ours.KTAEPPOTrainerAsync.__new__(ours.KTAEPPOTrainerAsync)
    made.args = SimpleNamespace(
        run=SimpleNamespace(dir=str(tmp_path), eval_edges=True, resume_from=None),
        faults=SimpleNamespace(config=FaultsConfig(engine_restarts=0)),
        train=SimpleNamespace(async_queue_size=1, max_staleness=None),
    )
    made._queue_size = 1

    def with_evaluation(*outcomes):
        ways = iter(outcomes)
        made.generator_actor = Recorder(
            ray_with_workers,
            log,
            about_prompts=lambda: ray_with_workers.put((8, [])),
            get_stop_reason=lambda: ray_with_workers.put(""),
            evaluate_edge=lambda: next(ways)(),
        )
        made.trainer_actor = Recorder(ray_with_workers, log)
        made.fit()
        return log

    return with_evaluation


def raised(ray_with_workers, error):
    @ray_with_workers.remote(num_cpus=0)
    def work():
        raise error

    return work.remote


@pytest.mark.parametrize("when", ["before", "after"])
def test_too_many_failed_rollouts_in_an_evaluation_stop_an_asynchronous_run(when, ray_with_workers, asynchronous):
    from openrlhf_ktae.base.errors import TrainingStopped

    stops = raised(ray_with_workers, TrainingStopped("too many failed"))
    log = asynchronous(stops) if when == "before" else asynchronous(lambda: ray_with_workers.put({"eval": 1.0}), stops)
    assert ("record_stop", "too many failed") in log
    assert (("training",) in log) == (when == "after")
    assert log[-1] == ("close_trackers",), "the run must end normally, which saves the model"


def test_an_order_during_the_last_evaluation_aborts_it(ray_with_workers, asynchronous, tmp_path):
    from openrlhf_ktae.processes.ending import EndOrder

    @ray_with_workers.remote(num_cpus=0)
    def long():
        time.sleep(60)

    def asked():
        EndOrder(tmp_path).ask()
        return long.remote()

    started = time.monotonic()
    log = asynchronous(lambda: ray_with_workers.put({"eval": 1.0}), asked)
    assert time.monotonic() - started < 30
    assert ("abort_evaluation",) in log
    assert [entry[0] for entry in log].count("record_edge") == 1
