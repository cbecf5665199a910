"""Keys and passwords are used and never written."""

from __future__ import annotations

import json
import pickle

import pytest
import yaml

from openrlhf_ktae.cli.options import parse_command_line
from openrlhf_ktae.run.directory import prepare
from openrlhf_ktae.safety.secrets import Hidden, hidden, redacted

KEY, PASSWORD, TOKEN = "0123456789abcdef" * 2, "hunter2-hunter2", "hf_verysecrettoken"
WORDS = ["--pretrain", "m", "--prompt_data", "d.jsonl", "--vllm_num_engines", "1", "--advantage_estimator", "ktae"]
WORDS += ["--n_samples_per_prompt", "4", "--use_wandb", KEY, "--logger.wandb.group", f"by {TOKEN}"]
WORDS += ["--remote_rm_url", f"http://me:{PASSWORD}@a.example/get?api_key={PASSWORD},http://b.example/get"]


@pytest.fixture
def args(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    words = [*WORDS, "--run.dir", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["train_ppo_ray", *words])
    return parse_command_line(words)


def test_who_needs_a_key_gets_it(args):
    assert args.logger.wandb.key == KEY
    assert args.reward.remote_url[0].startswith(f"http://me:{PASSWORD}@a.example/")


def test_printed_options_hold_no_secret(args):
    """The host prints them at the start and gives them to W&B as the run's configuration."""
    for text in (repr(args), str(args), f"{args}", repr(pickle.loads(pickle.dumps(args)))):
        for secret in (KEY, PASSWORD, TOKEN):
            assert secret not in text
        assert "a.example" in text


def test_files_of_a_run_hold_no_secret(args, tmp_path):
    directory = prepare(args, "cpu")
    texts = {path.name: path.read_text() for path in directory.rglob("*") if path.is_file()}
    assert {"config.yaml", "versions.json"} <= set(texts)
    for name, text in texts.items():
        for secret in (KEY, PASSWORD, TOKEN):
            assert secret not in text, name
    assert "***" in json.dumps(json.loads(texts["versions.json"])["command"])
    config = yaml.safe_load(texts["config.yaml"])
    assert config["reward"]["remote_url"] == "http://***@a.example/get?api_key=***,http://b.example/get"
    assert config["logger"]["wandb"]["key"] is None


def test_ordinary_texts_stay_as_they_are():
    for text in ("Qwen/Qwen2.5", "a@b", "http://a.example/x?tokens=5", "mail me@x.example", "--train.max_tokens=3"):
        assert hidden(text, []) is text or redacted(text, []) == text
        assert not isinstance(hidden(text, []), Hidden)
