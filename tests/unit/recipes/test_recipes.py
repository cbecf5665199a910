"""Cluster scripts and images: linted, run dry, their commands parsed by the real entry point."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from openrlhf_ktae.backend.base import devices_needed
from openrlhf_ktae.cli.options import parse_command_line
from openrlhf_ktae.memory.model_shape import model_shape
from openrlhf_ktae.memory.phases import host, power_of_two

ROOT = Path(__file__).resolve().parents[3]
SCRIPTS = sorted((ROOT / "examples/scripts").glob("*.sh"))
DOCKERFILES = [ROOT / "dockerfile/Dockerfile", ROOT / "dockerfile/Dockerfile.cpu"]
CONFIG = "configs/dapo_ktae/qwen2.5-32b.yaml"
TRAIN = ["-m", "openrlhf_ktae.cli.train_ppo_ray"]


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
    stand_in(tmp_path, "scontrol", "printf 'n1\\nn2\\nn3\\nn4\\n'")
    variables = {"HEAD_ADDRESS": "10.0.0.1", "DRY_RUN": "1", **variables}
    done = run_script(script, tmp_path, *words, **variables)
    assert done.returncode == 0, done.stderr
    return [shlex.split(line) for line in done.stdout.splitlines()]


def run_script(script, tmp_path, *words, **variables):
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", **variables}
    command = [str(ROOT / "examples/scripts" / script), *words]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def stand_in(tmp_path, name, text):
    (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
    (tmp_path / name).chmod(0o755)


def parsed(command):
    start = command.index("-m")
    assert command[start : start + 2] == TRAIN
    return parse_command_line(command[start + 2 :])


def after(command, option):
    return command[command.index(option) + 1]


def checked_submit(submit, tmp_path):
    """Check what all scripts must do: submit over loopback from this folder, with time for a checkpoint at a stop."""
    assert submit[:3] == ["ray", "job", "submit"]
    assert after(submit, "--address") == "http://127.0.0.1:8265"
    assert submit[submit.index("env") :][:3] == ["env", "--chdir", str(ROOT)]
    args = parsed(submit)
    variables = json.loads(after(submit, "--runtime-env-json"))["env_vars"]
    assert int(variables["RAY_JOB_STOP_WAIT_TIME_S"]) >= args.run.grace_seconds + 60 > 60
    return args


def test_single_node(tmp_path):
    words = ("configs/grpo/qwen2.5-math-7b.yaml", "--train.seed", "7")
    start, wait, submit = dry_run("single_node.sh", tmp_path, *words)
    assert start[:3] == ["ray", "start", "--head"]
    assert "nodes" in wait
    args = checked_submit(submit, tmp_path)
    assert args.train.seed == 7
    assert devices_needed(args) == 8 == int(after(start, "--num-gpus"))


def test_several_nodes_by_ssh(tmp_path):
    head, wait, *workers, all_of_them, submit = dry_run("multi_node.sh", tmp_path, CONFIG, NODES="a b c d")
    assert after(head, "--node-ip-address") == "10.0.0.1"
    assert after(head, "--dashboard-host") == "127.0.0.1"
    assert (after(wait, "http://127.0.0.1:8265"), after(all_of_them, "http://127.0.0.1:8265")) == ("1", "4")
    assert [worker[-2] for worker in workers] == ["b", "c", "d"]
    assert all("--address 10.0.0.1:6379 --num-gpus 8" in worker[-1] for worker in workers)
    assert devices_needed(checked_submit(submit, tmp_path)) == 8 * (1 + len(workers))


def test_slurm(tmp_path):
    variables = {"SLURM_JOB_NODELIST": "n[1-4]", "SLURM_SUBMIT_DIR": str(ROOT), "SLURM_CPUS_PER_TASK": "48"}
    commands = dry_run("slurm.sh", tmp_path, CONFIG, **variables)
    head, *workers = (command for command in commands if command[0] == "srun")
    assert [after(step, "--nodelist") for step in (head, *workers)] == ["n1", "n2", "n3", "n4"]
    for step in (head, *workers):
        assert (after(step, "--cpus-per-task"), after(step, "--mem")) == ("48", "0")
    assert after(head, "--node-ip-address") == "10.0.0.1"
    assert all(after(step, "--address") == "10.0.0.1:6379" for step in workers)
    assert after(head, "--dashboard-host") == "127.0.0.1"
    assert devices_needed(checked_submit(commands[-1], tmp_path)) == 8 * 4


def test_slurm_signals_early_enough_for_a_checkpoint(tmp_path):
    text = (ROOT / "examples/scripts/slurm.sh").read_text()
    (seconds,) = re.findall(r"#SBATCH --signal=B:TERM@(\d+)", text)
    variables = {"SLURM_JOB_NODELIST": "n1", "SLURM_SUBMIT_DIR": str(ROOT)}
    submit = dry_run("slurm.sh", tmp_path, CONFIG, **variables)[-1]
    stop = json.loads(after(submit, "--runtime-env-json"))["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"]
    assert int(seconds) >= int(stop) + 60  # Slurm may signal up to a minute late


@pytest.mark.parametrize(
    ("hosts", "own", "address"),
    [
        ("127.0.1.1 STREAM n1", "10.1.2.3 172.17.0.1 fd00::1 ", "10.1.2.3"),  # Debian's /etc/hosts
        ("10.9.9.9 STREAM n1", "10.1.2.3 ", "10.9.9.9"),
        ("", "fd00::1 10.1.2.3 ", "10.1.2.3"),
        ("127.0.1.1 STREAM n1", "127.0.0.1 ", None),
        ("0.0.0.0 STREAM n1", "", None),
        ("", "", None),
    ],
)
def test_the_head_gets_a_non_loopback_address(hosts, own, address, tmp_path):
    stand_in(tmp_path, "getent", f"echo '{hosts}'")
    stand_in(tmp_path, "hostname", f"echo '{own}'")
    variables = {"NODES": "n1 n2", "DRY_RUN": "1", "HEAD_ADDRESS": ""}
    done = run_script("multi_node.sh", tmp_path, CONFIG, **variables)
    if address:
        assert after(shlex.split(done.stdout.splitlines()[0]), "--node-ip-address") == address
        return
    assert done.returncode == 2
    assert "set HEAD_ADDRESS" in done.stderr
    assert "ray start" not in done.stdout


@pytest.mark.parametrize(
    ("given", "address"),
    [("10.0.0.1", "10.0.0.1"), ("head", "10.7.7.7")]
    + [(given, None) for given in ("localhost", "127.0.1.1", "127.9.9.9", "0.0.0.0", "::1", "fd00::5", "unknown")],
)
def test_a_given_address_of_the_head_becomes_an_ip(given, address, tmp_path):
    """Workers join ADDRESS:PORT, and a name would resolve to loopback on the head itself."""
    answers = "head) echo '10.7.7.7 STREAM head';; localhost) echo '127.0.0.1 STREAM localhost';;"
    stand_in(tmp_path, "getent", f'case "$2" in {answers} *.*) echo "$2 STREAM";; *) exit 2;; esac')
    stand_in(tmp_path, "hostname", "echo '10.1.2.3 '")
    done = run_script("multi_node.sh", tmp_path, CONFIG, NODES="n1 n2", DRY_RUN="1", HEAD_ADDRESS=given)
    if address:
        assert after(shlex.split(done.stdout.splitlines()[0]), "--node-ip-address") == address
        assert f"--address {address}:6379" in done.stdout.replace("\\", "")
        return
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"multi_node.sh: HEAD_ADDRESS={given}: found no address of this machine")


@pytest.mark.parametrize("script", ["single_node.sh", "multi_node.sh", "slurm.sh"])
@pytest.mark.parametrize(("words", "said"), [([], "usage"), (["configs/none.yaml"], "configs/none.yaml: no such file")])
def test_scripts_refuse_a_missing_configuration(script, words, said, tmp_path):
    done = run_script(script, tmp_path, *words, SLURM_SUBMIT_DIR=str(ROOT), DRY_RUN="1", NODES="a b")
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert "line " not in done.stderr


@pytest.mark.parametrize(
    ("script", "variables", "said"),
    [("single_node.sh", {name: value}, f"{name}={value}: give a whole number above 0")
     for name in ("GRACE_SECONDS", "JOIN_SECONDS", "GPUS_PER_NODE", "RAY_PORT") for value in ("10m", "-5", "0", "x")]
    + [
        ("multi_node.sh", {"NODES": ""}, "name the nodes, this one first"),
        ("multi_node.sh", {"NODES": " , "}, "name the nodes, this one first"),
        ("slurm.sh", {"SLURM_SUBMIT_DIR": ""}, "start this with sbatch"),
        ("slurm.sh", {"SLURM_SUBMIT_DIR": "/tmp"}, "start this with sbatch, from the root of the repository"),
        ("slurm.sh", {"SLURM_JOB_NODELIST": "nowhere"}, "SLURM_JOB_NODELIST=nowhere: scontrol lists no nodes"),
    ],
)  # fmt: skip
def test_scripts_refuse_bad_variables_before_a_cluster_starts(script, variables, said, tmp_path):
    stand_in(tmp_path, "scontrol", "exit 1")
    variables = {"SLURM_SUBMIT_DIR": str(ROOT), "HEAD_ADDRESS": "10.0.0.1", "DRY_RUN": "1", **variables}
    done = run_script(script, tmp_path, CONFIG, **variables)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("names", ["a b c d", "a,b,c,d", "a\nb\nc\nd", " a, b\n c d "])
def test_nodes_may_be_separated_by_spaces_commas_or_lines(names, tmp_path):
    commands = dry_run("multi_node.sh", tmp_path, CONFIG, NODES=names)
    assert [command[-2] for command in commands if command[0] == "ssh"] == ["b", "c", "d"]


@pytest.mark.parametrize("value", ["true", "yes"])
def test_a_dry_run_runs_nothing_however_it_is_asked_for(value, tmp_path):
    stand_in(tmp_path, "ray", f"touch {tmp_path}/started")
    assert dry_run("single_node.sh", tmp_path, CONFIG, DRY_RUN=value)[0][:2] == ["ray", "start"]
    assert not (tmp_path / "started").exists()


def test_the_kubernetes_manifest():
    """It uses the fields of KubeRay's RayJob (ray.io/v1), and as many devices as the run needs."""
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
    args = parsed(job["spec"]["entrypoint"].split())
    assert devices == devices_needed(args)
    assert "wget" in (ROOT / "dockerfile/Dockerfile").read_text(), "KubeRay's probes use it"


def test_pods_have_what_training_needs():
    job = yaml.safe_load((ROOT / "examples/scripts/rayjob.yaml").read_text())
    args = parsed(job["spec"]["entrypoint"].split())
    cluster = job["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        variables = {variable["name"]: variable for variable in container["env"]}
        stop = int(variables["RAY_JOB_STOP_WAIT_TIME_S"]["value"])
        assert args.run.grace_seconds < stop < pod["terminationGracePeriodSeconds"]
        assert "cluster.py drain" in container["lifecycle"]["preStop"]["exec"]["command"][-1]
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert variables["HF_HOME"]["value"].startswith(mounts["shared"])
        assert args.run.dir.startswith(mounts["shared"])
        for secret in ("HF_TOKEN", "WANDB_API_KEY"):
            assert "secretKeyRef" in variables[secret]["valueFrom"]
        assert container["securityContext"]["capabilities"]["add"] == ["IPC_LOCK"]
        (shm,) = (volume["emptyDir"] for volume in pod["volumes"] if "emptyDir" in volume)
        assert (mounts["memory"], shm["medium"]) == ("/dev/shm", "Memory")
        objects = int(group["rayStartParams"]["object-store-memory"])
        limit, shared = (
            int(size.removesuffix("Gi")) * 2**30
            for size in (container["resources"]["limits"]["memory"], shm["sizeLimit"])
        )
        assert objects < shared
        shape = model_shape(args.actor.model_name_or_path)
        assert host(args, shape, power_of_two).total + shared < limit


@pytest.mark.parametrize(("dockerfile", "target"), [("Dockerfile", "setup-gpu"), ("Dockerfile.cpu", "setup")])
def test_images_install_with_make(dockerfile, target):
    lines = (ROOT / "dockerfile" / dockerfile).read_text().splitlines()
    assert any(line.startswith(f"RUN make {target} ") for line in lines)
    assert not any("pip install" in line for line in lines)
    assert "USER 1000" in lines
    assert target == "setup" or any("PREBUILD=1" in line for line in lines), "each node would compile at its first step"
    assert ":latest" not in lines[1]
    done = subprocess.run(["make", "-n", "-B", target], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert ("requirements/cpu.txt" if target == "setup" else "requirements/setup_gpu.py") in done.stdout
