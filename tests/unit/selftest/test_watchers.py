"""Engine and trainer weights are compared per tensor, whatever the engine's layout; engines die on request."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from openrlhf_ktae.selftest import watchers
from openrlhf_ktae.selftest.watchers import (
    ASLEEP,
    FILE,
    GENERATING,
    ORDER_FILE,
    SYNCHRONISING,
    VARIABLE,
    WatchedEngine,
    WatchedUpdates,
    different,
    engine_sums,
    trainer_sums,
    worker_sums,
)

LAYER = "model.layers.0"


def parameters_of(trainer):
    """Return the weights as two vLLM workers shard them; parameters know their sharded axis."""
    q, k, v, gate, up, down, norm = trainer.values()
    workers = []
    for half in (0, 1):

        def part(tensor, axis=0, half=half):
            return tensor.chunk(2, axis)[half]

        qkv = torch.cat([part(q), part(k), part(v)])
        both = torch.cat([part(gate), part(up)])
        laid = {
            f"{LAYER}.self_attn.qkv_proj.weight": (qkv, {"output_dim": 0, "input_dim": 1}),
            f"{LAYER}.mlp.gate_up_proj.weight": (both, {"output_dim": 0, "input_dim": 1}),
            f"{LAYER}.mlp.down_proj.weight": (part(down, 1), {"output_dim": 0, "input_dim": 1}),
            f"{LAYER}.input_layernorm.weight": (norm, {}),
        }
        workers.append(worker({name: with_axes(tensor, axes) for name, (tensor, axes) in laid.items()}))
    return workers


def with_axes(tensor, axes):
    parameter = torch.nn.Parameter(tensor)
    vars(parameter).update(axes)
    return parameter


def worker(parameters):
    model = SimpleNamespace(named_parameters=parameters.items)
    return SimpleNamespace(model_runner=SimpleNamespace(model=model))


@pytest.fixture
def trainer():
    generator = torch.Generator().manual_seed(0)
    sizes = {
        "self_attn.q_proj.weight": (8, 8),
        "self_attn.k_proj.weight": (4, 8),
        "self_attn.v_proj.weight": (4, 8),
        "mlp.gate_proj.weight": (16, 8),
        "mlp.up_proj.weight": (16, 8),
        "mlp.down_proj.weight": (8, 16),
        "input_layernorm.weight": (8,),
    }
    return {f"{LAYER}.{name}": torch.randn(size, generator=generator).bfloat16() for name, size in sizes.items()}


def sums_of(trainer):
    model = SimpleNamespace(named_parameters=lambda: [(n, torch.nn.Parameter(t)) for n, t in trainer.items()])
    return trainer_sums(model, sharded=False, rank=0)


def test_equal_weights_are_equal_in_any_layout(trainer):
    theirs = engine_sums([worker_sums(one) for one in parameters_of(trainer)])
    assert len(theirs) == 4
    assert different(sums_of(trainer), theirs) == []


@pytest.mark.parametrize("name", ["self_attn.k_proj.weight", "mlp.down_proj.weight", "input_layernorm.weight"])
def test_a_single_changed_number_is_found(trainer, name):
    theirs = engine_sums([worker_sums(one) for one in parameters_of(trainer)])
    trainer[f"{LAYER}.{name}"].flatten()[3].mul_(1.01)
    merged = watchers.engine_name(f"{LAYER}.{name}")
    assert different(sums_of(trainer), theirs) == [merged]


def test_swapped_signs_missing_names_and_nan_are_found(trainer):
    mine = sums_of(trainer)
    name = f"{LAYER}.input_layernorm.weight"
    assert different(mine, {**mine, name: (-mine[name][0], mine[name][1])}) == [name]
    assert different(mine, {other: value for other, value in mine.items() if other != name}) == [name]
    assert different(mine, {**mine, name: (float("nan"), float("nan"))}) == [name]


def rows(folder):
    return [json.loads(line) for line in (folder / FILE).read_text().splitlines()]


def test_log_probabilities_are_compared_on_action_tokens(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(tmp_path))

    class Loop:
        def training_step(self, experience, kl):
            return kl

    class Watched(WatchedUpdates, Loop):
        pass

    engine = torch.tensor([[-1.0, -2.0, 0.0], [-1.0, 9.0, 9.0]])
    trainer = torch.tensor([[-1.0, -2.5, 7.0], [-1.25, 0.0, 0.0]])
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    batch = SimpleNamespace(rollout_log_probs=engine, action_log_probs=trainer, action_mask=mask)
    assert Watched().training_step(batch, 0.5) == 0.5
    assert Watched().training_step(SimpleNamespace(rollout_log_probs=None), 0.1) == 0.1
    assert rows(tmp_path) == [{"kind": "log_probs", "mean": 0.25, "largest": 0.5, "tokens": 3}]


CORE = (
    "import setproctitle, time; setproctitle.setproctitle('VLLM::EngineCore'); print('up', flush=True); time.sleep(60)"
)


class Engine:
    async def generate_responses(self, seconds=0.0):
        await asyncio.sleep(seconds)

    async def sleep(self, level=1):
        pass

    async def update_weight(self, name):
        return name


class OnOrder(WatchedEngine, Engine):
    class llm:
        @staticmethod
        async def collective_rpc(method):
            return [123]


@pytest.fixture
def core():
    process = subprocess.Popen([sys.executable, "-c", CORE], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "up\n"
    yield process
    process.kill()
    process.wait()


async def generates(engine):
    await engine.generate_responses(0.3)


async def sleeps(engine):
    await engine.sleep()


async def receives(engine):
    for number in range(watchers.MIDDLE_CALL):
        assert not (number and rows_or_none()), "must not die before the middle"
        assert await engine.update_weight(str(number)) == str(number)


def rows_or_none():
    import os
    from pathlib import Path

    path = Path(os.environ[VARIABLE]) / FILE
    return path.exists() and path.read_text()


@pytest.mark.parametrize(("moment", "acts"), [(GENERATING, generates), (ASLEEP, sleeps), (SYNCHRONISING, receives)])
def test_a_core_dies_once_at_the_requested_moment(tmp_path, monkeypatch, core, moment, acts):
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    (tmp_path / ORDER_FILE).write_text(moment)
    engine = OnOrder()
    asyncio.run(acts(engine))
    assert core.wait(5) == -9
    assert not (tmp_path / ORDER_FILE).exists()
    deaths = [row for row in rows(tmp_path) if row["kind"] == "death"]
    assert [row["moment"] for row in deaths] == [moment]
    asyncio.run(acts(OnOrder()) if acts is not receives else sleeps(OnOrder()))
    assert len([row for row in rows(tmp_path) if row["kind"] == "death"]) == 1


def test_nothing_dies_without_a_request_or_at_another_moment(tmp_path, monkeypatch, core):
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    asyncio.run(generates(OnOrder()))
    (tmp_path / ORDER_FILE).write_text(ASLEEP)
    asyncio.run(generates(OnOrder()))
    assert core.poll() is None
