"""The flat option names of older OpenRLHF releases, translated before the command line is parsed."""

from collections.abc import Sequence

NAMES = """
actor: aux_loss_coef dual_clip eps_clip eps_clip_low_high lr_scheduler lr_warmup_ratio max_norm policy_loss_type
actor: actor_learning_rate=adam.lr actor_num_gpus_per_node=num_gpus_per_node actor_num_nodes=num_nodes
actor: adam_betas=adam.betas entropy_loss_coef=entropy_coef gradient_checkpointing=gradient_checkpointing_enable
actor: gradient_checkpointing_use_reentrant=gradient_checkpointing_reentrant pretrain=model_name_or_path
algo: advantage_estimator=advantage.estimator dynamic_filtering=dynamic_filtering_enable
algo: dynamic_filtering_reward_range=dynamic_filtering_range gamma=advantage.gamma init_kl_coef=kl.init_coef
algo: kl_estimator=kl.estimator kl_horizon=kl.horizon kl_target=kl.target lambd=advantage.lambd
algo: no_advantage_std_norm=advantage.no_std_norm use_kl_loss=kl.use_loss
ckpt: best_metric_key save_steps ckpt_path=path disable_ds_ckpt=disable_ds load_checkpoint=load_enable
ckpt: max_ckpt_mem=max_mem max_ckpt_num=max_num save_hf_ckpt=save_hf save_path=output_dir
critic: save_value_network value_clip critic_learning_rate=adam.lr critic_num_gpus_per_node=num_gpus_per_node
critic: critic_num_nodes=num_nodes critic_pretrain=model_name_or_path
data: apply_chat_template dataloader_num_workers disable_fast_tokenizer input_key input_template label_key max_len
data: max_samples prompt_split prompt_data=prompt_dataset prompt_data_probs=prompt_probs
ds: adam_offload attn_implementation deepcompile grad_accum_dtype load_in_4bit overlap_comm packing_samples
ds: param_dtype ring_attn_size use_liger_kernel value_head_prefix zero_stage zpg
ds: deepspeed_enable_sleep=enable_sleep ds_tensor_parallel_size=tensor_parallel_size lora_alpha=lora.alpha
ds: lora_dropout=lora.dropout lora_rank=lora.rank ring_head_stride=ring_attn_head_stride
ds: target_modules=lora.target_modules use_ds_universal_ckpt=use_universal_ckpt
eval: eval_dataset=dataset eval_n_samples_per_prompt=n_samples_per_prompt eval_split=split eval_steps=steps
eval: eval_temperature=temperature
logger: logging_steps use_tensorboard=tensorboard_dir use_wandb=wandb.key wandb_group=wandb.group
logger: wandb_org=wandb.org wandb_project=wandb.project wandb_run_name=wandb.run_name
ref: ref_num_gpus_per_node=num_gpus_per_node ref_num_nodes=num_nodes ref_reward_offload=offload
reward: overlong_buffer_len overlong_penalty_factor remote_rm_url=remote_url reward_clip_range=clip_range
reward: reward_num_gpus_per_node=num_gpus_per_node reward_num_nodes=num_nodes reward_pretrain=model_name_or_path
rollout: max_new_tokens n_samples_per_prompt temperature top_p vllm_generate_batch_size
rollout: generate_max_len=max_new_tokens micro_rollout_batch_size=micro_batch_size rollout_batch_size=batch_size
rollout: rollout_max_tokens_per_gpu=max_tokens_per_gpu
train: agent_func_path async_queue_size colocate_actor_ref colocate_critic_reward ema_beta enable_ema max_epochs
train: num_episodes seed async_train=async_enable colocate_all_models=colocate_all
train: full_determinism=full_determinism_enable micro_train_batch_size=micro_batch_size
train: partial_rollout=partial_rollout_enable train_batch_size=batch_size
train: train_max_tokens_per_gpu=max_tokens_per_gpu use_dynamic_batch=dynamic_batch_enable
vllm: enable_prefix_caching enforce_eager vllm_enable_sleep=enable_sleep
vllm: vllm_gpu_memory_utilization=gpu_memory_utilization vllm_num_engines=num_engines
vllm: vllm_sync_backend=sync_backend vllm_sync_with_ray=sync_with_ray
vllm: vllm_tensor_parallel_size=tensor_parallel_size
"""
"""Lines of `GROUP: flat names`, as flat=name where the two differ: `lambd` is now `algo.advantage.lambd`."""
FLAT_NAMES = {
    flat: f"{group}.{name or flat}"
    for group, words in (line.split(": ") for line in NAMES.strip().splitlines())
    for flat, _, name in (word.partition("=") for word in words.split())
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
