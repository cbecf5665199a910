"""A run on two nodes: placement, shared files, and the death of a node in each phase."""

from __future__ import annotations

import shutil
import sys
import time

import pytest
from marks import RARELY, SLOW
from run_processes import steps, wait_for
from two_nodes import ADDRESSES, DASHBOARD_PORT, RAY, made

from openrlhf_ktae.checkpoint.folder import verify
from openrlhf_ktae.checkpoint.write import read_latest
from openrlhf_ktae.record.metrics import read_record
from openrlhf_ktae.selftest.killing import title

pytestmark = SLOW

COMMAND = [sys.executable, "-m", "openrlhf_ktae.cli.train_ppo_ray"]
# Paths here are relative to the command's folder; Ray's nodes run in another one.
WORDS = (
    "--config configs/grpo_ktae/quickstart.yaml --run.eval_edges false --actor.num_nodes 2 --vllm.num_engines 1 "
    "--train.colocate_all false --rollout.batch_size 4 --train.batch_size 32 --rollout.micro_batch_size 8 "
    "--train.micro_batch_size 8 --ckpt.save_steps 1 --data.max_samples"
).split()
ENDS_SECONDS = 120


@pytest.fixture(scope="module")
def nodes(environment, tmp_path_factory):
    two = made(tmp_path_factory.mktemp("nodes"), environment)
    yield two
    two.end()


@pytest.fixture
def train(nodes, root):
    """Start a run with four prompts per step, from the project's folder."""
    started = []

    def run(prompts, *words):
        started.append(nodes.run(*COMMAND, *WORDS, str(prompts), *words, cwd=root))
        return started[-1]

    yield run
    for process in started:
        process.kill()


def test_nodes_that_do_not_share_a_file_system_are_refused(nodes, train, root):
    model = nodes.private / "model"
    shutil.copytree(root / "examples/quickstart/model", model)
    run = train(8, "--run.dir", str(nodes.private / "run"), "--pretrain", str(model))
    output, _ = run.communicate(timeout=120)
    assert run.returncode == 2, output
    second = f"node {ADDRESSES[1]} (node-two)"
    for name in ("checkpoints", "model"):
        assert f"{nodes.private}/run/{name}: {second} does not see this folder, where its ranks must write" in output
    assert f"--actor.model_name_or_path {model}: {second} does not have it" in output
    assert "loading the model" not in output


PHASES = {"update": "fit", "checkpoint": "save_checkpoint", "synchronisation": "broadcast_to_vllm"}


def kill_in(phase, nodes, run, directory):
    """Kill the second node in a phase of the second step or a later one."""
    wait_for(lambda: read_latest(directory / "checkpoints"), run, seconds=240)
    if phase == "generation":
        time.sleep(2)  # of the four a rollout takes
    else:
        ranks = [one for one in nodes.processes(1) if title(one).startswith("ray::CpuPolicyModelActor")]
        wait_for(lambda: any(title(rank).endswith(PHASES[phase]) for rank in ranks), run, every=0.001)
    nodes.kill_the_second()
    return time.monotonic()


@RARELY
@pytest.mark.parametrize("phase", ["generation", *PHASES])
def test_a_node_that_dies_ends_the_run_with_its_checkpoint_named(nodes, train, root, phase):
    directory = nodes.shared / phase
    words = ["--train.agent_func_path", "tests/e2e/agents/slow.py"] if phase == "generation" else []
    run = train(400, "--run.dir", str(directory), *words)
    died = kill_in(phase, nodes, run, directory)
    try:
        output, _ = run.communicate(timeout=ENDS_SECONDS + 30)
        took = time.monotonic() - died
    finally:
        nodes.start_ray(1)
    print(f"{phase}: {took:.0f} s\n{output[-600:]}")
    assert run.returncode == 4, output
    assert took < ENDS_SECONDS
    newest = read_latest(directory / "checkpoints")
    assert f"the newest checkpoint is {newest}" in output
    verify(newest)


@RARELY
def test_a_run_on_two_nodes_saves_one_complete_checkpoint_and_resumes(nodes, train):
    directory = nodes.shared / "run"
    run = train(8, "--run.dir", str(directory))
    wait_for(lambda: steps(directory), run, seconds=240)
    on_second = {title(process).split(".")[0] for process in nodes.processes(1)}
    on_first = {title(process).split(".")[0] for process in nodes.processes(0)}
    assert "ray::CpuPolicyModelActor" in on_second
    assert "ray::KTAEPPOTrainer" in on_first, "the trainer must run on the run directory's node"
    output, _ = run.communicate(timeout=120)
    assert run.returncode == 0, output
    assert [row["step"] for row in steps(directory)] == [1, 2]
    assert (directory / "model" / "model.safetensors").is_file()
    checkpoint = verify(read_latest(directory / "checkpoints"))
    assert checkpoint.step == 2
    assert {f"random/actor_rank0000{rank}.pt" for rank in range(2)} <= set(checkpoint.manifest.files)


@RARELY
def test_a_node_that_comes_back_is_trained_on(nodes, train):
    directory = nodes.shared / "back"
    run = train(40, "--run.dir", str(directory), "--run.restarts", "1")
    kill_in("update", nodes, run, directory)
    time.sleep(30)  # the run ended; the supervisor's next one waits for the node
    nodes.start_ray(1)
    output, _ = run.communicate(timeout=300)
    assert run.returncode == 0, output
    assert "restart 1 of 1, from the last checkpoint" in output
    assert [row["step"] for row in steps(directory)] == list(range(1, 11))
    assert sum(row["kind"] == "resume" for row in read_record(directory)) == 1


@RARELY
def test_a_job_submitted_from_another_folder(nodes, root, tmp_path):
    directory = nodes.shared / "job"
    places = {
        "--eval.dataset": "examples/quickstart/data/heldout.jsonl",
        "--data.prompt_dataset": "examples/quickstart/data/train.jsonl",
        "--actor.model_name_or_path": "examples/quickstart/model",
    }
    absolute = [word for flag, place in places.items() for word in (flag, f"{root}/{place}")]
    submit = [str(RAY), "job", "submit", "--address", f"http://127.0.0.1:{DASHBOARD_PORT}", "--"]
    words = [f"{root}/{word}" if word.startswith("configs/") else word for word in WORDS]
    run = nodes.run(*submit, *COMMAND, *words, "8", *absolute, "--run.dir", str(directory), cwd=tmp_path)
    output, _ = run.communicate(timeout=300)
    assert run.returncode == 0, output
    assert [row["step"] for row in steps(directory)] == [1, 2]
    verify(read_latest(directory / "checkpoints"))
