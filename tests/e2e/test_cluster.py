"""Runs on an existing Ray cluster, and interrupted runs."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from marks import RARELY, SLOW
from run_processes import ASYNCHRONOUS, MARK, mark_of, processes_of, steps, wait_for, wait_until_none

from openrlhf_ktae.base.free_port import free_port
from openrlhf_ktae.checkpoint.folder import verify
from openrlhf_ktae.checkpoint.write import read_latest
from openrlhf_ktae.record.metrics import read_record

pytestmark = SLOW

COMMAND = "openrlhf_ktae.cli.train_ppo_ray"
FEW_STEPS = ["--config", "configs/grpo_ktae/quickstart.yaml", "--data.max_samples", "16", "--run.eval_edges", "false"]
RAY = Path(sys.executable).with_name("ray")
PORT, DASHBOARD_PORT, AGENT_PORT = (free_port() for _ in range(3))


@pytest.fixture(scope="module")
def cluster(root, environment):
    """A Ray head with virtual devices, its own ports and its own processes."""
    variables = {**environment, MARK: "cluster"}
    ports = ["--port", str(PORT), "--dashboard-host", "127.0.0.1", "--dashboard-port", str(DASHBOARD_PORT)]
    ports += ["--dashboard-agent-listen-port", str(AGENT_PORT)]  # the default may be taken by another cluster
    start = [RAY, "start", "--head", "--num-gpus", "1", "--num-cpus", "8", *ports, "--disable-usage-stats"]
    subprocess.run(start, cwd=root, env=variables, check=True, stdout=subprocess.DEVNULL, timeout=120)
    yield variables
    for process in processes_of("cluster"):
        process.kill()
    wait_until_none("cluster", 20)


def test_ray_job_submit(cluster, root, tmp_path):
    submit = [RAY, "job", "submit", "--address", f"http://127.0.0.1:{DASHBOARD_PORT}", "--"]
    # The job runs in the Ray worker's working directory, so paths must be absolute, as on any cluster.
    words = ["--advantage_estimator", "ktae", "--run.dir", str(tmp_path)]
    words += ["--config", f"{root}/configs/grpo_ktae/quickstart.yaml", "--data.max_samples", "16"]
    words += ["--run.eval_edges", "false", "--eval.dataset", f"{root}/examples/quickstart/data/heldout.jsonl"]
    words += ["--data.prompt_dataset", f"{root}/examples/quickstart/data/train.jsonl"]
    words += ["--actor.model_name_or_path", f"{root}/examples/quickstart/model"]
    for _ in range(6):
        done = subprocess.run(
            [*submit, sys.executable, "-m", COMMAND, *words],
            cwd=root,
            env=cluster,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
        )
        if "No available agent to submit job" not in done.stdout:
            break
        time.sleep(5)  # the head starts before its agent; Ray says to retry
    assert done.returncode == 0, done.stdout
    assert "succeeded" in done.stdout
    assert [row["step"] for row in steps(tmp_path)] == [1, 2]
    assert (tmp_path / "model" / "model.safetensors").is_file()


def test_a_cluster_with_too_few_devices_is_refused(cluster, root, tmp_path):
    variables = {**cluster, "RAY_ADDRESS": f"127.0.0.1:{PORT}", MARK: "refused"}
    words = ["--train.colocate_all", "false", "--run.dir", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", COMMAND, *FEW_STEPS, *words],
        cwd=root,
        env=variables,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2, done.stderr
    assert "has 1 devices and this run needs 2" in done.stderr
    assert "--num-gpus 2" in done.stderr


ENDS = [
    ("SIGINT", ""),
    pytest.param("SIGTERM", "", marks=RARELY),
    pytest.param("SIGTERM", ASYNCHRONOUS, marks=RARELY),
    pytest.param("SIGTERM", f"{ASYNCHRONOUS} --train.partial_rollout_enable", marks=RARELY),
]


@pytest.fixture
def interrupted(start, tmp_path):
    """Run the quickstart with `words`, send a signal some seconds after a step; return output, last step, checkpoint.

    Ctrl-C in a terminal reaches the whole process group, SIGTERM from a scheduler only this process.
    """

    def run(name, words, step, seconds=0.0):
        process = start("--ckpt.save_steps", "2", "--run.grace_seconds", "20", *words.split())
        wait_for(lambda: len(steps(tmp_path)) >= step, process, 200)
        time.sleep(seconds)
        assert process.poll() is None, process.communicate()[0]
        if name == "SIGINT":
            os.killpg(process.pid, signal.SIGINT)
        else:
            process.terminate()
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 130, output
        assert "interrupted" in output
        assert "Traceback" not in output
        assert "received at time" not in output, "Ray's own handler prints a stack and aborts"
        left = wait_until_none(mark_of(tmp_path), 20)
        assert not left, [one.cmdline() for one in left]
        newest = read_latest(tmp_path / "checkpoints")
        assert newest is not None
        verify(newest)
        return output, max(row["step"] for row in steps(tmp_path)), newest

    yield run
    shutil.rmtree(tmp_path / "checkpoints", ignore_errors=True)


@pytest.mark.parametrize(("name", "words"), ENDS)
def test_an_interrupted_run_leaves_no_process_and_a_complete_checkpoint(interrupted, name, words):
    output, last, newest = interrupted(name, words, step=3)
    assert newest.name == f"global_step{last}", "the last recorded step must have the newest checkpoint"
    assert f"checkpoint of step {last}" in output


@RARELY
@pytest.mark.parametrize("words", ["", ASYNCHRONOUS])
def test_an_interrupt_in_the_last_evaluation_saves_the_last_step_and_the_model(interrupted, tmp_path, words):
    long_evaluation = "--data.max_samples 24 --eval.n_samples_per_prompt 32 --eval.temperature 1"
    output, last, newest = interrupted("SIGTERM", f"{words} {long_evaluation}", step=3, seconds=1.0)
    assert (last, newest.name) == (3, "global_step3")
    assert [row["when"] for row in read_record(tmp_path) if row["kind"] == "eval"] == ["before"]
    assert "checkpoint of step 3" in output
    assert (tmp_path / "model" / "model.safetensors").is_file()
