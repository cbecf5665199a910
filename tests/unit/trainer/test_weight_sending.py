"""Sending weights from two ranks (the `cuda` backend's classes, over gloo) to two engines that may die."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from types import SimpleNamespace

import pytest
from marks import SLOW

from openrlhf_ktae.base.faults_config import FaultsConfig
from openrlhf_ktae.base.free_port import free_port

pytestmark = SLOW

MEETING = "a group is made"
SECONDS = 180  # for a busy machine; stuck collectives would take an hour
NAMES = ["0.weight", "0.bias", "1.weight", "1.bias"]


class StoreCommunicator:
    """Has the interface of vLLM's PyNcclCommunicator; waits for a dead peer until destroyed, or forever if `deaf`."""

    def __init__(self, address, port, rank, world_size, deaf=False):
        import torch

        self.store = torch.distributed.TCPStore(address, port, world_size, is_master=rank == 0)
        self.rank, self.others, self.count, self.destroyed, self.deaf = rank, world_size - 1, 0, False, deaf

    def broadcast(self, tensor, src, stream=None):
        import torch

        self.count += 1
        if self.rank == src:
            self.store.set(f"data{self.count}", torch.clone(tensor).contiguous().view(torch.uint8).numpy().tobytes())
        else:
            tensor.view(torch.uint8).copy_(
                torch.frombuffer(self.store.get(f"data{self.count}"), dtype=torch.uint8).view_as(
                    tensor.view(torch.uint8)
                )
            )
        self.store.add(f"took{self.count}", 1)
        while self.rank == src and self.store.add(f"took{self.count}", 0) <= self.others and not self.destroyed:
            time.sleep(0.02)

    def destroy(self):
        self.destroyed = not self.deaf


@pytest.fixture(scope="module")
def engine_class(ray_with_workers):
    """An engine without a model that sleeps like vLLM's and dies when it receives a given parameter."""
    from openrlhf_ktae.trainer.ray.retrying_rollouts import RetryingRollouts

    ray_with_workers.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import tests

    class Engine:
        uses_gpu = False

        async def __init__(self, number, enable_sleep_mode=False):
            self.llm = SimpleNamespace(errored=False, dead_error=None)
            self.number, self.weights, self.asleep, self.dies_at, self.group = number, {}, set(), None, None

        async def generate_responses(self, **call):
            assert not self.asleep, "part of the engine is asleep"
            return [dict(self.weights)]

        async def get_num_unfinished_requests(self):
            return 0 * len(self.weights)

        async def sleep(self, level=1):
            self.asleep = self.asleep or {"weights", "kv_cache"}

        async def wake_up(self, tags=("weights", "kv_cache")):
            self.asleep -= set(tags)

        async def sleeping(self):
            return sorted(self.asleep)

        async def die_at(self, name):
            self.dies_at = name

        async def hang_at(self, name):
            self.dies_at, self.hangs = name, True

        async def init_process_group(self, address, port, rank, world_size, name, backend, use_ray):
            if self.dies_at == MEETING:
                os._exit(1)
            self.group = await asyncio.to_thread(StoreCommunicator, address, port, rank, world_size)

        async def reset_prefix_cache(self):
            pass

        async def update_weight(self, name, dtype, shape, empty_cache):
            import torch

            await self.take(name)
            weight = torch.empty(shape, dtype=dtype)
            await asyncio.to_thread(self.group.broadcast, weight, 0)
            self.weights[name] = weight

        async def update_weight_cuda_ipc(self, name, dtype, shape, ipc_handles, empty_cache):
            await self.take(name)
            rebuild, arguments = ipc_handles[self.number]
            self.weights[name] = rebuild(*arguments).clone()

        async def take(self, name):
            assert "weights" not in self.asleep, "its weights are asleep"
            if name == self.dies_at and getattr(self, "hangs", False):
                await asyncio.Event().wait()
            if name == self.dies_at:
                os._exit(1)

    return ray_with_workers.remote(max_restarts=-1, num_cpus=0)(type("GuardedEngine", (RetryingRollouts, Engine), {}))


@pytest.fixture(scope="module")
def rank_class(ray_with_workers):
    from openrlhf_ktae.trainer.ray.ppo_actor import KTAEPolicyModelActor

    class Rank(KTAEPolicyModelActor):
        """A policy actor of the `cuda` backend with a two-layer model."""

        def __init__(self, rank, port, engines, stage=3):
            import deepspeed
            import torch
            from openrlhf.trainer.ray import ppo_actor as host

            from openrlhf_ktae.trainer.ray import weight_sending
            from openrlhf_ktae.trainer.ray.ppo_actor import KTAEActorPPOTrainer

            weight_sending.LEAVING_SECONDS = 15.0
            names = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": 2, "RANK": rank, "LOCAL_RANK": 0}
            os.environ.update({name: str(value) for name, value in names.items()})
            deepspeed.init_distributed("gloo")
            torch.manual_seed(0)
            layers = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 1))
            config = {
                "train_batch_size": 2,
                "zero_optimization": {"stage": stage},
                "zero_allow_untested_optimizer": True,
            }
            optimizer = torch.optim.AdamW(layers.parameters(), lr=0.1)
            model, *_ = deepspeed.initialize(model=layers, config=config, optimizer=optimizer)
            host.get_physical_gpu_id = lambda: rank
            host.stateless_init_process_group = lambda address, port, rank, world_size, device: StoreCommunicator(
                address, port, rank, world_size, self.deaf
            )
            made = self.trainer = KTAEActorPPOTrainer.__new__(KTAEActorPPOTrainer)
            made.args = SimpleNamespace(
                ds=SimpleNamespace(zero_stage=stage, tensor_parallel_size=1),
                vllm=SimpleNamespace(
                    enable_prefix_caching=True, num_engines=2, tensor_parallel_size=1, sync_backend="nccl"
                ),
            )
            self.strategy = made.strategy = SimpleNamespace(args=made.args)
            made.actor, made.vllm_engines, made.use_cuda_ipc = SimpleNamespace(model=model), engines, True
            made._watched = {}

        def ready(self):
            return True

        def use_group(self, deaf):
            self.trainer.use_cuda_ipc, self.deaf = False, deaf
            self.rejoin_engines()

        def train(self):
            import deepspeed

            parameters = dict(self.trainer.actor.model.module.named_parameters())
            with deepspeed.zero.GatheredParameters(list(parameters.values()), modifier_rank=0):
                for parameter in parameters.values():
                    parameter.data += 1.0
            with deepspeed.zero.GatheredParameters(list(parameters.values())):
                return {name: parameter.detach().clone() for name, parameter in parameters.items()}

    return ray_with_workers.remote(num_cpus=0)(Rank)


@pytest.fixture
def trainer(ray_with_workers, engine_class, rank_class):
    """The host's base trainer with two ranks, and two engines that sleep between steps."""
    from openrlhf_ktae.trainer.engines import EngineKeeper

    class Trainer(EngineKeeper):
        def __init__(self, ranks, engines):
            vllm, faults = SimpleNamespace(enable_sleep=True), SimpleNamespace(config=FaultsConfig(engine_restarts=4))
            self.args = SimpleNamespace(vllm=vllm, faults=faults)
            self.vllm_engines, self.actor_model_group, self.ranks, self.notes = engines, self, ranks, []
            self.record = SimpleNamespace(note=self.notes.append)

        def async_run_method(self, method_name):
            return [getattr(rank, method_name).remote() for rank in self.ranks]

        def train(self):
            return ray_with_workers.get(self.async_run_method("train"))[0]

        def engines_have(self, weights):
            got = ray_with_workers.get([engine.generate_responses.remote() for engine in self.vllm_engines])
            assert [sorted(one[0]) for one in got] == [sorted([*NAMES, "weights_step"])] * 2
            return all((one[0][name] == weights[name]).all() for one in got for name in NAMES)

    started = []

    def start():
        engines = [engine_class.remote(number, enable_sleep_mode=True) for number in range(2)]
        port = free_port()
        ranks = [rank_class.remote(rank, port, engines) for rank in range(2)]
        started.extend([*engines, *ranks])
        ray_with_workers.get([rank.ready.remote() for rank in ranks])
        return Trainer(ranks, engines)

    yield start
    for actor in started:
        ray_with_workers.kill(actor)


@pytest.mark.timeout(600)
def test_an_engine_that_dies_while_receiving_weights_still_gets_them(ray_with_workers, trainer):
    """By CUDA IPC, in a group, and while a group is made. Rank 1 never waits for rank 0, and no live engine is lost.

    The last communicator cannot be aborted: rank 0 soon ends, and the run with exit code 4.
    """
    from openrlhf_ktae.processes.deaths import died
    from openrlhf_ktae.trainer.engines import engine_died

    run = trainer()

    def all_engines(method, *args):
        return ray_with_workers.get([getattr(engine, method).remote(*args) for engine in run.vllm_engines])

    for way, dying, name in (
        ("IPC", 1, "1.weight"),
        ("group", 1, "0.bias"),
        ("group", 0, "0.weight"),
        ("as it is made", 1, MEETING),
        ("deaf", 1, "0.bias"),
    ):
        if name == MEETING:  # making a group waits for all members, minutes in NCCL
            all_engines("sleep")
            ray_with_workers.get(run.vllm_engines[dying].die_at.remote(name))
            began = time.monotonic()
            with pytest.raises(ray_with_workers.exceptions.RayError) as end:
                ray_with_workers.get([rank.use_group.remote(False) for rank in run.ranks])
            assert engine_died(end.value, run.vllm_engines), "exit code 4 at startup, later a restart"
            assert time.monotonic() - began < 60
            weights = run.train()
            run.broadcast_to_vllm()
            all_engines("wake_up")
            assert run.engines_have(weights)
            continue
        if way != "IPC":
            ray_with_workers.get([rank.use_group.remote(way == "deaf") for rank in run.ranks])
        for death in (False, True):
            all_engines("sleep")
            weights, restarts, began = run.train(), run.engine_restarts, time.monotonic()
            if death:
                ray_with_workers.get(run.vllm_engines[dying].die_at.remote(name))
            if death and way == "deaf":
                with pytest.raises(ray_with_workers.exceptions.RayActorError) as end:
                    run.broadcast_to_vllm()
                assert died(end.value)
            else:
                run.broadcast_to_vllm()
                assert all_engines("sleeping") == [["kv_cache"]] * 2, "a restarted engine must sleep like the other"
                all_engines("wake_up")
                assert run.engines_have(weights), way
            assert time.monotonic() - began < SECONDS
            assert run.engine_restarts == restarts + (death and way != "deaf")
            print(way, death, time.monotonic() - began)
    assert len(run.notes) == 4


@pytest.mark.timeout(120)
def test_an_engine_stuck_after_anothers_death_is_restarted(ray_with_workers, engine_class, monkeypatch):
    from openrlhf_ktae.trainer.engines import engine_died, have_weights
    from openrlhf_ktae.trainer.ray import weight_sending

    monkeypatch.setattr(weight_sending, "STUCK_SECONDS", 2.0)
    engines = [engine_class.remote(number) for number in range(2)]
    ray_with_workers.get([engines[0].hang_at.remote("w"), engines[1].die_at.remote("w")])
    with weight_sending.Sending(engines, {}) as sending:
        sending.tell("update_weight", "w", None, None, False)
        sending.received()
    assert engine_died(sending.lost, engines)
    assert not have_weights(engines), "both engines must have been restarted"
    for engine in engines:
        ray_with_workers.kill(engine)
