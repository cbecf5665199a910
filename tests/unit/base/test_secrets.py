"""Keys and passwords are used but never written."""

from __future__ import annotations

import json
import pickle

import pytest
import yaml

from openrlhf_ktae.base.secrets import Hidden, environment_secrets, hidden, masked_words, redacted
from openrlhf_ktae.cli.options import parse_command_line
from openrlhf_ktae.record.directory import prepare

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


def test_code_that_needs_a_key_gets_it(args):
    assert args.logger.wandb.key == KEY
    assert args.reward.remote_url[0].startswith(f"http://me:{PASSWORD}@a.example/")


def test_printed_options_hold_no_secret(args):
    """The host prints the options at the start and sends them to W&B."""
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


def test_ordinary_texts_are_unchanged():
    for text in ("Qwen/Qwen2.5", "a@b", "http://a.example/x?tokens=5", "mail me@x.example", "--train.max_tokens=3"):
        assert hidden(text, []) is text or redacted(text, []) == text
        assert not isinstance(hidden(text, []), Hidden)


@pytest.mark.parametrize(
    "text",
    [
        "http://a.example/x?sig=SECRET&n=1",
        "http://a.example/x?auth=SECRET",
        "http://a.example/x?n=1&pwd=SECRET",
        "http://a.example/x?X-Amz-Signature=SECRET",
        "http://a.example/x?pass=SECRET#here",
        "http://me:SECRET/SECRET@a.example/x",
        "http://me:SECRET@SECRET@a.example/x",
        "https://SECRET@a.example/x",
        "http://me:1/SECRET@x.example/a.example",
    ],
)
def test_keys_in_addresses(text):
    shown = redacted(text, [])
    assert "SECRET" not in shown or text.startswith("http://me:1/")  # host me, port 1
    assert "a.example" in shown


@pytest.mark.parametrize(
    "text", ["http://a.example:8000/by/me@work", "http://a.example/@me", "s3://bucket/a@b:c@d", "x?design=2&passes=3"]
)
def test_addresses_without_keys_are_unchanged(text):
    assert redacted(text, []) == text


@pytest.mark.parametrize(
    "name", ["AWS_SECRET_ACCESS_KEY", "DEPLOY_KEY", "GH_PAT", "DB_PWD", "HF_TOKEN", "AZURE_APIKEY"]
)
def test_variables_that_hold_secrets(name, monkeypatch):
    monkeypatch.setenv(name, "a-secret-value")
    assert "a-secret-value" in environment_secrets()


@pytest.mark.parametrize("name", ["PWD", "OLDPWD", "PATH", "COMPAT", "KEYBOARD"])
def test_variables_without_secrets(name, monkeypatch):
    monkeypatch.setenv(name, "/no/secret/value")
    assert "/no/secret/value" not in environment_secrets()


def test_keys_on_a_command_line():
    words = ["train", "--use_wandb", KEY, f"--logger.wandb.key={KEY}", "--redis-password=pass", "--api_key", "k", "--x"]
    words += [
        "--data.input_key",
        "question",
        "--actor.max_new_tokens",
        "5",
        "http://me:hidden@a.example",
        "has " + TOKEN,
    ]
    assert masked_words(words, [TOKEN]) == [
        *("train", "--use_wandb", "***", "--logger.wandb.key=***", "--redis-password=***", "--api_key", "***", "--x"),
        *("--data.input_key", "question", "--actor.max_new_tokens", "5", "http://***@a.example", "has ***"),
    ]


def test_arms_of_a_comparison_are_written_without_keys(tmp_path, monkeypatch):
    from openrlhf_ktae.base.errors import Refusal
    from openrlhf_ktae.compare.runs import STARTED, TrainingProcess, execute, plan

    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("openrlhf_ktae.compare.runs.TRAIN", ["sh", "-c", "read order; echo 0"])
    config = tmp_path / "arm.yaml"
    tree = {
        "logger": {"wandb": {"key": KEY, "group": f"by {TOKEN}"}},
        "reward": {"remote_url": [f"http://m:{PASSWORD}@a.x"]},
    }
    config.write_text(yaml.safe_dump(tree))
    words = ["--use_wandb", KEY, "--x", f"http://me:{PASSWORD}@a.example/"]
    (run,) = plan([config], [1], tmp_path / "out", words)
    assert execute(run, TrainingProcess()) == 0
    assert KEY in run.options()
    text = (run.directory / STARTED).read_text()
    for secret in (KEY, PASSWORD, TOKEN):
        assert secret not in text
    assert plan([config], [1], tmp_path / "out", words)[0].done, "masked options must still match"
    (run.directory / STARTED).write_text(json.dumps({"options": {"logger.wandb.key": KEY}, "seed": 1, "words": words}))
    with pytest.raises(Refusal):
        plan([config], [1], tmp_path / "out", words)


def test_an_invalid_configuration_is_refused_without_quoting_it(tmp_path):
    from openrlhf_ktae.base.config_file import load_config
    from openrlhf_ktae.base.errors import BadOption

    path = tmp_path / "c.yaml"
    path.write_text(f"logger: {{wandb: {{key: {KEY}: {TOKEN}}}}}\n")
    with pytest.raises(BadOption, match="line 1") as refusal:
        load_config(path)
    assert KEY not in str(refusal.value)
