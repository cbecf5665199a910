"""Every name of another library that this package overrides or patches; if a release moves one, a test here fails."""

from __future__ import annotations

import inspect

import pytest
from marks import SLOW

from openrlhf_ktae.base.errors import Refusal
from openrlhf_ktae.base.host import HOST_VERSION, check_host, undecorated
from openrlhf_ktae.checks.backends import HEAD_SIZES


def test_the_pinned_host_is_installed(monkeypatch):
    check_host()
    monkeypatch.setattr("openrlhf_ktae.base.host.version", lambda _: "0.12.0")
    with pytest.raises(Refusal, match=HOST_VERSION):
        check_host()


def test_head_sizes_match_vllm(host):
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    assert list(HEAD_SIZES) == CPUAttentionBackend.get_supported_head_sizes()


def test_trainer_resolves_its_parts_as_globals(host):
    from openrlhf.trainer import ppo_trainer, ppo_trainer_async

    for module, names in (
        (ppo_trainer, ("RemoteExperienceMaker", "SamplesGenerator", "PPOTrainer")),
        (ppo_trainer_async, ("SamplesGenerator", "GenerateSamplesActor", "TrainingActor", "PPOTrainerAsync")),
    ):
        for name in names:
            assert hasattr(module, name), f"{module.__name__}.{name}"
    source = inspect.getsource(ppo_trainer.BasePPOTrainer.__init__)
    assert "RemoteExperienceMaker(" in source


def test_overridden_methods_exist_with_their_parameters(host):
    from openrlhf.trainer import ppo_trainer, ppo_trainer_async
    from openrlhf.trainer.ppo_utils.experience_maker import RemoteExperienceMaker
    from openrlhf.trainer.ppo_utils.samples_generator import SamplesGenerator
    from openrlhf.trainer.ray.launcher import BaseModelActor, ReferenceModelActor, RewardModelActor
    from openrlhf.trainer.ray.ppo_actor import ActorPPOTrainer, PolicyModelActor
    from openrlhf.trainer.ray.ppo_critic import CriticModelActor
    from openrlhf.trainer.ray.vllm_engine import RolloutRayActor

    expected = [
        (RemoteExperienceMaker, "compute_advantages_and_returns", ["self", "experiences"]),
        (RemoteExperienceMaker, "make_experience_batch", ["self", "rollout_samples"]),
        (RemoteExperienceMaker, "make_experience", ["self", "samples_list"]),
        (BaseModelActor, "execute_batch", ["self", "method_name", "all_data", "start_idx", "end_idx"]),
        (undecorated(ReferenceModelActor), "init_model_from_pretrained", ["self", "strategy", "pretrain"]),
        (undecorated(RewardModelActor), "init_model_from_pretrained", ["self", "strategy", "pretrain"]),
        (
            SamplesGenerator,
            "_dispatch_prompts_to_vllm",
            ["self", "prompts", "labels", "images", "generate_kwargs"],
        ),
        (SamplesGenerator, "_process_response_into_experience", ["self", "response", "generate_kwargs"]),
        (
            undecorated(RolloutRayActor),
            "generate_responses",
            ["self", "prompt", "label", "sampling_params", "max_length", "hf_tokenizer", "num_samples", "images"],
        ),
        (undecorated(RolloutRayActor), "get_num_unfinished_requests", ["self"]),
        (
            undecorated(PolicyModelActor),
            "save_checkpoint",
            ["self", "tag", "client_states", "metric_value", "metric_key"],
        ),
        (undecorated(CriticModelActor), "save_checkpoint", ["self", "tag", "metric_value", "metric_key"]),
        (ppo_trainer.BasePPOTrainer, "broadcast_to_vllm", ["self"]),
        (ppo_trainer.BasePPOTrainer, "_detect_eval_metric_key", ["self", "eval_metrics"]),
        (
            SamplesGenerator,
            "_generate_vllm",
            ["self", "dataloader_iter", "num_prompts", "dynamic_filtering", "generate_kwargs"],
        ),
        (ActorPPOTrainer, "training_step", ["self", "experience", "kl_ctl", "step", "loss_batch_info"]),
        (ppo_trainer.BasePPOTrainer, "init_checkpoint_states", ["self"]),
        (undecorated(ppo_trainer_async.GenerateSamplesActor), "fit", ["self", "episode", "total_consumed_prompts"]),
        (SamplesGenerator, "generate_samples", ["self", "generate_kwargs"]),
        (SamplesGenerator, "generate_eval_samples", ["self", "generate_kwargs"]),
        (undecorated(ppo_trainer.PPOTrainer), "fit", ["self", "global_step"]),
        (undecorated(ppo_trainer.PPOTrainer), "evaluate", ["self", "global_step", "generate_kwargs"]),
        (ppo_trainer.BasePPOTrainer, "train_step", ["self", "rollout_samples", "global_step"]),
        (
            ppo_trainer.BasePPOTrainer,
            "save_logs_and_checkpoints",
            ["self", "global_step", "logs_dict", "client_states"],
        ),
        (ppo_trainer.BasePPOTrainer, "save_best_checkpoint", ["self", "eval_metrics", "global_step", "client_states"]),
        (undecorated(ppo_trainer_async.GenerateSamplesActor), "_run_eval", ["self"]),
        (undecorated(ppo_trainer_async.TrainingActor), "broadcast_to_vllm", ["self"]),
        (undecorated(ppo_trainer_async.PPOTrainerAsync), "fit", ["self"]),
        (ActorPPOTrainer, "_init_vllm_sync_group", ["self", "backend"]),
        (ActorPPOTrainer, "broadcast_to_vllm", ["self"]),
        (
            undecorated(PolicyModelActor),
            "init_model_from_pretrained",
            ["self", "strategy", "pretrain", "max_steps", "vllm_engines"],
        ),
    ]
    for owner, name, parameters in expected:
        found = [p for p in inspect.signature(getattr(owner, name)).parameters if p != "_ray_trace_ctx"]
        assert found == parameters, f"{owner.__name__}.{name}"
    assert inspect.iscoroutinefunction(undecorated(RolloutRayActor).__init__)


def test_the_host_command_takes_its_classes_as_globals(host):
    from openrlhf.cli import train_ppo_ray

    source = inspect.getsource(train_ppo_ray.train)
    for text in (
        "import PPOTrainerAsync as PPOTrainer",
        "import PPOTrainer\n",
        "PolicyModelActor,",
        "CriticModelActor,",
        "ReferenceModelActor,",
        "RewardModelActor,",
        "ref_model.async_init_model_from_pretrained(strategy, args.actor.model_name_or_path)",
        "reward_model.async_init_model_from_pretrained(strategy, args.reward.model_name_or_path)",
        "get_strategy(args)",
        "if not ray.is_initialized()",
    ):
        assert text in source, text


def test_weights_are_sent_through_calls_and_a_group_that_proxies_can_replace(host):
    """`trainer/ray/weight_sending.py` replaces both with proxies while the host sends."""
    from openrlhf.trainer.ray.ppo_actor import ActorPPOTrainer
    from openrlhf.trainer.ray.vllm_worker_wrap import WorkerWrap
    from vllm.distributed.device_communicators.pynccl import PyNcclCommunicator

    from openrlhf_ktae.trainer.ray.vllm_worker_wrap import KTAEWorkerWrap

    source = inspect.getsource(ActorPPOTrainer.broadcast_to_vllm)
    engines = [line.strip() for line in source.splitlines() if "self.vllm_engines" in line]
    assert set(engines) == {"for engine in self.vllm_engines:", "for engine in self.vllm_engines"}
    assert "engine.update_weight.remote(" in source
    assert "engine.update_weight_cuda_ipc.remote(" in source
    group = "self._model_update_group.broadcast(param.data, src=0, stream=torch.cuda.current_stream())"
    assert source.index("engine.update_weight.remote(") < source.index(group) < source.index("ray.get(refs)")
    assert "ncclCommAbort" in inspect.getsource(PyNcclCommunicator.destroy)
    assert "self._model_update_group =" in inspect.getsource(WorkerWrap.init_process_group)
    assert KTAEWorkerWrap.__mro__[1] is WorkerWrap


def test_the_host_wakes_engines_outside_the_guarded_call(host):
    """`SurvivingGenerator` disables sleep in the host's generator and handles it itself."""
    from openrlhf.trainer.ppo_trainer import BasePPOTrainer
    from openrlhf.trainer.ppo_utils.samples_generator import SamplesGenerator

    for method in (SamplesGenerator.generate_samples, SamplesGenerator.generate_eval_samples):
        source = inspect.getsource(method)
        assert source.count("if self.args.vllm.enable_sleep:") == source.count("batch_vllm_engine_call(") == 2
        assert "self._generate_vllm(" in source
    assert "if self.args.vllm.enable_sleep:" in inspect.getsource(BasePPOTrainer.broadcast_to_vllm)


def test_samples_change_only_after_all_forward_passes_return(host):
    """So a forward pass lost to a dead process can be repeated with the same samples."""
    from openrlhf.trainer.ppo_utils.experience_maker import RemoteExperienceMaker

    source = inspect.getsource(RemoteExperienceMaker.make_experience)
    assert source.rindex("_flatten_results(") < source.index("samples.rewards =") < source.index("samples.kl =")


def test_the_asynchronous_trainer_takes_rollouts_from_its_queue(host):
    """Weight requests travel through the queue and are served when they are dequeued."""
    from openrlhf.trainer.ppo_trainer_async import GenerateSamplesActor, TrainingActor

    assert "self.rollout_queue.get(block=True)" in inspect.getsource(undecorated(TrainingActor).fit)
    source = inspect.getsource(undecorated(GenerateSamplesActor).fit)
    assert "if not self._partial_rollout:\n                    # Normal async: hold lock" in source
    assert source.index("self.vllm_lock.acquire") < source.index("self._run_eval()")


def test_checkpoints_are_written_below_ckpt_path(host):
    """`args.ckpt.path` is the only way to redirect ranks to the staging folder and the chosen checkpoint."""
    from openrlhf.trainer.ppo_trainer import BasePPOTrainer
    from openrlhf.trainer.ray.ppo_actor import PolicyModelActor
    from openrlhf.trainer.ray.ppo_critic import CriticModelActor

    for actor, folder in ((PolicyModelActor, "_actor"), (CriticModelActor, "_critic")):
        for method in ("save_checkpoint", "init_model_from_pretrained"):
            source = inspect.getsource(getattr(undecorated(actor), method))
            assert f'os.path.join(args.ckpt.path, "{folder}")' in source
    assert 'os.path.join(args.ckpt.path, f"{tag}_hf")' in inspect.getsource(
        undecorated(PolicyModelActor).save_checkpoint
    )
    source = inspect.getsource(BasePPOTrainer.save_logs_and_checkpoints)
    assert "global_step % self.args.ckpt.save_steps == 0" in source
    assert "current_value > self.best_eval_metric_value" in inspect.getsource(BasePPOTrainer.save_best_checkpoint)


def test_a_resumed_run_sends_its_weights_before_it_reads_its_position_in_the_data(host):
    """An evaluation that was due at the checkpoint runs in between."""
    from openrlhf.trainer.ppo_trainer import PPOTrainer

    source = inspect.getsource(undecorated(PPOTrainer).fit)
    places = [
        source.index(text)
        for text in (
            "restore_best_checkpoint_state",
            "broadcast_to_vllm",
            "prompts_dataloader.load_state_dict",
            "for ep",
        )
    ]
    assert places == sorted(places)


def test_ray_still_refuses_to_subclass_an_actor(host):
    """This is why `undecorated` exists; when the test fails, subclass actors directly."""
    from openrlhf.trainer.ppo_trainer import PPOTrainer
    from ray.exceptions import RayError

    with pytest.raises((RayError, TypeError)):
        type("Sub", (PPOTrainer,), {})


def test_the_mathematics_loads_no_trainer(loaded_by):
    """Users of other trainers import only the mathematics."""
    assert loaded_by("import openrlhf_ktae.ktae", "ray", "vllm", "deepspeed", "transformers") == []


@SLOW
def test_engines_import_no_trainer(loaded_by):
    """Importing DeepSpeed, the host's trainer and data sets would add seconds to every start."""
    engine = "openrlhf_ktae.trainer.ray.cpu_engine"
    code = f"from openrlhf_ktae.backend.cpu_patches import activate; activate(); import {engine}"
    assert loaded_by(code, "deepspeed", "openrlhf.trainer.ppo_trainer", "datasets") == []


def test_ranks_use_our_free_port(host):
    """The host's own choice can be taken by another process (`base/free_port.py`)."""
    from openrlhf.cli import train_ppo_ray
    from openrlhf.trainer.ray.launcher import BaseDistributedActor

    from openrlhf_ktae.base.free_port import free_port
    from openrlhf_ktae.base.host import undecorated
    from openrlhf_ktae.trainer.ray.ppo_actor import KTAEPolicyModelActor
    from openrlhf_ktae.trainer.ray.ppo_critic import KTAECriticModelActor
    from openrlhf_ktae.trainer.ray.restarting_models import HOST_CLASSES, RestartableModel

    assert "self._get_free_port()" in inspect.getsource(BaseDistributedActor.__init__)
    untrained = [type(name, (RestartableModel, undecorated(getattr(train_ppo_ray, name))), {}) for name in HOST_CLASSES]
    for actor in (KTAEPolicyModelActor, KTAECriticModelActor, *untrained):
        assert issubclass(actor, BaseDistributedActor)
        assert actor._get_free_port is free_port


def test_evaluations_use_an_iterator_set_beforehand(host):
    """We set it to one benchmark at a time."""
    from openrlhf.trainer.ppo_utils.samples_generator import SamplesGenerator

    source = inspect.getsource(SamplesGenerator.generate_eval_samples)
    assert 'if getattr(self, "_eval_dataloader_iter", None) is None' in source
    assert "dataloader_iter=self._eval_dataloader_iter" in source


def test_engines_of_an_evaluation_are_the_hosts(host):
    from openrlhf.trainer.ray.vllm_engine import RolloutRayActor, create_vllm_engines

    given = {"num_engines", "tensor_parallel_size", "pretrain", "seed", "full_determinism", "enable_prefix_caching"}
    given |= {"enforce_eager", "max_model_len", "gpu_memory_utilization"}
    assert given <= set(inspect.signature(create_vllm_engines).parameters)
    generate = undecorated(RolloutRayActor).generate
    assert list(inspect.signature(generate).parameters)[:3] == ["self", "prompt_token_ids", "sampling_params"]


def test_the_best_checkpoint_is_chosen_by_an_evaluation_metric(host):
    from openrlhf.trainer.ppo_trainer import BasePPOTrainer

    assert "best_metric_key" in inspect.getsource(BasePPOTrainer.__init__)
    assert "eval_metrics[metric_key]" in inspect.getsource(BasePPOTrainer.save_best_checkpoint)
