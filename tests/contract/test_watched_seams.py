"""Seams of the host and vLLM that the watchers of `make gpu-check` rely on, for both backends."""

from __future__ import annotations

import inspect
from dataclasses import fields
from types import SimpleNamespace

import pytest

from openrlhf_ktae.backend.cpu import CpuBackend
from openrlhf_ktae.backend.cpu_patches import ENGINE_VARIABLE
from openrlhf_ktae.backend.cuda import CudaBackend
from openrlhf_ktae.base.host import undecorated
from openrlhf_ktae.cli.watched_run import ENGINE, POLICY, watched, watched_classes
from openrlhf_ktae.selftest.watchers import WatchedActor, WatchedEngine, WatchedUpdates
from openrlhf_ktae.trainer.ray.classes import host_classes


@pytest.mark.parametrize("backend", [CpuBackend(), CudaBackend()])
def test_watchers_come_before_the_backends_classes_in_the_mro(host, backend):
    own, over = host_classes(backend.name), watched_classes(backend.name)
    assert own.keys() == over.keys()
    assert watched(backend).name == backend.name
    engine, policy = undecorated(over[ENGINE]), undecorated(over[POLICY])
    assert engine.__mro__[1:3] == (WatchedEngine, undecorated(own[ENGINE]))
    assert policy.__mro__[1:3] == (WatchedActor, undecorated(own[POLICY]))
    assert policy.update_loop.__mro__[1:3] == (WatchedUpdates, undecorated(own[POLICY]).update_loop)


def test_weights_are_sent_through_the_watched_methods(host):
    from openrlhf.trainer.ray.ppo_actor import ActorPPOTrainer
    from openrlhf.trainer.ray.vllm_engine import RolloutRayActor

    engine = undecorated(RolloutRayActor)
    source = inspect.getsource(ActorPPOTrainer.broadcast_to_vllm)
    for name in ("update_weight", "update_weight_cuda_ipc"):
        assert callable(getattr(engine, name))
        assert f"engine.{name}.remote(" in source
    assert "VLLM_ALLOW_INSECURE_SERIALIZATION" in inspect.getsource(engine._configure_vllm_env), "functions are sent"


def test_experiences_hold_log_probabilities_of_engine_and_trainer(host):
    from openrlhf.trainer.ppo_utils.experience import Experience

    assert {"rollout_log_probs", "action_log_probs", "action_mask"} <= {field.name for field in fields(Experience)}


def test_vllm_runs_a_function_on_its_worker(host):
    from vllm.v1.serial_utils import run_method

    assert run_method(SimpleNamespace(rank=3), lambda worker: worker.rank, (), {}) == 3


def test_cpu_runs_are_recognised_by_the_engine_variable(root, monkeypatch):
    from openrlhf_ktae.cli.options import parse_command_line

    monkeypatch.chdir(root)
    args = parse_command_line(["--config", "configs/grpo_ktae/quickstart.yaml"])
    assert ENGINE_VARIABLE in CpuBackend().environment(args)
    assert ENGINE_VARIABLE not in CudaBackend().environment(args)
