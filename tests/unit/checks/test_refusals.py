"""Bad runs are refused before any model loads: exit code 2, the option, its value and the fix."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest
from marks import CPU_BUILDS

from openrlhf_ktae.cli import train_ppo_ray as command
from openrlhf_ktae.cli.train_ppo_ray import main

MODEL = "examples/quickstart/model"
GOOD = {
    "pretrain": MODEL,
    "prompt_data": "{tmp}/good.jsonl",
    "label_key": "label",
    "vllm_num_engines": "1",
    "actor_num_gpus_per_node": "1",
    "colocate_all_models": "true",
    "init_kl_coef": "0",
    "advantage_estimator": "ktae",
    "n_samples_per_prompt": "4",
    "rollout_batch_size": "4",
    "train_batch_size": "16",
    "max_len": "64",
    "backend": "cpu",
    "run.dir": "{tmp}/run",
}
RECORD = ("record_rollouts", "record_max_mb", "record_groups")
QWEN = {"model_type": "qwen2", "hidden_size": 128, "num_attention_heads": 4}
# Folder -> the fix; `model_folders` makes them from the quickstart's model.
BAD_MODELS = (
    ("no_tokenizer", "no tokenizer"),
    ("torn_weights", "model.safetensors is incomplete; copy it again"),
    ("empty_weights", "model.safetensors is incomplete; copy it again"),
    ("pointer_weights", "model.safetensors is incomplete; copy it again"),
    ("missing_shard", "model-00002-of-00002.safetensors is named by"),
    ("torn_tokenizer", "tokenizer.json cannot be read"),
    ("text_heads", 'num_attention_heads "four", not a valid size; copy the model again'),
    ("text_hidden", 'hidden_size "128", not a valid size; copy the model again'),
    ("unknown_kind", "does not know its model type qwen9000"),
    ("no_kind", "has no model_type"),
    ("bert", "BertForMaskedLM does not generate text"),
    ("classifier", "Qwen2ForSequenceClassification does not generate text"),
    ("t5", "does not generate text"),
    ("inner_heads16", "size 16"),
    ("gpt2_heads16", "size 16"),
)
BAD_REWARDS = {
    "silent_exit": ("import sys; sys.exit(1)", "exit code 1"),
    "clean_exit": ("import sys; sys.exit(0)", "exit code 0"),
    "killed": ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "exit code -11"),
    "number": ("reward_func = 3", "defines no reward_func"),
    "nothing": ("", "defines no reward_func"),
    "signature": ("def reward_func(queries): ...", "queries, prompts, labels"),
    "list": ("def reward_func(queries, prompts, labels):\n    return [1.0]", "a dict with the key 'rewards'"),
    "text": (
        "def reward_func(prompts, completions, **columns):\n    return ['good']",
        "returned the reward ['good']; it must be one finite number",
    ),
    "no_column": ("def reward_func(prompts, completions, truth):\n    return [1.0]", "missing 1 required positional"),
    "no_score": ("def compute_score(data_source, solution_str, ground_truth):\n    return {'acc': 1}", "'score'"),
    "defect": ("def reward_func(queries, prompts, labels):\n    return {'rewards': [labels[1]]}", "IndexError"),
    "asleep": ("import time; time.sleep(60)", "move slow work into the function"),
}
BAD_AGENTS = {
    "not_python": ("def", "fix it"),
    "absent_module": ("import no_such_module\nclass AgentExecutor: ...", "no module named no_such_module"),
    "no_class": ("class Agent: ...", "defines no class AgentExecutor"),
}
ROW = '{"input": "1 + 1 :", "label": "2"}\n'
# Folder -> its files, what the message names, the fix.
BAD_FOLDERS = {
    "other_columns": (
        {"a.jsonl": '{"question": "1", "answer": "1"}\n' * 8},
        "--data.input_key input",
        "it has question",
    ),
    "one_empty": ({"a.jsonl": ROW * 8, "b.jsonl": ""}, "b.jsonl: is empty", "at least one prompt"),
    "one_torn": ({"a.jsonl": ROW * 8, "below/b.jsonl": '{"inp'}, "line 1 is not JSON", "repair or remove it"),
    "notes_only": ({"README.md": "# data", "dataset_info.json": "{}"}, "has no file with rows", "give a folder"),
    "two_types": (
        {"a.jsonl": ROW * 8, "b.jsonl": '{"input": "1", "label": 2}\n' * 8},
        "column label is a number",
        "write both as one",
    ),
    "few": ({"a.jsonl": ROW, "b.jsonl": ROW}, "has 2 prompts", "--train.batch_size"),
}
LORA = {"lora_rank": "8"}
BAD = [
    ({"zzqqzz": "1"}, "--zzqqzz", "--help"),
    ({"algo.ktae.wieght": "1"}, "--algo.ktae.wieght", "--algo.ktae.weight"),
    ({"advantage_estimator": "ktea"}, "ktea", "ktae"),
    ({"n_samples_per_prompt": "1"}, "--rollout.n_samples_per_prompt 1", "at least 2"),
    ({"algo.ktae.weight": "-1"}, "--algo.ktae.weight", "at least 0"),
    ({"algo.ktae.shadow": "true", "advantage_estimator": "group_norm"}, "--algo.ktae.shadow", "ktae"),
    ({"algo.ktae.shuffle_labels": "true", "advantage_estimator": "group_norm"}, "--algo.ktae.shuffle_labels", "ktae"),
    (
        {"algo.dynamic_filtering_skip_solved": "2"},
        "--algo.dynamic_filtering_skip_solved 2",
        "--algo.dynamic_filtering_enable",
    ),
    (
        {"async_train": "true", "colocate_all_models": "false", "vllm_generate_batch_size": "1"},
        "--rollout.vllm_generate_batch_size 1",
        "leave it out",
    ),
    (
        {"actor.dr_grpo_norm": "true", "max_new_tokens": "32", "actor.policy_loss_type": "gspo"},
        "--actor.dr_grpo_norm true",
        "gspo",
    ),
    ({"algo.ktae.p_max": "0.2"}, "p_max", "calibrated"),
    ({"micro_rollout_batch_size": "3"}, "--rollout.micro_batch_size 3", "use 18"),
    ({"train_batch_size": "12"}, "--train.batch_size 12", "use 16"),
    ({"train_batch_size": "32"}, "--train.batch_size 32", "use 16"),
    ({"micro_train_batch_size": "3"}, "--train.micro_batch_size 3", "use 18"),
    (
        {"actor_num_gpus_per_node": "3", "vllm_num_engines": "3"},
        "do not divide into --rollout.micro_batch_size 1 x 3 ranks",
        "use 18",
    ),
    ({"use_dynamic_batch": "true", "zero_stage": "2"}, "--ds.zero_stage 2", "use --ds.zero_stage 3"),
    ({"overlong_buffer_len": "80"}, "--reward.overlong_buffer_len 80", "at most the longest response (64)"),
    ({"actor.dr_grpo_norm": "true"}, "--actor.dr_grpo_norm true", "--rollout.max_new_tokens"),
    (
        {"actor.dr_grpo_norm": "true", "max_new_tokens": "32", "actor.loss_agg_mode": "seq-mean-token-mean"},
        "--actor.loss_agg_mode seq-mean-token-mean",
        "needs token-mean",
    ),
    ({"vllm_num_engines": "2"}, "--vllm.num_engines 2", "must equal"),
    ({"vllm_num_engines": "0"}, "--vllm.num_engines 0", "at least 1"),
    ({"pretrain": "/no/such/model"}, "--actor.model_name_or_path /no/such/model", "no such folder"),
    ({"pretrain": "nobody/no-model"}, "--actor.model_name_or_path nobody/no-model", "no such folder"),
    ({"pretrain": "{tmp}/heads16"}, "size 16", "32"),
    ({"prompt_data": "/no/such/file.jsonl"}, "--data.prompt_dataset /no/such/file.jsonl", "no such file"),
    ({"prompt_data": "{tmp}/empty.jsonl"}, "empty.jsonl", "at least one prompt"),
    ({"prompt_data": "{tmp}/torn.jsonl"}, "torn.jsonl", "line 1 is not JSON"),
    ({"prompt_data": "{tmp}/few.jsonl"}, "has 2 prompts", "--train.batch_size"),
    ({"prompt_data": "{tmp}/nolabel.jsonl"}, "--data.label_key label", "it has input"),
    ({"prompt_data": "{tmp}/noinput.jsonl"}, "--data.input_key input", "it has label"),
    ({"eval_dataset": "{tmp}/nolabel.jsonl"}, "--data.label_key label", "it has input"),
    ({"label_key": None}, "--data.label_key", "column"),
    ({"remote_rm_url": "{tmp}/broken_reward.py"}, "broken_reward.py", "does not import"),
    ({"remote_rm_url": "{tmp}/missing_reward.py"}, "missing_reward.py", "no such file"),
    ({"max_new_tokens": "64"}, "--rollout.max_new_tokens 64", "below --data.max_len"),
    ({"max_len": "192"}, "--data.max_len 192", "use at most 128"),
    ({"backend": "cuda"}, "--backend cuda", "--backend cpu"),
    ({"param_dtype": "fp16"}, "--ds.param_dtype fp16", "bf16 or fp32"),
    ({"ds.load_in_4bit": "true"}, "--ds.load_in_4bit", "GPU"),
    ({"ring_attn_size": "2"}, "--ds.ring_attn_size 2", "1"),
    ({"verifier.workers": "0"}, "--verifier.workers 0:", "between 1 and 256"),
    ({"verifier.unknown": "guess"}, "--verifier.unknown guess:", "zero, exclude, retry"),
    ({"config": "{tmp}/none.yaml"}, "none.yaml", "no such file"),
    ({"resume": "/no/such/checkpoint"}, "--resume /no/such/checkpoint", "auto or never"),
    ({"resume": "never", "load_checkpoint": "true"}, "--ckpt.load_enable true", "--resume auto"),
    ({"run.accept_changes": "train.sede"}, "--run.accept_changes train.sede", "did you mean train.seed"),
    ({"ckpt.on_failure": "panic"}, "--ckpt.on_failure", "continue"),
    (
        {"full_determinism": "true", "async_train": "true", "colocate_all_models": "false"},
        "--train.full_determinism_enable true",
        "--train.async_enable false",
    ),
    # Numbers that the host accepts and later divides by, indexes with or trains with.
    ({"micro_rollout_batch_size": "0"}, "--rollout.micro_batch_size 0", "at least 1"),
    ({"micro_train_batch_size": "0"}, "--train.micro_batch_size 0", "at least 1"),
    ({"train_batch_size": "-16"}, "--train.batch_size -16", "at least 1"),
    ({"rollout_batch_size": "0"}, "--rollout.batch_size 0", "at least 1"),
    ({"n_samples_per_prompt": "-4"}, "--rollout.n_samples_per_prompt -4", "at least 1"),
    ({"save_steps": "0"}, "--ckpt.save_steps 0", "at least 1, or -1"),
    ({"eval_steps": "0"}, "--eval.steps 0", "at least 1, or -1"),
    ({"logging_steps": "0"}, "--logger.logging_steps 0", "at least 1"),
    ({"num_episodes": "0"}, "--train.num_episodes 0", "at least 1"),
    ({"max_epochs": "0"}, "--train.max_epochs 0", "at least 1"),
    ({"max_len": "0"}, "--data.max_len 0", "at least 1"),
    ({"max_samples": "0"}, "--data.max_samples 0", "at least 1"),
    ({"max_new_tokens": "0"}, "--rollout.max_new_tokens 0", "at least 1"),
    ({"temperature": "0"}, "--rollout.temperature 0", "above 0"),
    ({"temperature": "nan"}, "--rollout.temperature nan", "above 0"),
    ({"top_p": "1.5"}, "--rollout.top_p 1.5", "at most 1"),
    ({"actor.adam.lr": "-0.1"}, "--actor.adam.lr -0.1", "above 0"),
    ({"actor.adam.betas": ("0.9", "1.0")}, "--actor.adam.betas 0.9 1", "at least 0"),
    ({"actor.lr_warmup_ratio": "3"}, "--actor.lr_warmup_ratio 3", "at most 1"),
    ({"actor.lr_scheduler": "cosinus"}, "--actor.lr_scheduler cosinus", "constant"),
    ({"eps_clip": "0"}, "--actor.eps_clip 0", "above 0"),
    ({"actor.dual_clip": "1"}, "--actor.dual_clip 1", "above 1"),
    ({"init_kl_coef": "-0.1"}, "--algo.kl.init_coef -0.1", "at least 0"),
    ({"gamma": "1.1"}, "--algo.advantage.gamma 1.1", "at most 1"),
    ({"seed": "-1"}, "--train.seed -1", "at least 0"),
    ({"zero_stage": "4"}, "--ds.zero_stage 4", "at most 3"),
    ({"zero_stage": "0"}, "--ds.zero_stage 0", "at least 1 and at most 3"),
    ({"faults.max_failed_share": "2"}, "--faults.max_failed_share 2", "at most 1"),
    ({"faults.min_entropy": "0.1"}, "--faults.min_entropy 0.1", "--actor.entropy_coef 0"),
    ({"faults.max_kl": "0.1"}, "--faults.max_kl 0.1", "--algo.kl.init_coef above 0"),
    (
        {"faults.min_mixed_share": "0.1", "advantage_estimator": "group_norm"},
        "--faults.min_mixed_share 0.1",
        "--algo.credit.shadow true",
    ),
    ({"faults.collapse_patience": "0"}, "--faults.collapse_patience 0", "at least 1"),
    ({"faults.reward_tries": "0"}, "--faults.reward_tries 0", "at least 1"),
    ({"faults.reward_timeout_s": "nan"}, "--faults.reward_timeout_s nan", "above 0"),
    ({"faults.max_repetition": "1.1"}, "--faults.max_repetition 1.1", "at most 1"),
    ({"faults.min_mixed_share": "-0.1"}, "--faults.min_mixed_share -0.1", "at least 0"),
    *(
        ({f"faults.{name}": "-1"}, f"--faults.{name} -1", "at least 0")
        for name in "max_skipped_updates rollout_retries engine_restarts model_restarts max_length max_kl".split()
    ),
    ({"faults.collapse_action": "pray"}, "--faults.collapse_action", "choose from"),
    ({"run.grace_seconds": "-1"}, "--run.grace_seconds -1", "at least 0"),
    ({"actor_num_gpus_per_node": "0"}, "--actor.num_gpus_per_node 0", "at least 1"),
    ({"vllm_gpu_memory_utilization": "95"}, "--vllm.gpu_memory_utilization 95", "at most 1"),
    ({"vllm_num_engines": None}, "--vllm.num_engines", "at least 1"),
    ({"attn_implementation": "quick"}, "--ds.attn_implementation quick", "sdpa"),
    ({"max_len": "100000"}, "--data.max_len 100000", "max_position_embeddings"),
    ({"algo.dynamic_filtering_range": ("1", "0")}, "--algo.dynamic_filtering_range 1 0", "lower number first"),
    ({"input_template": "Solve this"}, "--data.input_template 'Solve this'", "must contain {problem} once"),
    ({"input_template": "Solve {} {}"}, "--data.input_template 'Solve {} {}'", "must contain {problem} once"),
    ({"input_template": r"Put it in \boxed{}."}, "--data.input_template", "must contain {problem} once"),
    ({"data.chat_template_args": "enable_thinking"}, "--data.chat_template_args enable_thinking", "NAME=VALUE"),
    ({"data.chat_template_args": "a=1"}, "--data.chat_template_args a=1", "--data.apply_chat_template"),
    ({"prompt_data_probs": "0.5,0.5"}, "--data.prompt_probs 0.5,0.5", "one for each"),
    ({"prompt_data_probs": "half"}, "--data.prompt_probs half", "comma-separated numbers"),
    ({"prompt_data_probs": "0.5"}, "--data.prompt_probs 0.5", "sum is 1"),
    ({"prompt_split": "test"}, "--data.prompt_split test", "give train"),
    ({"eval_dataset": "{tmp}/good.jsonl", "eval_split": "test"}, "--eval.split test", "give train"),
    ({"prompt_data": "nobody/no-data"}, "--data.prompt_dataset nobody/no-data", "not in the local cache"),
    ({"prompt_data": "{tmp}/good.jsonl,"}, "--data.prompt_dataset", "between two commas"),
    ({"pretrain": "{tmp}/torn_config"}, "--actor.model_name_or_path {tmp}/torn_config", "cannot be read"),
    ({"pretrain": "{tmp}/own_code"}, "model type evil is defined by Python code", "--model.trust_remote_code true"),
    ({"pretrain": "{tmp}/no_weights"}, "--actor.model_name_or_path {tmp}/no_weights", "no weights"),
    ({"apply_chat_template": "true"}, "--data.apply_chat_template true", "chat_template.jinja"),
    ({"run.dir": "{tmp}/good.jsonl"}, "--run.dir {tmp}/good.jsonl", "give a folder"),
    ({"ckpt.path": "{tmp}/good.jsonl/below"}, "--ckpt.path", "give a folder"),
    ({"train.agent_func_path": "{tmp}/none.py"}, "--train.agent_func_path", "no such Python file"),
    ({"config": "{tmp}/list.yaml"}, "list.yaml", "option names and values"),
    ({"config": "{tmp}/torn.yaml"}, "torn.yaml", "not a YAML file"),
    ({"config": "{tmp}/python.yaml"}, "python.yaml", "not a YAML file"),
    ({"config": "{tmp}/typo.yaml"}, "rollout.temprature", "did you mean rollout.temperature"),
    ({"config": "{tmp}/wrong_type.yaml"}, "--rollout.temperature", "invalid float value"),
    ({"config": "{tmp}/missing_base.yaml"}, "nowhere.yaml", "no such file"),
    # Would train on nothing, or deadlock ranks.
    (
        {"use_dynamic_batch": "true", "zero_stage": "3", "actor_num_gpus_per_node": "3", "vllm_num_engines": "3"},
        "--train.batch_size 16: does not divide into --train.micro_batch_size 1 x 3 ranks",
        "use 18",
    ),
    (
        {"ds_tensor_parallel_size": "2", "zero_stage": "2"},
        "--ds.tensor_parallel_size 2: must divide",
        "use 2 devices",
    ),
    (
        {"ds_tensor_parallel_size": "2", "actor_num_gpus_per_node": "3", "vllm_num_engines": "3"},
        "--ds.tensor_parallel_size 2: must divide",
        "use 4 devices",
    ),
    ({"actor_num_gpus_per_node": "32", "vllm_num_engines": "32"}, "= 16 rollouts a step: fewer than", "at least 32"),
    (
        {"advantage_estimator": "rloo", "n_samples_per_prompt": "1"},
        "--rollout.n_samples_per_prompt 1: rloo",
        "at least 2",
    ),
    ({"packing_samples": "true", "vllm_num_engines": None}, "--vllm.num_engines None", "at least 1"),
    ({"use_dynamic_batch": "true", "vllm_num_engines": None}, "--vllm.num_engines None", "at least 1"),
    ({"use_ms": "true"}, "--use_ms true", "install it"),
    ({"vllm_generate_batch_size": "8"}, "--rollout.vllm_generate_batch_size 8", "--train.async_enable true"),
    ({"partial_rollout": "true"}, "--train.partial_rollout_enable true", "--train.async_enable true"),
    (
        {"data.max_images_per_prompt": "1", "advantage_estimator": "gae"},
        "--data.max_images_per_prompt 1",
        "another --advantage_estimator",
    ),
    (
        {"algo.advantage.is_correction_threshold": ("1", "2", "3")},
        "--algo.advantage.is_correction_threshold 1 2 3",
        "LOW HIGH",
    ),
    (
        {"algo.advantage.is_correction_level": "seq", "algo.advantage.is_correction_mode": "clip"},
        "--algo.advantage.is_correction_mode clip",
        "give mask, or token and ratio",
    ),
    (
        {"algo.advantage.is_correction_level": "token", "algo.advantage.is_correction_gating": "tv"},
        "--algo.advantage.is_correction_threshold 0.5 5",
        "give one number, such as 0.05",
    ),
    (
        {"reward.model_name_or_path": "examples/quickstart/model", "eval_dataset": "{tmp}/good.jsonl"},
        "--eval.dataset {tmp}/good.jsonl",
        "leave one of them out",
    ),
    (
        {"init_kl_coef": "0.1", "ref_num_gpus_per_node": "2"},
        "--ref.num_gpus_per_node 2",
        "--algo.kl.init_coef 0",
    ),
    ({"advantage_estimator": "gae"}, "--critic.num_gpus_per_node 8", "give the actor's numbers, 1 and 1"),
    (
        {"advantage_estimator": "gae", "colocate_all_models": "false", "critic_num_gpus_per_node": "3"},
        "--rollout.micro_batch_size 1 x 3 ranks of --critic",
        "use 18 rollouts",
    ),
    (
        {"advantage_estimator": "gae", "colocate_all_models": "false", "critic_num_gpus_per_node": "3"},
        "--train.batch_size 16: does not divide into --train.micro_batch_size 1 x 3 ranks of --critic",
        "use 18",
    ),
    (
        {
            **{"use_dynamic_batch": "true", "colocate_all_models": "false"},
            **{"init_kl_coef": "0.1", "ref_num_gpus_per_node": "2"},
        },
        "--ref.num_gpus_per_node 2: 2 ranks of --ref do not divide the actor's 1",
        "give it the actor's numbers",
    ),
    (
        {"advantage_estimator": "gae", "reward.model_name_or_path": MODEL, "train.colocate_critic_reward": "true"}
        | {"critic_num_gpus_per_node": "2", "reward_num_gpus_per_node": "1"},
        "--critic.num_gpus_per_node 2",
        "--reward.num_gpus_per_node 1); set them equal",
    ),
    (
        {"advantage_estimator": "gae", "train.colocate_critic_reward": "true", "critic_num_gpus_per_node": "1"},
        "--critic.num_gpus_per_node 1: with --train.colocate_critic_reward",
        "--reward.num_gpus_per_node 8); set them equal",
    ),
    ({"ref_num_nodes": "0"}, "--ref.num_nodes 0", "at least 1"),
    ({"critic_num_gpus_per_node": "0"}, "--critic.num_gpus_per_node 0", "at least 1"),
    ({"reward_num_nodes": "-1"}, "--reward.num_nodes -1", "at least 1"),
    (
        {"async_train": "true", "colocate_all_models": "false", "vllm_enable_sleep": "true"},
        "--vllm.enable_sleep true",
        "--vllm.enable_sleep false",
    ),
    ({"vllm_tensor_parallel_size": "2"}, "--vllm.tensor_parallel_size 2", "--vllm.num_engines for more"),
    ({"ds.use_liger_kernel": "true"}, "--ds.use_liger_kernel true", "needs a GPU"),
    ({"ds.deepcompile": "true"}, "--ds.deepcompile true", "needs a GPU"),
    *(({f"ktae.{name}": "-1"}, f"--ktae.{name} -1", "at least 0") for name in RECORD),
    # Adapters: conflicting options, and modules that cannot have one.
    ({**LORA, "zero_stage": "2", "ds_tensor_parallel_size": "2"}, "--ds.tensor_parallel_size 2", "--ds.zero_stage 3"),
    ({**LORA, "enable_ema": "true"}, "--train.enable_ema true", "leave it out"),
    ({**LORA, "use_ds_universal_ckpt": "true"}, "--ds.use_universal_ckpt true", "leave it out"),
    ({**LORA, "advantage_estimator": "gae"}, "--advantage_estimator gae", "another estimator"),
    ({**LORA, "actor.freeze_visual_encoder": "true"}, "--actor.freeze_visual_encoder true", "leave it out"),
    ({**LORA, "target_modules": "q_porj"}, "--ds.lora.target_modules q_porj", "such as q_proj v_proj"),
    ({**LORA, "target_modules": "input_layernorm"}, "input_layernorm is not a linear layer", "such as q_proj"),
    ({**LORA, "target_modules": ("q_proj", "vproj")}, "has no module vproj", "such as q_proj"),
    ({**LORA, "target_modules": ("q_proj", "embed_tokens")}, "q_proj embed_tokens", "tie_word_embeddings"),
    ({**LORA, "lora_alpha": "0"}, "--ds.lora.alpha 0", "above 0"),
    ({**LORA, "lora_dropout": "1"}, "--ds.lora.dropout 1", "at least 0"),
    # Options without effect.
    ({"lora_alpha": "32"}, "--ds.lora.alpha 32", "--ds.lora.rank"),
    ({"target_modules": "q_proj"}, "--ds.lora.target_modules q_proj", "--ds.lora.rank"),
    *(
        (
            {f"algo.ktae.{name}": value, "advantage_estimator": "group_norm"},
            f"--algo.ktae.{name} {value}",
            "leave it out",
        )
        for name, value in (("variant", "calibrated"), ("base", "rloo"), ("weight", "0.5"))
    ),
    ({"algo.ktae.top_tokens": "-1"}, "--algo.ktae.top_tokens -1", "give 0"),
    ({"best_metric_key": "nonsense"}, "--ckpt.best_metric_key nonsense", "eval_macro_accuracy"),
    # Models that are missing, incomplete, or not causal language models.
    (
        {"advantage_estimator": "gae", "critic_pretrain": "/no/such"},
        "--critic.model_name_or_path /no/such",
        "no such folder",
    ),
    ({"reward.model_name_or_path": "nobody/none"}, "--reward.model_name_or_path nobody/none", "not in the local cache"),
    ({"reward.model_name_or_path": "/no/such"}, "--reward.model_name_or_path /no/such", "no such folder"),
    *(({"pretrain": f"{{tmp}}/{name}"}, f"--actor.model_name_or_path {{tmp}}/{name}", way) for name, way in BAD_MODELS),
    ({"pretrain": "x" * 300}, "--actor.model_name_or_path xxx", "no such folder"),
    ({"pretrain": "x/" + "y" * 300}, "--actor.model_name_or_path x/y", "no such"),
    # Judges.
    ({"remote_rm_url": "notaurl"}, "--reward.remote_url notaurl", "http://"),
    ({"remote_rm_url": "http://good:1,ftp://bad"}, "--reward.remote_url ftp://bad", "http://"),
    *(
        ({"remote_rm_url": f"{{tmp}}/{name}.py"}, f"--reward.remote_url {{tmp}}/{name}.py", way)
        for name, (_, way) in BAD_REWARDS.items()
    ),
    *(
        ({"train.agent_func_path": f"{{tmp}}/{name}.py"}, f"--train.agent_func_path {{tmp}}/{name}.py", way)
        for name, (_, way) in BAD_AGENTS.items()
    ),
    # Paths.
    ({"run.dir": "/proc/x"}, "--run.dir /proc/x", "another folder"),
    ({"run.dir": "/sys/x"}, "--run.dir /sys/x", "another folder"),
    ({"ckpt.path": "{tmp}/" + "x" * 300}, "--ckpt.path", "a shorter one"),
    ({"prompt_data": "{tmp}/" + "x" * 300}, "--data.prompt_dataset", "no such file"),
    ({"prompt_data": "x" * 300 + ".jsonl"}, "--data.prompt_dataset", "no such file"),
    # Several data sets, and folders.
    ({"prompt_data": "{tmp}/good.jsonl,{tmp}/number_labels.jsonl"}, "column label is a number", "write both as one"),
    *(({"prompt_data": f"{{tmp}}/folders/{name}"}, names, way) for name, (_, names, way) in BAD_FOLDERS.items()),
    # Configuration files.
    ({"config": "{tmp}/double.yaml"}, "double.yaml", "rollout appears twice"),
    ({"config": "{tmp}/double_leaf.yaml"}, "double_leaf.yaml", "top_p appears twice"),
    ({"config": "{tmp}/flat.yaml"}, "flat.yaml: pretrain: no such option", "it is now actor.model_name_or_path"),
    ({"config": "{tmp}/bf16.yaml"}, "bf16.yaml: bf16: no such option", "it is now ds.param_dtype: bf16"),
    ({"config": "{tmp}/config_in_config.yaml"}, "config_in_config.yaml: config", "include: other.yaml"),
    ({"config": "{tmp}/empty_mapping.yaml"}, "empty_mapping.yaml: rollout.temperature", "give a value"),
]
# Content of a prompt file; what the message names; the fix. The option is the data's unless given.
BAD_FILES = [
    ("empty.jsonl", "", "is empty", "at least one prompt"),
    ("blank_lines.jsonl", "\n\n  \n", "is empty", "at least one prompt"),
    ("torn.jsonl", ROW * 5 + '{"input": "2 + ', "line 6 is not JSON", "repair or remove it"),
    ("list_rows.jsonl", "[1, 2]\n[3, 4]\n", "not a .jsonl file", "(Extra data"),
    ("number_rows.jsonl", ROW + "17\n", "row 2 is not a JSON object", "write one with a prompt"),
    ("text_rows.json", '["a", "b"]', "row 1 is not a JSON object", "write one with a prompt"),
    ("object.json", '{"data": [', "line 1 is not JSON", "repair or remove it"),
    ("csv_as_json.jsonl", "input,label\n1 + 1,2\n", "line 1 is not JSON", "repair or remove it"),
    ("binary.jsonl", b"\x80\x81\x82\xff" * 99, "not a .jsonl file", "can't decode"),
    ("utf16.jsonl", (ROW * 8).encode("utf-16"), "not a .jsonl file", "can't decode"),
    ("bom.jsonl", b"\xef\xbb\xbf" + ROW.encode() * 8, "byte order mark", "without one"),
    ("no_prompt.jsonl", ROW * 4 + '{"label": "2"}\n' + ROW * 4, "--data.input_key input", "row 5 has nothing"),
    ("no_answer.jsonl", ROW * 4 + '{"input": "1"}\n' + ROW * 4, "--data.label_key label", "row 5 has nothing"),
    ("null_answer.jsonl", ROW + '{"input": "1", "label": null}\n' + ROW * 9, "row 2 has nothing", "fill or remove"),
    (
        "empty_prompt.jsonl",
        ROW + '{"input": " ", "label": "1"}\n' + ROW * 9,
        "row 2 has an empty text",
        "fill or remove",
    ),
    ("mixed.jsonl", ROW * 7 + '{"input": "1", "label": 1}\n', "row 8 has a number", "write all as one"),
    ("number_prompt.jsonl", '{"input": 1, "label": "1"}\n' * 8, "it is a number", "must be a text"),
    ("object_answer.jsonl", '{"input": "1", "label": {"a": 1}}\n' * 8, "it is an object", "must be a text"),
    ("chat.jsonl", '{"input": [{"role": "user"}], "label": "1"}\n' * 8, "it is a list", "must be a text"),
    ("deep.jsonl", '{"input": ' + "[" * 100_000 + "\n", "line 1 is not JSON", "repair or remove it"),
    (
        "other_columns.jsonl",
        '{"question": "1", "answer": "1"}\n' * 8,
        "--data.input_key input",
        "it has question, answer",
    ),
    ("other_columns.csv", "question,answer\n1,1\n", "--data.input_key input", "it has question, answer"),
    ("ragged.csv", "input,label\n1,1\n1,1,1\n", "row 3 has 3 cells", "header has 2"),
    ("twice.csv", "input,input,label\n1,1,1\n", "two columns have the same name", "rename one"),
    ("quote.csv", 'input,label\n"1,1\n', "not a .csv file", "unexpected end of data"),
    ("gap.csv", "input,label\n1,1\n,1\n", "row 3 has an empty text", "fill or remove"),
    ("text.parquet", ROW * 8, "not a .parquet file", "Parquet"),
    ("text.arrow", ROW * 8, "not a .arrow file", "("),
    ("prompts.txt", ROW * 8, "unknown suffix", ".jsonl"),
    ("loader.py", "raise SystemExit", "loading script", "save its rows as .jsonl"),
    ("few.jsonl", ROW * 2, "has 2 prompts", "--train.batch_size"),
]


@pytest.fixture(autouse=True, scope="module")
def imported():
    """Import everything first: these tests time the refusal only; a fresh process is timed below."""
    assert main(["--no.such_option"]) == 2


@CPU_BUILDS
def test_a_fresh_process_refuses_in_less_than_ten_seconds(root):
    """Or, on a machine too slow or too busy for that, in little more than the time of its largest imports."""
    command_line = [sys.executable, "-m", "openrlhf_ktae.cli.train_ppo_ray", "--config"]
    command_line += ["configs/grpo_ktae/quickstart.yaml", "--actor.lr_scheduler", "cosinus"]
    imports = [sys.executable, "-c", "import deepspeed, ray, torch, transformers.models.qwen2"]
    seconds, of_imports = [], []
    for _ in range(2):
        done = timed(command_line, root, seconds)
        assert done.returncode == 2
        assert done.stderr.startswith("error: --actor.lr_scheduler cosinus")
        if seconds[-1] < 10:
            return
        assert timed(imports, root, of_imports).returncode == 0
    assert min(seconds) < 1.5 * min(of_imports)


def timed(command_line, folder, seconds):
    started = time.monotonic()
    done = subprocess.run(command_line, cwd=folder, capture_output=True, text=True, check=False)
    seconds.append(time.monotonic() - started)
    return done


@pytest.fixture(autouse=True)
def nothing_starts(monkeypatch):
    monkeypatch.setattr(command, "start_importing", lambda *_: None)
    monkeypatch.setattr(command, "_train_watched", lambda *_: pytest.fail("accepted"))


@pytest.fixture
def files(tmp_path, root):
    rows = [{"input": f"compute {n} + 1 :", "label": str(n + 1)} for n in range(8)]
    texts = {
        "good.jsonl": rows,
        "few.jsonl": rows[:2],
        "empty.jsonl": [],
        "nolabel.jsonl": [{"input": row["input"]} for row in rows],
        "noinput.jsonl": [{"label": row["label"]} for row in rows],
    }
    for name, content in texts.items():
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in content))
    (tmp_path / "torn.jsonl").write_text('{"input": "compu')
    (tmp_path / "broken_reward.py").write_text("import no_such_module\n")
    for name, text in {
        "list.yaml": "- a",
        "torn.yaml": "a: [",
        "python.yaml": "a: !!python/object/apply:os.system ['true']",
        "typo.yaml": "rollout: {temprature: 1}",
        "wrong_type.yaml": "rollout: {temperature: hot}",
        "missing_base.yaml": "include: nowhere.yaml",
        "double.yaml": "rollout: {temperature: 0.5}\nrollout: {top_p: 0.9}",
        "double_leaf.yaml": "rollout: {top_p: 0.5, top_p: 0.9}",
        "flat.yaml": "pretrain: x",
        "bf16.yaml": "bf16: true",
        "config_in_config.yaml": "config: other.yaml",
        "empty_mapping.yaml": "rollout: {temperature: {}}",
        "number_labels.jsonl": '{"input": "1", "label": 2}\n' * 8,
        **{f"{name}.py": text for name, (text, _) in (BAD_REWARDS | BAD_AGENTS).items()},
        **{f"folders/{name}/{file}": text for name, (texts, *_) in BAD_FOLDERS.items() for file, text in texts.items()},
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    for name, config in {
        "torn_config": "{",
        "own_code": json.dumps({"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config"}}),
        "no_weights": json.dumps({"model_type": "qwen2"}),
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(config)
    (tmp_path / "heads16").mkdir()
    (tmp_path / "heads16" / "config.json").write_text(json.dumps({**QWEN, "hidden_size": 64}))
    model_folders(tmp_path, root / GOOD["pretrain"])
    return tmp_path


def model_folders(place, good):
    """Write copies of the quickstart's model with one fault each; a file's new content, or None to remove it."""
    config = json.loads((good / "config.json").read_text())
    weights = (good / "model.safetensors").read_bytes()
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    heads16 = {"hidden_size": 64, "num_attention_heads": 4}
    gpt2 = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_embd": 64, "n_head": 4}
    seen = {"model_type": "qwen2_vl", "architectures": ["Qwen2VLForConditionalGeneration"], "text_config": heads16}
    changes = {
        "no_tokenizer": {"tokenizer.json": None, "tokenizer_config.json": None},
        "torn_weights": {"model.safetensors": weights[: len(weights) // 2]},
        "empty_weights": {"model.safetensors": b""},
        "pointer_weights": {"model.safetensors": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"},
        "missing_shard": {"model.safetensors.index.json": index},
        "torn_tokenizer": {"tokenizer.json": b'{"version": "1.0", "trunc'},
        "text_heads": {"config.json": {**config, "num_attention_heads": "four"}},
        "text_hidden": {"config.json": {**config, "hidden_size": "128"}},
        "unknown_kind": {"config.json": {**config, "model_type": "qwen9000"}},
        "no_kind": {"config.json": {**config, "model_type": None}},
        "bert": {"config.json": {**config, "model_type": "bert", "architectures": ["BertForMaskedLM"]}},
        "classifier": {"config.json": {**config, "architectures": ["Qwen2ForSequenceClassification"]}},
        "t5": {"config.json": {**config, "model_type": "t5", "architectures": ["T5ForConditionalGeneration"]}},
        "inner_heads16": {"config.json": seen},
        "gpt2_heads16": {"config.json": gpt2},
    }
    for name, files in changes.items():
        (place / name).mkdir()
        for path in good.iterdir():
            if path.name not in files:
                (place / name / path.name).symlink_to(path)
        for file, content in files.items():
            if content is not None:
                text = content if isinstance(content, bytes) else json.dumps(content).encode()
                (place / name / file).write_bytes(text)


def words(changes, tmp):
    options = {**GOOD, **changes}
    return [
        word.replace("{tmp}", str(tmp))
        for name, value in options.items()
        if value is not None
        for word in (f"--{name}", *([value] if isinstance(value, str) else value))
    ]


@pytest.mark.parametrize(("changes", "names", "way_out"), BAD, ids=[" ".join(map(str, c.items())) for c, _, _ in BAD])
def test_refused(changes, names, way_out, files, capsys, monkeypatch, root):
    monkeypatch.chdir(root)
    refused(words(changes, files), names.replace("{tmp}", str(files)), way_out, files, capsys)


@pytest.mark.parametrize(("name", "content", "names", "way_out"), BAD_FILES, ids=[name for name, *_ in BAD_FILES])
def test_a_wrong_data_file_is_refused(name, content, names, way_out, files, capsys, monkeypatch, root):
    monkeypatch.chdir(root)
    path = files / "data" / name
    path.parent.mkdir()
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    message = refused(words({"prompt_data": str(path)}, files), names, way_out, files, capsys)
    assert name in message
    assert "--data." in message


def test_wrong_tables_of_other_formats_are_refused(files, capsys, monkeypatch, root):
    import pyarrow as pa
    from pyarrow import parquet

    monkeypatch.chdir(root)
    path = files / "prompts.parquet"
    for column, names, way_out in (
        (["1"] * 7 + [None], "--data.input_key input", "1 rows have nothing"),
        (["1"] * 7 + [""], "--data.input_key input", "1 rows have an empty text"),
        ([1] * 8, "--data.input_key input", "it is a number"),
    ):
        parquet.write_table(pa.table({"input": column, "label": ["1"] * 8}), path)
        refused(words({"prompt_data": str(path)}, files), names, way_out, files, capsys)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    refused(words({"prompt_data": str(path)}, files), "not a .parquet file", "--data.prompt_dataset", files, capsys)


def refused(line, names, way_out, files, capsys):
    started = time.process_time()  # a busy machine does not change it
    assert main(line) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert names in message
    assert way_out in message
    assert "Traceback" not in message
    assert time.process_time() - started < 10
    assert not (files / "run").exists()
    return message


def test_the_same_options_unchanged_are_accepted(files, monkeypatch, root):
    """Otherwise the table would pass on a command that refuses everything."""
    from openrlhf_ktae.backend import resolve
    from openrlhf_ktae.checks.preflight import preflight
    from openrlhf_ktae.cli.options import parse_command_line

    monkeypatch.chdir(root)
    args = parse_command_line(words({}, files))
    preflight(args, resolve("cpu"))
