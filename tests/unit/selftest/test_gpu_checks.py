"""The checks of a GPU machine: requirements, runs, and the judgement of runs."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from dataclasses import replace
from pathlib import Path

import pytest
from marks import RARELY, SLOW

from openrlhf_ktae.base import gpu_machine
from openrlhf_ktae.base.gpu_machine import Gpu, GpuMachine
from openrlhf_ktae.checks.backends import backend_problems
from openrlhf_ktae.cli import gpu_check
from openrlhf_ktae.cli.options import parse_command_line
from openrlhf_ktae.processes.marks import VARIABLE, end_all
from openrlhf_ktae.selftest import gpu_checks, machine
from openrlhf_ktae.selftest.checking import Check, CheckFailed, Place, run_one
from openrlhf_ktae.selftest.gpu_checks import (
    CHECKS,
    RECOVERY_SECONDS,
    Watched,
    final_checkpoint,
    judged,
    judged_memory,
    outcome_of_death,
    outcome_of_sigterm,
)
from openrlhf_ktae.selftest.trial import Trial, TrialFailed
from openrlhf_ktae.selftest.watchers import FILE, GENERATING

pytestmark = SLOW

NAMES = [check.name for check in CHECKS]
ON_A_CPU = ["machine", "six-steps", "core-deaths", "resume", "memory", "job-stop", "asynchronous"]


def runnable(place, monkeypatch, flash_attn):
    there = gpu_checks.importlib.util.find_spec
    monkeypatch.setattr(
        gpu_checks.importlib.util, "find_spec", lambda name: flash_attn if name == "flash_attn" else there(name)
    )
    return [check.name for check in CHECKS if all(need.there(place) for need in check.needs)]


@pytest.mark.parametrize(
    ("backend", "gpus", "flash_attn", "missing"),
    [
        ("cuda", 2, object(), []),
        ("cuda", 1, object(), ["asynchronous", "ring", "tensor-parallel"]),
        ("cuda", 1, None, ["attention", "asynchronous", "ring", "tensor-parallel"]),
        ("cpu", 0, None, ["attention", "ring", "tensor-parallel"]),
    ],
)
def test_each_machine_runs_the_checks_it_supports(backend, gpus, flash_attn, missing, monkeypatch):
    found = runnable(Place("/x", backend, gpus), monkeypatch, flash_attn)
    assert found == [name for name in NAMES if name not in missing]


def test_one_gpu_is_checked_within_ten_minutes_unless_something_hangs():
    assert all(check.seconds <= 300 for check in CHECKS), "a hanging check must leave time for another"
    assert RECOVERY_SECONDS == 120


class Run:
    def __init__(self, monkeypatch):
        self.commands = []
        monkeypatch.setattr(Trial, "finish", lambda trial, name, resume="never": self.stop(trial.command(name, resume)))
        monkeypatch.setattr(
            Trial, "start", lambda trial, name, resume="never", mark="": self.stop(trial.command(name, resume))
        )
        monkeypatch.setattr(gpu_checks, "random_model", lambda folder, shape: self.model(folder))

    @staticmethod
    def model(folder):
        folder.symlink_to(Path("examples/quickstart/model").resolve())

    def stop(self, command):
        self.commands.append(command)
        raise TrialFailed("caught")


@pytest.mark.parametrize(
    ("check", "backend"),
    [
        (check, backend)
        for check in CHECKS
        for backend in ("cuda", "cpu")
        if check.name not in ("machine", "attention", "job-stop") and (backend == "cuda" or check.name in ON_A_CPU)
    ],
)
def test_the_options_of_every_run_parse_and_are_compatible(check, backend, tmp_path, root, monkeypatch):
    monkeypatch.chdir(root)
    run, environment = Run(monkeypatch), dict(os.environ)
    with pytest.raises(TrialFailed, match="caught"):
        check.run(Place(str(tmp_path), backend, 2))
    assert os.environ == environment, "later checks would inherit it"
    (command,) = run.commands
    args = parse_command_line(command[3:])
    assert args.ds.packing_samples
    assert args.ds.attn_implementation == "flash_attention_2"
    assert args.ds.zero_stage == 3
    assert args.vllm.gpu_memory_utilization == 0.5
    assert not args.vllm.enforce_eager, "must use CUDA graphs"
    assert args.ds.param_dtype == ("fp32" if (check.name, backend) == ("memory", "cpu") else "bf16")
    assert args.train.full_determinism_enable or check.name != "resume", "logits would depend on the rest of the batch"
    assert args.run.dir.startswith(str(tmp_path))
    assert args.ckpt.path.startswith(str(tmp_path))
    alone = check.name == "asynchronous"
    assert (args.train.colocate_all, args.vllm.enable_sleep, args.ds.enable_sleep) == ((not alone,) * 3)
    if backend == "cuda":
        monkeypatch.setattr(gpu_checks.importlib.util, "find_spec", lambda name: object())
        assert backend_problems(args, "cuda") == []


@pytest.fixture
def runs(tmp_path):
    return Watched([], tmp_path, 48)


def record(runs, steps=6, gap=0.004, weights=6, equal=True):
    import json

    folder = runs.folder / "run"
    folder.mkdir(exist_ok=True)
    rows = [{"kind": "step", "step": n, "time": 2.0 * n} for n in range(1, steps + 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    seen = [{"kind": "weights", "equal": True, "parameters": 16, "different": []}] * (weights - 1)
    seen += [{"kind": "weights", "equal": equal, "parameters": 16, "different": [] if equal else ["model.norm.weight"]}]
    seen += [{"kind": "log_probs", "mean": gap, "largest": 0.1, "tokens": 100}]
    seen += [{"kind": "log_probs", "mean": 0.0, "largest": 0.0, "tokens": 300}]
    (folder / FILE).write_text("".join(json.dumps(row) + "\n" for row in seen))


def test_figures_of_a_good_run(runs):
    record(runs)
    assert judged(runs, "run", 6) == {
        "steps": 6,
        "synchronisations": 6,
        "with_equal_weights": 6,
        "log_prob_gap_mean": pytest.approx(0.001),
        "log_prob_gap_largest": 0.1,
        "tokens": 400,
        "seconds_of_a_step": 2.0,
    }


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"steps": 5}, "5 of 6 steps"),
        ({"weights": 5}, "weights were compared 5 times in 6 steps"),
        ({"equal": False}, "differ after 1 synchronisations: ['model.norm.weight']"),
        ({"gap": 0.1}, "0.025 on average; 0.02 is allowed"),
        ({"gap": float("nan")}, "nan on average"),
    ],
)
def test_faults_of_a_run_are_reported_with_the_figures(runs, change, reason):
    record(runs, **change)
    with pytest.raises(CheckFailed) as failure:
        judged(runs, "run", 6)
    assert reason in str(failure.value)
    assert failure.value.figures["tokens"] == 400


def test_memory_above_the_plan_is_found_phase_by_phase():
    planned = [{"phase": "training", "bytes": 2.0 * 2**30}, {"phase": "generation", "bytes": 2**30}]
    measured = [{"phase": "training", "bytes": 2**30}, {"phase": "training", "bytes": 2.2 * 2**30}]
    measured += [{"phase": "generation", "bytes": 0.5 * 2**30}, {"phase": "unplanned", "bytes": 2**40}]
    assert judged_memory(planned, measured) == {
        "training": {"planned_gib": 2.0, "measured_gib": 2.2, "ratio": 1.1},
        "generation": {"planned_gib": 1.0, "measured_gib": 0.5, "ratio": 0.5},
    }
    with pytest.raises(CheckFailed, match=r"training used 1\.20 times its planned memory"):
        judged_memory(planned, [{"phase": "training", "bytes": 2.4 * 2**30}, measured[2]])
    with pytest.raises(CheckFailed, match="generation was not measured"):
        judged_memory(planned, measured[:2])
    with pytest.raises(CheckFailed, match="nothing was planned"):
        judged_memory([], measured)


@pytest.fixture
def pretend(tmp_path, monkeypatch):
    """Start a stand-in run; the fixture kills it at the end."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
    started, marks = [], []

    def start(after):
        runs = Watched([after], tmp_path, 48, module="pretend_run")
        marks.append(uuid.uuid4().hex)
        started.append(runs.start("run", mark=marks[-1]))
        return runs, "run", started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()
    for mark in marks:
        end_all(mark, 0)


def test_a_run_that_survives_a_death_is_judged_again_at_sigterm(pretend):
    run = pretend("goes-on")
    found = outcome_of_death(*run, GENERATING)
    assert found["outcome"] == "repaired"
    assert 0 <= found["seconds"] < 10
    ended = outcome_of_sigterm(*run)
    assert (ended["exit_code"], ended["checkpoint_step"]) == (130, run[0].steps("run")[-1]["step"])


@pytest.mark.parametrize(
    ("after", "reason"), [("forgets", "no checkpoint of step"), ("leaves", r"1 processes are left: \['sleep 60'\]")]
)
def test_a_run_ended_by_sigterm_leaves_a_checkpoint_and_no_process(pretend, monkeypatch, after, reason):
    monkeypatch.setattr(gpu_checks, "LEFT_SECONDS", 0.5)
    run = pretend(after)
    with pytest.raises(CheckFailed, match=reason):
        outcome_of_sigterm(*run)
    assert run[2].returncode == 130


@RARELY  # a Ray head and its job agent take half a minute to start
def test_a_stopped_job_leaves_a_checkpoint_and_no_process(tmp_path, root, monkeypatch):
    """The real `ray job submit` and `ray job stop` with a stand-in run."""
    monkeypatch.chdir(root)
    path = [str(Path(__file__).parent), str(root / "tests"), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path))
    result = run_one(check_of("job-stop", "stops_a_pretended_job"), Place(str(tmp_path), "cpu", 0), limit=150.0)
    assert (result.status, result.reason) == ("ok", ""), result.last_lines
    assert result.figures["checkpoint_step"] >= 2
    assert result.figures["seconds"] < 60


def stops_a_pretended_job(place):
    gpu_checks.TRAIN = "pretend_run"
    return gpu_checks.job_stop(place)


def check_of(name, function):
    found = globals()[function]
    found.__module__ = Path(__file__).stem
    return Check(name, name, found, 150)


@pytest.mark.parametrize("code", [4, 1])
def test_a_run_may_end_only_with_the_exit_code_of_a_fault(pretend, code):
    run = pretend(str(code))
    if code == 4:
        assert outcome_of_death(*run, GENERATING)["outcome"] == "exit code 4"
        return
    with pytest.raises(CheckFailed, match=r"ended with exit code 1; .*(?s:.*)an engine died"):
        outcome_of_death(*run, GENERATING)


def test_a_run_that_hangs_after_a_death_is_killed_and_reported(pretend, monkeypatch):
    monkeypatch.setattr(gpu_checks, "RECOVERY_SECONDS", 2.0)
    run = pretend("hangs")
    with pytest.raises(CheckFailed, match="made no progress for 2 s; killed"):
        outcome_of_death(*run, GENERATING)
    assert run[2].returncode == -9


def test_a_leftover_process_is_a_failure(runs, monkeypatch):
    record(runs)
    monkeypatch.setattr(gpu_checks, "LEFT_SECONDS", 0.5)
    child = subprocess.Popen(["sleep", "30"], env={**os.environ, VARIABLE: "left-over"})
    try:
        with pytest.raises(CheckFailed, match=r"1 processes are left: \['sleep 30'\]"):
            final_checkpoint(runs, "run", "left-over")
    finally:
        child.kill()
        child.wait()


GIB = 2**30
GPU = Gpu("NVIDIA X", "9.0", 80 * GIB, 79 * GIB)
GOOD = GpuMachine((GPU,), "580.65.06", 13, "13.0", "/usr/local/cuda", "13.0", (), (), ())


@pytest.mark.parametrize(
    ("change", "reasons"),
    [
        ({}, []),
        ({"driver": "575.57.08", "driver_cuda": 12}, ["the NVIDIA driver 575.57.08 supports CUDA 12"]),
        ({"nvcc": ""}, ["there is no compiler /usr/local/cuda/bin/nvcc"]),
        ({"nvcc": "12.8"}, ["refuses CUDA 12.8"]),
        ({"nvcc": "", "prebuilt": ("fused_adam",)}, []),
        ({"torch_cuda": "", "nvcc": ""}, ["the CPU build of torch"]),
        ({"gpus": (GPU, replace(GPU, free=60 * GIB))}, ["GPU 1: 20.0 GiB are in use; stop what runs there"]),
        ({"gpus": (), "driver": "", "nvcc": "", "torch_cuda": ""}, []),
    ],
)
def test_a_machine_is_judged_by_driver_compiler_and_build(change, reasons):
    found = machine.problems(replace(GOOD, **change))
    assert len(found) == len(reasons)
    assert all(reason in one for one, reason in zip(found, reasons, strict=True))


def test_the_compiler_is_found_as_deepspeed_finds_it(tmp_path, monkeypatch):
    compiler = tmp_path / "bin/nvcc"
    compiler.parent.mkdir()
    compiler.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 13.0, V13.0.88'\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert gpu_machine.this_machine().nvcc == "13.0"
    monkeypatch.delenv("CUDA_HOME")
    monkeypatch.setenv("PATH", str(compiler.parent))
    assert gpu_machine.this_machine().nvcc == "13.0"


def test_this_machine_is_described_without_names():
    import json
    import socket

    found = machine.describe()
    assert found["packages"]["openrlhf"] == "0.11.2"
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["cpus"] >= 1
    assert socket.gethostname() not in json.dumps(found)


@pytest.mark.parametrize(
    ("words", "refusal"),
    [
        ("--only six-steps,seven", "--only six-steps,seven: 'seven' is not one of machine, attention"),
        ("--minutes 0", "--minutes 0: give more than 0"),
        ("--minutes inf", "--minutes inf: give more than 0"),
        ("--minutes nan", "--minutes nan: give more than 0"),
        ("--backend cpu --keep setup.py", "--keep setup.py: cannot be written (File exists); give another"),
        ("--backend cpu --keep /proc/x", "--keep /proc/x: cannot be written ("),
        ("--output tests", "--output tests: is not a file"),
        ("--output /dev/null", "--output /dev/null: is not a file"),
        ("--backend cpu --output /proc/x.json", "--output /proc/x.json: cannot be written ("),
        ("--keep .", "--keep .: is not empty; give a new folder"),
        ("--output no/such/folder.json", "--output no/such/folder.json: folder no/such does not exist; make it first"),
        ("--backend rocm", "--backend: invalid choice"),
        ("--backend cuda", "--backend cuda: the CPU build of vLLM is installed"),
    ],
)
def test_bad_options_are_refused_before_anything_runs(words, refusal, root, monkeypatch, capsys):
    monkeypatch.chdir(root)
    monkeypatch.setattr(gpu_check, "run_all", lambda *_: pytest.fail("checks run"))
    assert gpu_check.main(words.split()) == 2
    assert f"error: {refusal}" in capsys.readouterr().err


def test_it_must_run_in_a_clone(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert gpu_check.main([]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: configs/grpo_ktae/quickstart.yaml")
    assert "run this in the folder of a clone" in message


def test_the_report_gives_reasons_for_skipped_checks(tmp_path, root, monkeypatch, capsys):
    import json

    monkeypatch.chdir(root)
    output = tmp_path / "report.json"
    assert gpu_check.main(["--backend", "cpu", "--only", "machine,attention,ring", "--output", str(output)]) == 0
    content = json.loads(output.read_text())
    assert (content["format"], content["ok"], content["failed"], content["skipped"]) == (1, 1, 0, 2)
    assert [check["name"] for check in content["checks"]] == ["machine", "attention", "ring"]
    assert content["checks"][1]["reason"] == "needs a GPU, but this machine has none"
    assert content["checks"][2]["reason"] == "needs two GPUs on this machine"
    said = capsys.readouterr().out
    assert "ok      machine" in said
    assert "1 ok, 0 failed, 2 skipped" in said
