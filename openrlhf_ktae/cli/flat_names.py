"""The flat option names of older OpenRLHF releases, translated before the command line is parsed."""

from collections.abc import Sequence

UNGROUPED = {
    "actor": "aux_loss_coef dual_clip eps_clip eps_clip_low_high lr_scheduler lr_warmup_ratio max_norm "
    "policy_loss_type",
    "algo.advantage": "gamma lambd",
    "ckpt": "best_metric_key save_steps",
    "critic": "save_value_network value_clip",
    "data": "apply_chat_template dataloader_num_workers disable_fast_tokenizer input_key input_template label_key "
    "max_len max_samples prompt_split",
    "ds": "adam_offload attn_implementation deepcompile grad_accum_dtype load_in_4bit overlap_comm "
    "packing_samples param_dtype ring_attn_size use_liger_kernel value_head_prefix zero_stage zpg",
    "ds.lora": "target_modules",
    "logger": "logging_steps",
    "reward": "overlong_buffer_len overlong_penalty_factor",
    "rollout": "max_new_tokens n_samples_per_prompt temperature top_p vllm_generate_batch_size",
    "train": "agent_func_path async_queue_size colocate_actor_ref colocate_critic_reward ema_beta enable_ema "
    "max_epochs num_episodes seed",
    "vllm": "enable_prefix_caching enforce_eager",
}
"""Flat names that are now in a group: `lambd` is now `algo.advantage.lambd`."""
PREFIXED = {
    "actor": "num_gpus_per_node num_nodes",
    "ckpt": "path",
    "critic": "num_gpus_per_node num_nodes",
    "ds": "tensor_parallel_size",
    "eval": "dataset n_samples_per_prompt split steps temperature",
    "ref": "num_gpus_per_node num_nodes",
    "reward": "clip_range num_gpus_per_node num_nodes",
    "rollout": "batch_size max_tokens_per_gpu",
    "train": "batch_size max_tokens_per_gpu",
    "vllm": "enable_sleep gpu_memory_utilization num_engines sync_backend sync_with_ray tensor_parallel_size",
}
"""Flat names that contained the group: `eval_steps` is now `eval.steps`."""
RENAMED = {
    "actor_learning_rate": "actor.adam.lr",
    "adam_betas": "actor.adam.betas",
    "advantage_estimator": "algo.advantage.estimator",
    "async_train": "train.async_enable",
    "colocate_all_models": "train.colocate_all",
    "critic_learning_rate": "critic.adam.lr",
    "critic_pretrain": "critic.model_name_or_path",
    "deepspeed_enable_sleep": "ds.enable_sleep",
    "disable_ds_ckpt": "ckpt.disable_ds",
    "dynamic_filtering": "algo.dynamic_filtering_enable",
    "dynamic_filtering_reward_range": "algo.dynamic_filtering_range",
    "entropy_loss_coef": "actor.entropy_coef",
    "full_determinism": "train.full_determinism_enable",
    "generate_max_len": "rollout.max_new_tokens",
    "gradient_checkpointing": "actor.gradient_checkpointing_enable",
    "gradient_checkpointing_use_reentrant": "actor.gradient_checkpointing_reentrant",
    "init_kl_coef": "algo.kl.init_coef",
    "kl_estimator": "algo.kl.estimator",
    "kl_horizon": "algo.kl.horizon",
    "kl_target": "algo.kl.target",
    "load_checkpoint": "ckpt.load_enable",
    "lora_alpha": "ds.lora.alpha",
    "lora_dropout": "ds.lora.dropout",
    "lora_rank": "ds.lora.rank",
    "max_ckpt_mem": "ckpt.max_mem",
    "max_ckpt_num": "ckpt.max_num",
    "micro_rollout_batch_size": "rollout.micro_batch_size",
    "micro_train_batch_size": "train.micro_batch_size",
    "no_advantage_std_norm": "algo.advantage.no_std_norm",
    "partial_rollout": "train.partial_rollout_enable",
    "pretrain": "actor.model_name_or_path",
    "prompt_data": "data.prompt_dataset",
    "prompt_data_probs": "data.prompt_probs",
    "ref_reward_offload": "ref.offload",
    "remote_rm_url": "reward.remote_url",
    "reward_pretrain": "reward.model_name_or_path",
    "ring_head_stride": "ds.ring_attn_head_stride",
    "save_hf_ckpt": "ckpt.save_hf",
    "save_path": "ckpt.output_dir",
    "use_ds_universal_ckpt": "ds.use_universal_ckpt",
    "use_dynamic_batch": "train.dynamic_batch_enable",
    "use_kl_loss": "algo.kl.use_loss",
    "use_tensorboard": "logger.tensorboard_dir",
    "use_wandb": "logger.wandb.key",
    "wandb_group": "logger.wandb.group",
    "wandb_org": "logger.wandb.org",
    "wandb_project": "logger.wandb.project",
    "wandb_run_name": "logger.wandb.run_name",
}
FLAT_NAMES = {
    **{name: f"{group}.{name}" for group, names in UNGROUPED.items() for name in names.split()},
    **{f"{group}_{name}": f"{group}.{name}" for group, names in PREFIXED.items() for name in names.split()},
    **RENAMED,
}
"""Old name -> name in 0.11.2, except for switches that set a fixed value (`FLAT_SWITCHES`)."""
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
