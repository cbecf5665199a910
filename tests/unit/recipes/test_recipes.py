"""Recipes for clusters and images: linted, run dry, and their commands parsed by the real entry point."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from openrlhf_ktae.backend.base import devices_needed
from openrlhf_ktae.cli.options import parse_command_line

ROOT = Path(__file__).resolve().parents[3]
SCRIPTS = sorted((ROOT / "examples/scripts").glob("*.sh"))
DOCKERFILES = [ROOT / "dockerfile/Dockerfile", ROOT / "dockerfile/Dockerfile.cpu"]
CONFIG = "configs/dapo_ktae/qwen2.5-32b.yaml"
TRAIN = ["python", "-m", "openrlhf_ktae.cli.train_ppo_ray"]


def tool(name):
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    return found or pytest.skip(f"{name} is not installed (requirements/dev.txt)")


def test_shell_scripts_pass_shellcheck():
    command = [tool("shellcheck"), "--external-sources", *map(str, SCRIPTS)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_dockerfiles_pass_hadolint():
    done = subprocess.run([tool("hadolint"), *map(str, DOCKERFILES)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def dry_run(script, tmp_path, *words, **variables):
    """Return what the script would run, a list of words for each command."""
    hosts = tmp_path / "scontrol"
    hosts.write_text("#!/bin/sh\nprintf 'n1\\nn2\\nn3\\nn4\\n'\n")
    hosts.chmod(0o755)
    environment = {**os.environ, **variables, "DRY_RUN": "1", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(
        [str(ROOT / "examples/scripts" / script), *words], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return [shlex.split(line) for line in done.stdout.splitlines()]


def parsed(command):
    """Parse what stands behind `python -m openrlhf_ktae.cli.train_ppo_ray`."""
    start = command.index("-m") - 1
    assert command[start : start + 3] == TRAIN
    return parse_command_line(command[start + 3 :])


def test_single_node(tmp_path):
    start, submit = dry_run("single_node.sh", tmp_path, "configs/grpo/qwen2.5-math-7b.yaml", "--train.seed", "7")
    assert start[:3] == ["ray", "start", "--head"]
    args = parsed(submit)
    assert args.train.seed == 7
    assert devices_needed(args) == 8 == int(start[start.index("--num-gpus") + 1])


def test_several_nodes_by_ssh(tmp_path):
    head, *workers, submit = dry_run("multi_node.sh", tmp_path, CONFIG, NODES="a b c d")
    assert head[head.index("--node-ip-address") + 1] == "a"
    assert [worker[1] for worker in workers] == ["b", "c", "d"]
    assert all("ray start --address a:6379 --num-gpus 8" in worker[2] for worker in workers)
    assert devices_needed(parsed(submit)) == 8 * (1 + len(workers))


def test_slurm(tmp_path):
    commands = dry_run("slurm.sh", tmp_path, CONFIG, SLURM_JOB_NODELIST="n[1-4]", SLURM_SUBMIT_DIR=str(ROOT))
    ray = [command for command in commands if "srun" in command]
    assert sorted(int(command[command.index("--nodes") + 1]) for command in ray) == [1, 3]
    (submit,) = (command for command in commands if command[:3] == ["ray", "job", "submit"])
    assert "http://127.0.0.1:8265" in submit, "a batch script runs on the first node, where the head is"
    (head,) = (command for command in commands if "--head" in command)
    assert head[head.index("--dashboard-host") + 1] == "127.0.0.1"
    assert devices_needed(parsed(submit)) == 8 * 4


@pytest.mark.parametrize("script", ["single_node.sh", "multi_node.sh", "slurm.sh"])
def test_without_a_configuration_they_say_how(script):
    environment = {**os.environ, "SLURM_SUBMIT_DIR": str(ROOT)}
    done = subprocess.run(
        [str(ROOT / "examples/scripts" / script)], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode != 0
    assert "usage" in done.stderr


def test_the_kubernetes_manifest():
    """Names and kinds as KubeRay's RayJob (ray.io/v1) has them; as many devices as the run asks for."""
    job = yaml.safe_load((ROOT / "examples/scripts/rayjob.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    known = {"entrypoint", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished", "backoffLimit", "rayClusterSpec"}
    assert set(job["spec"]) == known
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["rayVersion"] == "2.55.0"
    devices = 0
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        (container,) = group["template"]["spec"]["containers"]
        count = container["resources"]["limits"]["nvidia.com/gpu"]
        assert group["rayStartParams"]["num-gpus"] == str(count)
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in group["template"]["spec"]["volumes"]}
        devices += count * group.get("replicas", 1)
    assert devices == devices_needed(parsed(job["spec"]["entrypoint"].split()))


@pytest.mark.parametrize(("dockerfile", "target"), [("Dockerfile", "setup-gpu"), ("Dockerfile.cpu", "setup")])
def test_images_install_by_make_as_everybody_else(dockerfile, target):
    lines = (ROOT / "dockerfile" / dockerfile).read_text().splitlines()
    assert any(line.startswith(f"RUN make {target} ") for line in lines)
    assert not any("pip install" in line for line in lines)
    assert "USER 1000" in lines
    assert ":latest" not in lines[1]
    done = subprocess.run(["make", "-n", "-B", target], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert ("requirements/cpu.txt" if target == "setup" else "requirements/setup_gpu.py") in done.stdout
