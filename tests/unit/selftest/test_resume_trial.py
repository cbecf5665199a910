"""Trials of killed runs: our options override the user's, and a kill leaves no process."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest
from marks import CPU_BUILDS

from openrlhf_ktae.cli.options import parse_command_line
from openrlhf_ktae.cli.selftest import main
from openrlhf_ktae.selftest.killing import kill_all
from openrlhf_ktae.selftest.trial import AGAIN, STRAIGHT, Trial, TrialFailed

CONFIG = "configs/grpo_ktae/quickstart.yaml"


def test_our_options_override_the_users(tmp_path, root, monkeypatch):
    monkeypatch.chdir(root)
    words = ["--config", CONFIG, "--actor_learning_rate", "1e-5", "--ckpt.save_steps", "99", "--use_wandb", "key"]
    command = Trial(words, tmp_path, prompts=16).command("one", "auto")
    args = parse_command_line(command[command.index("openrlhf_ktae.cli.train_ppo_ray") + 1 :])
    assert args.actor.adam.lr == 1e-5
    assert args.train.full_determinism_enable is True
    assert (args.ckpt.save_steps, args.data.max_samples, args.train.num_episodes) == (1, 16, 2)
    assert (args.run.dir, args.resume) == (str(tmp_path / "one"), "auto")
    assert not args.logger.wandb.key, "trials must not be sent to W&B"
    assert args.ckpt.path.startswith(str(tmp_path))
    assert args.ckpt.output_dir.startswith(str(tmp_path))


def test_a_death_leaves_no_process(tmp_path):
    code = (
        "import subprocess, sys, time; "
        f"c = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], start_new_session=True); "
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(c.pid)); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        time.sleep(0.01)
    child = int((tmp_path / "pid").read_text())
    kill_all(process)
    assert process.returncode == -9
    import psutil

    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE


@CPU_BUILDS
def test_a_refused_run_is_reported_with_its_message(tmp_path, root, monkeypatch):
    monkeypatch.chdir(root)
    trial = Trial(["--config", CONFIG, "--pretrain", "/no/such/model"], tmp_path, prompts=16)
    with pytest.raises(
        TrialFailed, match=r"(?s)exit code 2.*--actor\.model_name_or_path /no/such/model: no such folder"
    ):
        trial.finish(STRAIGHT)


def test_figures_are_compared_before_weights(tmp_path):
    trial = Trial([], tmp_path, prompts=16)
    for name, reward in ((STRAIGHT, 0.5), (AGAIN, 0.25)):
        (tmp_path / name).mkdir()
        row = {"kind": "step", "step": 1, "reward": reward, "time": 1.0}
        (tmp_path / name / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    assert trial.difference(AGAIN).startswith("step 1: reward is 0.5")
    (tmp_path / AGAIN / "metrics.jsonl").write_text((tmp_path / STRAIGHT / "metrics.jsonl").read_text())
    assert "no weights" in trial.difference(AGAIN)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["resume", "--steps", "3"], "give an even number"),
        (["resume", "--steps", "2"], "leave 2 steps; give more"),
        (["resume", "--kills", "0"], "--kills: '0' must be a whole number of at least 1"),
        (["resume", "--save_steps", "0"], "--save_steps: '0' must be a whole number of at least 1"),
        (["resume", "--victims", "engine,nobody"], "'nobody' is not one of all, everything, driver"),
        (["resume", "--config", "none.yaml"], "none.yaml: no such file"),
        (["resume", "--config", CONFIG, "--output", "{tmp}"], "is not empty"),
        (["resume", "--config", CONFIG, "--", "--no_such_option"], "--no_such_option"),
        (["sleep"], "invalid choice"),
        (["resume", "--config", CONFIG, "--", "--async_train"], "--train.async_enable"),
    ],
)
def test_refused_before_anything_runs(words, text, tmp_path, capsys, monkeypatch, root):
    monkeypatch.chdir(root)
    (tmp_path / "something").write_text("")
    assert main([word.replace("{tmp}", str(tmp_path)) for word in words]) == 2
    assert text in capsys.readouterr().err
