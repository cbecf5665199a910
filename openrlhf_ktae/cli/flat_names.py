"""The flat option names of older OpenRLHF releases, translated before anything is parsed."""

from __future__ import annotations

from collections.abc import Sequence

# old name -> name in 0.11.2. Switches with a fixed meaning are in FLAT_SWITCHES.
FLAT_NAMES = {
    "actor_learning_rate": "actor.adam.lr",
    "actor_num_gpus_per_node": "actor.num_gpus_per_node",
    "actor_num_nodes": "actor.num_nodes",
    "adam_betas": "actor.adam.betas",
    "adam_offload": "ds.adam_offload",
    "advantage_estimator": "algo.advantage.estimator",
    "agent_func_path": "train.agent_func_path",
    "apply_chat_template": "data.apply_chat_template",
    "async_queue_size": "train.async_queue_size",
    "async_train": "train.async_enable",
    "attn_implementation": "ds.attn_implementation",
    "aux_loss_coef": "actor.aux_loss_coef",
    "best_metric_key": "ckpt.best_metric_key",
    "ckpt_path": "ckpt.path",
    "colocate_actor_ref": "train.colocate_actor_ref",
    "colocate_all_models": "train.colocate_all",
    "colocate_critic_reward": "train.colocate_critic_reward",
    "critic_learning_rate": "critic.adam.lr",
    "critic_num_gpus_per_node": "critic.num_gpus_per_node",
    "critic_num_nodes": "critic.num_nodes",
    "critic_pretrain": "critic.model_name_or_path",
    "dataloader_num_workers": "data.dataloader_num_workers",
    "deepcompile": "ds.deepcompile",
    "deepspeed_enable_sleep": "ds.enable_sleep",
    "disable_ds_ckpt": "ckpt.disable_ds",
    "disable_fast_tokenizer": "data.disable_fast_tokenizer",
    "ds_tensor_parallel_size": "ds.tensor_parallel_size",
    "dual_clip": "actor.dual_clip",
    "dynamic_filtering": "algo.dynamic_filtering_enable",
    "dynamic_filtering_reward_range": "algo.dynamic_filtering_range",
    "ema_beta": "train.ema_beta",
    "enable_ema": "train.enable_ema",
    "enable_prefix_caching": "vllm.enable_prefix_caching",
    "enforce_eager": "vllm.enforce_eager",
    "entropy_loss_coef": "actor.entropy_coef",
    "eps_clip": "actor.eps_clip",
    "eps_clip_low_high": "actor.eps_clip_low_high",
    "eval_dataset": "eval.dataset",
    "eval_n_samples_per_prompt": "eval.n_samples_per_prompt",
    "eval_split": "eval.split",
    "eval_steps": "eval.steps",
    "eval_temperature": "eval.temperature",
    "full_determinism": "train.full_determinism_enable",
    "gamma": "algo.advantage.gamma",
    "generate_max_len": "rollout.max_new_tokens",
    "grad_accum_dtype": "ds.grad_accum_dtype",
    "gradient_checkpointing": "actor.gradient_checkpointing_enable",
    "gradient_checkpointing_use_reentrant": "actor.gradient_checkpointing_reentrant",
    "init_kl_coef": "algo.kl.init_coef",
    "input_key": "data.input_key",
    "input_template": "data.input_template",
    "kl_estimator": "algo.kl.estimator",
    "kl_horizon": "algo.kl.horizon",
    "kl_target": "algo.kl.target",
    "label_key": "data.label_key",
    "lambd": "algo.advantage.lambd",
    "load_checkpoint": "ckpt.load_enable",
    "load_in_4bit": "ds.load_in_4bit",
    "logging_steps": "logger.logging_steps",
    "lora_alpha": "ds.lora.alpha",
    "lora_dropout": "ds.lora.dropout",
    "lora_rank": "ds.lora.rank",
    "lr_scheduler": "actor.lr_scheduler",
    "lr_warmup_ratio": "actor.lr_warmup_ratio",
    "max_ckpt_mem": "ckpt.max_mem",
    "max_ckpt_num": "ckpt.max_num",
    "max_epochs": "train.max_epochs",
    "max_len": "data.max_len",
    "max_new_tokens": "rollout.max_new_tokens",
    "max_norm": "actor.max_norm",
    "max_samples": "data.max_samples",
    "micro_rollout_batch_size": "rollout.micro_batch_size",
    "micro_train_batch_size": "train.micro_batch_size",
    "n_samples_per_prompt": "rollout.n_samples_per_prompt",
    "no_advantage_std_norm": "algo.advantage.no_std_norm",
    "num_episodes": "train.num_episodes",
    "overlap_comm": "ds.overlap_comm",
    "overlong_buffer_len": "reward.overlong_buffer_len",
    "overlong_penalty_factor": "reward.overlong_penalty_factor",
    "packing_samples": "ds.packing_samples",
    "param_dtype": "ds.param_dtype",
    "partial_rollout": "train.partial_rollout_enable",
    "policy_loss_type": "actor.policy_loss_type",
    "pretrain": "actor.model_name_or_path",
    "prompt_data": "data.prompt_dataset",
    "prompt_data_probs": "data.prompt_probs",
    "prompt_split": "data.prompt_split",
    "ref_num_gpus_per_node": "ref.num_gpus_per_node",
    "ref_num_nodes": "ref.num_nodes",
    "ref_reward_offload": "ref.offload",
    "remote_rm_url": "reward.remote_url",
    "reward_clip_range": "reward.clip_range",
    "reward_num_gpus_per_node": "reward.num_gpus_per_node",
    "reward_num_nodes": "reward.num_nodes",
    "reward_pretrain": "reward.model_name_or_path",
    "ring_attn_size": "ds.ring_attn_size",
    "ring_head_stride": "ds.ring_attn_head_stride",
    "rollout_batch_size": "rollout.batch_size",
    "rollout_max_tokens_per_gpu": "rollout.max_tokens_per_gpu",
    "save_hf_ckpt": "ckpt.save_hf",
    "save_path": "ckpt.output_dir",
    "save_steps": "ckpt.save_steps",
    "save_value_network": "critic.save_value_network",
    "seed": "train.seed",
    "target_modules": "ds.lora.target_modules",
    "temperature": "rollout.temperature",
    "top_p": "rollout.top_p",
    "train_batch_size": "train.batch_size",
    "train_max_tokens_per_gpu": "train.max_tokens_per_gpu",
    "use_ds_universal_ckpt": "ds.use_universal_ckpt",
    "use_dynamic_batch": "train.dynamic_batch_enable",
    "use_kl_loss": "algo.kl.use_loss",
    "use_liger_kernel": "ds.use_liger_kernel",
    "use_tensorboard": "logger.tensorboard_dir",
    "use_wandb": "logger.wandb.key",
    "value_clip": "critic.value_clip",
    "value_head_prefix": "ds.value_head_prefix",
    "vllm_enable_sleep": "vllm.enable_sleep",
    "vllm_generate_batch_size": "rollout.vllm_generate_batch_size",
    "vllm_gpu_memory_utilization": "vllm.gpu_memory_utilization",
    "vllm_num_engines": "vllm.num_engines",
    "vllm_sync_backend": "vllm.sync_backend",
    "vllm_sync_with_ray": "vllm.sync_with_ray",
    "vllm_tensor_parallel_size": "vllm.tensor_parallel_size",
    "wandb_group": "logger.wandb.group",
    "wandb_org": "logger.wandb.org",
    "wandb_project": "logger.wandb.project",
    "wandb_run_name": "logger.wandb.run_name",
    "zero_stage": "ds.zero_stage",
    "zpg": "ds.zpg",
}

FLAT_SWITCHES = {
    "bf16": ["--ds.param_dtype", "bf16"],
    "flash_attn": ["--ds.attn_implementation", "flash_attention_2"],
}


def translate_flat_names(argv: Sequence[str]) -> list[str]:
    """Return `argv` with flat names replaced: `--pretrain X` -> `--actor.model_name_or_path X`.

    Both `--name value` and `--name=value` work; anything else passes through unchanged.
    """
    translated: list[str] = []
    for word in argv:
        name, equals, value = word.partition("=")
        flat = name.removeprefix("--") if name.startswith("--") else ""
        if flat in FLAT_SWITCHES and not equals:
            translated += FLAT_SWITCHES[flat]
        elif flat in FLAT_NAMES:
            translated.append(f"--{FLAT_NAMES[flat]}{equals}{value}")
        else:
            translated.append(word)
    return translated


def flat_words(name: str) -> str:
    """Return the current option for the flat `name`, as in a configuration file; empty for any other name."""
    if name in FLAT_SWITCHES:
        option, value = FLAT_SWITCHES[name]
        return f"{option.removeprefix('--')}: {value}"
    return FLAT_NAMES.get(name, "")


def flat_names_help() -> str:
    """Return the table of flat names for the end of `--help`."""
    rows = [f"  --{flat:<32}--{name}" for flat, name in sorted(FLAT_NAMES.items())]
    rows += [f"  --{flat:<32}{' '.join(words)}" for flat, words in sorted(FLAT_SWITCHES.items())]
    return "Names from older OpenRLHF releases that are also accepted:\n" + "\n".join(rows)
