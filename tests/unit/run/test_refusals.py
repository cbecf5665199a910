"""What cannot work is refused before any model loads: exit code 2, the option, its value and the way out."""

from __future__ import annotations

import json
import time

import pytest

from openrlhf_ktae.cli.train_ppo_ray import main

GOOD = {
    "pretrain": "examples/quickstart/model",
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
BAD = [
    ({"no_such_option": "1"}, "--no_such_option", "--help"),
    ({"algo.ktae.wieght": "1"}, "--algo.ktae.wieght", "--algo.ktae.weight"),
    ({"advantage_estimator": "ktea"}, "ktea", "ktae"),
    ({"n_samples_per_prompt": "1"}, "--rollout.n_samples_per_prompt 1", "at least 2"),
    ({"algo.ktae.weight": "-1"}, "--algo.ktae.weight", "at least 0"),
    ({"algo.ktae.shadow": "true", "advantage_estimator": "group_norm"}, "--algo.ktae.shadow", "ktae"),
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
    ({"prompt_data": "{tmp}/torn.jsonl"}, "torn.jsonl", "not a .jsonl file"),
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
    ({"verifier.workers": "0"}, "--verifier", "workers"),
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
]


@pytest.fixture
def files(tmp_path):
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
    (tmp_path / "heads16").mkdir()
    (tmp_path / "heads16" / "config.json").write_text(json.dumps({"hidden_size": 64, "num_attention_heads": 4}))
    return tmp_path


def words(changes, tmp):
    options = {**GOOD, **changes}
    return [
        word
        for name, value in options.items()
        if value is not None
        for word in (f"--{name}", value.replace("{tmp}", str(tmp)))
    ]


@pytest.mark.parametrize(("changes", "names", "way_out"), BAD, ids=[" ".join(map(str, c.items())) for c, _, _ in BAD])
def test_refused(changes, names, way_out, files, capsys, monkeypatch, root):
    monkeypatch.chdir(root)
    started = time.monotonic()
    assert main(words(changes, files)) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert names in message
    assert way_out in message
    assert "Traceback" not in message
    assert time.monotonic() - started < 10
    assert not (files / "run").exists()


def test_the_same_options_unchanged_are_accepted(files, monkeypatch, root):
    """Without this, a table of refusals would pass on a command that refuses everything."""
    from openrlhf_ktae.backend import resolve
    from openrlhf_ktae.cli.options import parse_command_line
    from openrlhf_ktae.run.preflight import preflight

    monkeypatch.chdir(root)
    args = parse_command_line(words({}, files))
    preflight(args, resolve("cpu"))
