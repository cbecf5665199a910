"""Options: every name takes effect, and errors are refused with the fix."""

from __future__ import annotations

import argparse
import re
from types import SimpleNamespace

import pytest
import yaml

from openrlhf_ktae.base.errors import BadOption
from openrlhf_ktae.cli.flat_names import FLAT_NAMES, FLAT_SWITCHES, translate_flat_names
from openrlhf_ktae.cli.host_parser import _main_block, parse
from openrlhf_ktae.cli.options import build_parser, parse_command_line
from openrlhf_ktae.ktae.config import KTAEConfig
from openrlhf_ktae.record.directory import nested_options

MINIMAL = ["--pretrain", "m", "--prompt_data", "d.jsonl", "--vllm_num_engines", "1", "--actor.num_gpus_per_node", "1"]
KTAE = [*MINIMAL, "--advantage_estimator", "ktae", "--n_samples_per_prompt", "4"]


@pytest.fixture(scope="module")
def actions():
    parser = build_parser()
    parse(parser, KTAE_DOTTED)
    return parser._option_string_actions


KTAE_DOTTED = translate_flat_names(KTAE)


OTHER_DEFAULTS = {
    "--ckpt.best_metric_key": "the mean accuracy of all benchmarks selects, not the first pass@1",
    "--ds.attn_implementation": "depends on whether flash-attn is installed",
    "--logger.wandb.run_name": "holds the time of the start, which this test replaces",
}
"""Host options with a different default here, and why."""


class Declared(Exception):
    """Raised once the host has declared all of its options."""


class HostParser(argparse.ArgumentParser):
    def parse_args(self, *_):
        raise Declared


def host_defaults():
    """Return flag -> default of every option by executing the host's own argparse declarations."""
    parser = HostParser(add_help=False)
    clock = SimpleNamespace(now=lambda: SimpleNamespace(strftime=lambda _: "TIME"))
    names = {"argparse": SimpleNamespace(ArgumentParser=lambda: parser), "datetime": clock}
    with pytest.raises(Declared):
        exec(_main_block(), names)
    return {flag: action.default for flag, action in parser._option_string_actions.items()}


def test_every_host_option_exists_with_the_host_default(actions, host):
    defaults = host_defaults()
    assert len(defaults) > 150
    assert not [flag for flag in defaults if flag not in actions]
    other = {flag: default for flag, default in defaults.items() if default != actions[flag].default}
    assert other.keys() == OTHER_DEFAULTS.keys()


OLD_NAMES = """
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
"""Lines of `GROUP: flat names`, as flat=name where the two differ; kept independently of the package's table."""


def old_names():
    """Return flat name -> current name from `OLD_NAMES`."""
    pairs = {}
    for line in OLD_NAMES.strip().splitlines():
        group, words = line.split(": ")
        for word in words.split():
            flat, _, name = word.partition("=")
            pairs[flat] = f"{group}.{name or flat}"
    return pairs


def test_flat_names_are_those_of_older_releases():
    assert old_names() == FLAT_NAMES
    switches = {"bf16": ["--ds.param_dtype", "bf16"], "flash_attn": ["--ds.attn_implementation", "flash_attention_2"]}
    assert switches == FLAT_SWITCHES


@pytest.mark.parametrize(("flat", "dotted"), FLAT_NAMES.items())
def test_flat_name_stands_for_an_option_of_the_host(flat, dotted, actions):
    assert f"--{dotted}" in actions, f"--{flat} maps to no option"
    assert translate_flat_names([f"--{flat}", "1"]) == [f"--{dotted}", "1"]
    assert translate_flat_names([f"--{flat}=1"]) == [f"--{dotted}=1"]


def test_flat_switches_are_options_too(actions):
    for words in FLAT_SWITCHES.values():
        assert words[0] in actions


@pytest.mark.parametrize(
    "places", [(), ("--run.dir", "r"), ("--save_path", "m"), ("--run.dir", "m", "--save_path", "m")]
)
@pytest.mark.parametrize("estimator", ["ktae", "group_norm", "gae"])
def test_written_options_can_be_parsed_again(estimator, places, tmp_path):
    """KTAE's options are refused without KTAE, except at their defaults, which every run writes."""
    words = [*MINIMAL, "--advantage_estimator", estimator, "--n_samples_per_prompt", "4", "--label_key", "label"]
    words += places
    written = nested_options(parse_command_line(words))
    path = write(tmp_path / "config.yaml", written)
    assert nested_options(parse_command_line(["--config", path])) == written


def test_the_host_sees_group_norm_if_ktae_is_chosen():
    args = parse_command_line(KTAE)
    assert args.algo.advantage.estimator == "group_norm"
    assert args.algo.credit.name == "ktae"
    assert args.critic.model_name_or_path is None


@pytest.mark.parametrize("base", ["dr_grpo", "rloo", "reinforce_baseline"])
def test_base_becomes_the_host_estimator(base):
    assert parse_command_line([*KTAE, "--algo.ktae.base", base]).algo.advantage.estimator == base


def test_without_ktae_all_its_options_are_off():
    args = parse_command_line([*MINIMAL, "--advantage_estimator", "group_norm", "--n_samples_per_prompt", "4"])
    assert not args.algo.credit.name


CHANGED = {
    "variant": "calibrated", "h1": 0.5, "h2": 0.25, "h3": 2.0, "k1": 1.5, "b": 0.25, "fisher": "point",
    "correct_threshold": 0.5, "scale": 2.0, "value_range": 0.75, "weight": 0.5, "centre": True, "excluded_ids": (3, 4),
    "term_frequency": "count", "ratio_epsilon": 0.01, "p_max": 0.2, "noise_budget": 0.02, "by_failure": True,
}  # fmt: skip
NEEDS_CALIBRATED = ("p_max", "noise_budget")


@pytest.mark.parametrize("name", list(KTAEConfig.__dataclass_fields__))
def test_each_ktae_option_arrives(name):
    value = CHANGED[name]
    words = [str(part) for part in value] if isinstance(value, tuple) else [str(value).lower()]
    variant = ["--algo.ktae.variant", "calibrated"] if name in NEEDS_CALIBRATED else []
    args = parse_command_line([*KTAE, *variant, f"--algo.ktae.{name}", *words])
    assert getattr(args.algo.ktae.config, name) == value


def write(path, tree):
    path.write_text(yaml.safe_dump(tree))
    return str(path)


def test_the_command_line_wins_over_the_config_file(tmp_path):
    path = write(tmp_path / "a.yaml", {"rollout": {"temperature": 0.5, "top_p": 0.9}, "train": {"colocate_all": True}})
    args = parse_command_line([*KTAE, "--config", path, "--temperature", "0.7", "--train.colocate_all", "false"])
    assert (args.rollout.temperature, args.rollout.top_p, args.train.colocate_all) == (0.7, 0.9, False)


def test_config_file_includes_a_base(tmp_path):
    write(tmp_path / "base.yaml", {"rollout": {"temperature": 0.5, "top_p": 0.9}})
    path = write(tmp_path / "a.yaml", {"include": "base.yaml", "rollout": {"temperature": 0.6}})
    args = parse_command_line([*KTAE, f"--config={path}"])
    assert (args.rollout.temperature, args.rollout.top_p) == (0.6, 0.9)


@pytest.mark.parametrize(("later", "expected"), [(0.7, 0.7), (1.0, 1.0), (None, 1.0)])
def test_a_later_config_file_wins_even_with_a_default(tmp_path, later, expected):
    first = write(tmp_path / "a.yaml", {"rollout": {"temperature": 0.5, "top_p": 0.9}})
    second = write(tmp_path / "b.yaml", {"rollout": {"temperature": later}})
    args = parse_command_line([*KTAE, "--config", first, "--config", second])
    assert (args.rollout.temperature, args.rollout.top_p) == (expected, 0.9)


def test_config_file_refuses_unknown_keys_with_the_nearest(tmp_path):
    path = write(tmp_path / "a.yaml", {"rollout": {"temprature": 0.5}})
    with pytest.raises(BadOption, match=r"rollout\.temprature.*did you mean rollout\.temperature"):
        parse_command_line([*KTAE, "--config", path])


def test_a_config_file_that_includes_itself_is_refused(tmp_path):
    path = write(tmp_path / "a.yaml", {"include": "a.yaml"})
    with pytest.raises(BadOption, match="includes itself"):
        parse_command_line([*KTAE, "--config", path])


def test_a_scientific_number_in_yaml_is_a_number(tmp_path):
    (tmp_path / "a.yaml").write_text("actor: {adam: {lr: 1e-5}}")
    assert parse_command_line([*KTAE, "--config", str(tmp_path / "a.yaml")]).actor.adam.lr == 1e-5


def test_help_lists_ours_before_the_host(capsys):
    with pytest.raises(SystemExit) as end:
        parse_command_line(["--help"])
    text = capsys.readouterr().out
    assert end.value.code == 0
    assert text.index("--backend") < text.index("--algo.ktae.variant") < text.index("--vllm.num_engines")
    assert re.search(r"--pretrain\s+--actor.model_name_or_path", text)
