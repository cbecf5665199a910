"""Parse every shipped configuration through the real entry point; compare the paper's recipes value by value."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import yaml

from openrlhf_ktae.backend.cuda import CudaBackend
from openrlhf_ktae.base.config_file import load_config
from openrlhf_ktae.base.errors import BadOption
from openrlhf_ktae.checks import preflight as checks
from openrlhf_ktae.checks.preflight import preflight
from openrlhf_ktae.cli.options import parse_command_line
from openrlhf_ktae.data import hub

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
ARMS = ("grpo", "grpo_ktae", "dapo", "dapo_ktae")
SIZES = ("quickstart", "qwen2.5-math-1.5b", "qwen2.5-math-7b", "qwen2.5-32b", "qwen2.5-72b")
ALL = [f"{arm}/{size}" for arm in ARMS for size in SIZES]


def options(name):
    return parse_command_line(["--config", str(CONFIGS / f"{name}.yaml")])


def test_all_shipped_configurations_are_tested():
    shipped = {
        f"{path.parent.name}/{path.stem}"
        for path in CONFIGS.glob("*/*.yaml")
        if path.parent.name not in ("base", "compare")
    }
    assert shipped == {*ALL, "grpo_ktae/quickstart-llm"}


@pytest.mark.parametrize("name", [*ALL, "grpo_ktae/quickstart-llm"])
def test_every_file_parses_and_matches_its_arms_name(name):
    args = options(name)
    arm = name.split("/")[0]
    assert (args.algo.credit.name == "ktae") == arm.endswith("_ktae")
    assert args.algo.dynamic_filtering_enable == arm.startswith("dapo")
    assert args.algo.advantage.estimator == "group_norm"
    if arm.startswith("dapo"):
        assert args.algo.kl.init_coef == 0
        assert args.actor.loss_agg_mode == "token-mean"
        assert args.actor.eps_clip_low_high[1] > args.actor.eps_clip_low_high[0]
        assert args.reward.overlong_buffer_len


@pytest.mark.parametrize("arm", ["grpo", "dapo"])
@pytest.mark.parametrize("size", SIZES)
def test_an_arm_with_credit_differs_only_in_the_estimator(arm, size):
    plain, credited = (load_config(CONFIGS / f"{one}/{size}.yaml") for one in (arm, f"{arm}_ktae"))
    different = {key for key in plain | credited if plain.get(key) != credited.get(key)}
    assert different == {"algo.advantage.estimator", "run.dir"}


@pytest.mark.parametrize("name", [name for name in ALL if "qwen" in name])
def test_batches_divide_and_all_devices_are_used(name, monkeypatch):
    """Parsing runs the host's checks; this runs ours, except those that need the Hub or a GPU."""
    monkeypatch.setattr(hub, "missing", lambda *_: "")
    monkeypatch.setattr(checks, "backend_problems", lambda *_: [])
    args = options(name)
    preflight(args, CudaBackend())
    assert args.actor.num_nodes * 8 == args.vllm.num_engines * args.vllm.tensor_parallel_size
    assert args.ds.zero_stage == 3
    assert args.ds.tensor_parallel_size == 1, "ZeRO-3 excludes it in the pinned releases"
    assert args.vllm.enable_sleep
    assert args.ds.enable_sleep
    assert args.vllm.enable_prefix_caching
    assert args.ds.packing_samples
    assert args.train.dynamic_batch_enable
    assert args.ds.attn_implementation == "flash_attention_2"


def test_the_gpu_command_of_the_readme_is_accepted(monkeypatch, tmp_path):
    """Verbatim except for the data file; checks that need the Hub or a GPU are skipped."""
    text = (CONFIGS.parent / "README.md").read_text().split("-m openrlhf_ktae.cli.train_ppo_ray ", 1)[1].split("```")[0]
    data = tmp_path / "your.jsonl"
    data.write_text('{"input": "1 + 1 :", "label": "2"}\n' * 128)
    words = [word.replace("your.jsonl", str(data)) for word in shlex.split(text.replace("\\\n", " "))]
    assert words[:2] == ["--advantage_estimator", "ktae"]
    monkeypatch.setattr(hub, "missing", lambda *_: "")
    monkeypatch.setattr(checks, "backend_problems", lambda *_: [])
    args = parse_command_line(words)
    preflight(args, CudaBackend())
    assert args.actor.num_gpus_per_node == 8
    with pytest.raises(BadOption, match="do not divide"):
        preflight(
            parse_command_line([*words, "--actor_num_gpus_per_node", "7", "--vllm_num_engines", "7"]), CudaBackend()
        )


PAPER = {
    "rollout.batch_size": 1024,
    "rollout.n_samples_per_prompt": 16,
    "train.batch_size": 128 * 16,
    "actor.adam.lr": 1e-6,
    "actor.lr_scheduler": "constant",
    "data.max_len": 1024 + 3072,
    "rollout.max_new_tokens": 3072,
    "rollout.temperature": 1.0,
    "actor.loss_agg_mode": "token-mean",
    "actor.num_nodes": 1,
    "actor.num_gpus_per_node": 8,
}
DAPO = {"algo.kl.init_coef": 0, "reward.overlong_buffer_len": 512, "reward.overlong_penalty_factor": 1.0}
MODEL_1B, MODEL_7B = "Qwen/Qwen2.5-Math-1.5B", "Qwen/Qwen2.5-Math-7B"
OF_ARM = {
    "grpo/qwen2.5-math-1.5b": {
        "actor.model_name_or_path": MODEL_1B,
        "algo.kl.use_loss": True,
        "algo.kl.init_coef": 0.001,
        "actor.eps_clip_low_high": [0.2, 0.2],
    },
    "grpo/qwen2.5-math-7b": {"actor.model_name_or_path": MODEL_7B, "algo.kl.init_coef": 0},
    "dapo/qwen2.5-math-1.5b": {"actor.model_name_or_path": MODEL_1B, "actor.eps_clip_low_high": [0.2, 0.28], **DAPO},
    "dapo/qwen2.5-math-7b": {"actor.model_name_or_path": MODEL_7B, "actor.eps_clip_low_high": [0.2, 0.24], **DAPO},
}


@pytest.mark.parametrize("credit", ["", "_ktae"])
@pytest.mark.parametrize("name", OF_ARM)
def test_values_of_the_paper(name, credit):
    arm, size = name.split("/")
    args = options(f"{arm}{credit}/{size}")
    for key, expected in {**PAPER, **OF_ARM[name]}.items():
        value = args
        for part in key.split("."):
            value = getattr(value, part)
        assert (list(value) if isinstance(value, (list, tuple)) else value) == expected, key
    if credit:
        config = args.algo.ktae.config
        assert config.variant == "paper"
        assert all(getattr(config, name) is None for name in ("h1", "h2", "h3")), "the paper's 1, 2, 1"


def test_the_template_requests_a_box_and_contains_the_problem():
    template = options("grpo/qwen2.5-math-7b").data.input_template
    text = template.format("What is {1, 2}?")
    assert "\\boxed{}." in text
    assert "What is {1, 2}?" in text
    assert text.endswith("<|im_start|>assistant\n")


def test_shared_options_are_included_not_copied():
    for path in CONFIGS.glob("*/*.yaml"):
        if path.parent.name != "base":
            tree = yaml.safe_load(path.read_text())
            assert "include" in tree, path
            assert len(path.read_text().splitlines()) < 25, path
