"""The checks of `make gpu-check`: `CHECKS`. They train the quickstart's task with `configs/base/gpu.yaml` on top.

A CPU run gets the same options, and the CPU backend turns off unsupported ones (sleep, CUDA graphs, NCCL).
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil

from openrlhf_ktae.base import gpu_machine
from openrlhf_ktae.base.exit_codes import EXIT_FAULT, EXIT_INTERRUPTED
from openrlhf_ktae.base.free_port import free_port
from openrlhf_ktae.base.plain_json import parse_json
from openrlhf_ktae.checkpoint.folder import IncompleteCheckpoint, verify
from openrlhf_ktae.checkpoint.write import read_latest
from openrlhf_ktae.processes.marks import VARIABLE as RUN_VARIABLE
from openrlhf_ktae.processes.marks import marked
from openrlhf_ktae.selftest import machine
from openrlhf_ktae.selftest.checking import VARIABLE, Check, CheckFailed, Need, Place
from openrlhf_ktae.selftest.killing import ROOM, kill, kill_all, title
from openrlhf_ktae.selftest.mortal_run import try_resume
from openrlhf_ktae.selftest.trial import TRAIN, Trial, holds_within
from openrlhf_ktae.selftest.watchers import ASLEEP, FILE, MOMENTS, ORDER_FILE

WATCHED_COMMAND = "openrlhf_ktae.cli.watched_run"
CONFIGS = ("configs/grpo_ktae/quickstart.yaml", "configs/base/gpu.yaml")
BATCH = 8  # prompts per step of the quickstart
STEPS = 6
LOG_PROB_GAP = 0.02  # mean over tokens of |engine - trainer|; in bf16 single tokens differ more
RECOVERY_SECONDS = 120.0  # after a death
STEP_SECONDS = 240.0  # until a run's first step; on a busy machine mostly startup
GRACE_SECONDS = 20
STOP_WAIT_SECONDS = 2 * GRACE_SECONDS  # before `ray job stop` kills; its default is 3
LEFT_SECONDS = 10.0  # for the processes of a finished run to end
OVER_PLAN = 1.15  # largest allowed ratio of measured to planned memory
MANY = 40 * BATCH  # prompts; more than the checks use
SAME_STEP = 0.02  # relative; the gradient of one batch, split differently, in bf16
WORDS = (
    f"--vllm.gpu_memory_utilization 0.5 --algo.advantage.is_correction_level token --actor.recompute_log_probs true "
    f"--train.max_tokens_per_gpu 4096 --rollout.max_tokens_per_gpu 4096 --train.micro_batch_size 16 "
    f"--rollout.micro_batch_size 16 --run.eval_edges false --eval.steps -1 "
    f"--ckpt.max_num 1 --run.grace_seconds {GRACE_SECONDS}"
).split()
MODELS = {
    # hidden, layers, feed-forward, heads, key-value heads, vocabulary, options
    "cuda": ((896, 24, 4864, 14, 2, 151_936), "--train.max_tokens_per_gpu 1024 --rollout.max_tokens_per_gpu 1024"),
    "cpu": ((256, 8, 688, 8, 4, 8192), "--ds.param_dtype fp32"),
}
"""Models for the memory check: large enough that a process's fixed overhead does not dominate."""

GPU = Need(lambda place: place.gpus >= 1, "needs a GPU, but this machine has none")
TWO_GPUS = Need(lambda place: place.gpus >= 2, "needs two GPUs on this machine")
TWO_DEVICES = Need(lambda place: place.backend == "cpu" or place.gpus >= 2, TWO_GPUS.absent)
FLASH_ATTN = Need(
    lambda place: importlib.util.find_spec("flash_attn") is not None, "the package flash_attn is not installed"
)


def words(place: Place, *more: str) -> list[str]:
    """Return the options of every run, then `more`."""
    configs = [word for path in CONFIGS for word in ("--config", path)]
    return [*configs, "--backend", place.backend, *WORDS, *(word for text in more for word in text.split())]


@dataclass(frozen=True)
class Watched(Trial):
    """Runs whose processes report measurements (`watchers`)."""

    module: str = WATCHED_COMMAND

    def settings(self) -> dict[str, Any]:
        """Return no options, since these runs are neither repeated nor compared."""
        return {}

    def seen(self, name: str, kind: str) -> list[dict[str, Any]]:
        """Return the watchers' rows of one kind."""
        path = self.folder / name / FILE
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        return [row for row in map(parse_json, lines) if row["kind"] == kind]


def this_machine(place: Place) -> dict[str, Any]:
    """Check versions, driver and compiler for problems that prevent training on a GPU machine."""
    if problems := machine.problems(gpu_machine.this_machine()):
        raise CheckFailed("; ".join(problems))
    return {}


def attention(place: Place) -> dict[str, Any]:
    """Compare flash-attn, forward and backward, with PyTorch's attention."""
    from openrlhf_ktae.selftest.attention import compare, flash_attn

    figures, wrong = compare(*flash_attn(), device="cuda")
    if wrong:
        raise CheckFailed("; ".join(wrong), figures)
    return figures


def judged_run(place: Place, steps: int = STEPS, *more: str) -> dict[str, Any]:
    """Run some steps; engine and trainer must agree on log-probabilities in each step and on weights after it."""
    runs = Watched(words(place, *more), Path(place.folder), steps * BATCH, save_steps=-1)
    runs.finish("run")
    return judged(runs, "run", steps)


def judged(runs: Watched, name: str, steps: int) -> dict[str, Any]:
    """Return the figures of a watched run.

    Raises CheckFailed if a step is missing, weights differ, or log-probabilities are too far apart.
    """
    rows, weights, gaps = runs.steps(name), runs.seen(name, "weights"), runs.seen(name, "log_probs")
    tokens, times = sum(row["tokens"] for row in gaps), [row["time"] for row in rows]
    figures: dict[str, Any] = {
        "steps": len(rows),
        "synchronisations": len(weights),
        "with_equal_weights": sum(row["equal"] for row in weights),
        "log_prob_gap_mean": sum(row["mean"] * row["tokens"] for row in gaps) / tokens if tokens else None,
        "log_prob_gap_largest": max((row["largest"] for row in gaps), default=None),
        "tokens": tokens,
        "seconds_of_a_step": round(statistics.median(b - a for a, b in pairwise(times)), 2) if times[1:] else None,
    }
    wrong = []
    if len(rows) < steps:
        wrong.append(f"{len(rows)} of {steps} steps")
    if len(weights) < steps:
        wrong.append(f"weights were compared {len(weights)} times in {steps} steps")
    if bad := [row for row in weights if not row["equal"]]:
        wrong.append(f"weights of engine and trainer differ after {len(bad)} synchronisations: {bad[0]['different']}")
    gap = figures["log_prob_gap_mean"]
    if gap is None or not gap <= LOG_PROB_GAP:
        wrong.append(f"log-probabilities of engine and trainer differ by {gap} on average; {LOG_PROB_GAP} is allowed")
    if wrong:
        raise CheckFailed("; ".join(wrong), figures)
    return figures


def memory_by_phase(place: Place) -> dict[str, Any]:
    """Compare planned and measured memory of each phase."""
    folder = Path(place.folder)
    shape, options = MODELS[place.backend]
    random_model(folder / "weights", shape)
    given = words(place, f"--actor.model_name_or_path {folder / 'weights'} {options}")
    runs = Watched(given, folder, 2 * BATCH, save_steps=-1)
    runs.finish("run")
    return judged_memory(runs.seen("run", "planned"), runs.seen("run", "memory"))


def judged_memory(planned: list[dict[str, Any]], measured: list[dict[str, Any]]) -> dict[str, Any]:
    """Return planned and measured GiB of each phase.

    Raises CheckFailed if a phase used more than `OVER_PLAN` times its plan, or was not measured.
    """
    figures: dict[str, Any] = {}
    wrong = []
    for row in planned:
        peak = max((one["bytes"] for one in measured if one["phase"] == row["phase"]), default=None)
        if peak is None:
            wrong.append(f"{row['phase']} was not measured")
            continue
        figures[row["phase"]] = {
            "planned_gib": round(row["bytes"] / machine.GIB, 3),
            "measured_gib": round(peak / machine.GIB, 3),
            "ratio": round(peak / row["bytes"], 2),
        }
        if peak > OVER_PLAN * row["bytes"]:
            wrong.append(f"{row['phase']} used {peak / row['bytes']:.2f} times its planned memory")
    if wrong or not planned:
        raise CheckFailed("; ".join(wrong) or "nothing was planned", figures)
    return figures


def random_model(folder: Path, shape: tuple[int, ...]) -> None:
    """Save a Qwen2 with random weights in bf16 and the quickstart's tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    names = "hidden_size num_hidden_layers intermediate_size num_attention_heads num_key_value_heads vocab_size".split()
    sizes = dict(zip(names, shape, strict=True))
    config = AutoConfig.for_model("qwen2", tie_word_embeddings=True, max_position_embeddings=1024, **sizes)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    for file in Path("examples/quickstart/model").glob("tokenizer*"):
        shutil.copy(file, folder)


def resume(place: Place) -> dict[str, Any]:
    """Run twice, and once killed and resumed: metrics and weights must be bit-identical."""
    trial = Trial(words(place), Path(place.folder), prompts=2 * BATCH)
    found = try_resume(trial, kills=1, seed=0, say=lambda text: print(text, flush=True))
    if found:
        raise CheckFailed("; ".join(found))
    return {"runs": 3, "steps": len(trial.steps("straight")), "differences": 0}


def core_deaths(place: Place) -> dict[str, Any]:
    """Kill vLLM's core in each phase, then send SIGTERM: the run must recover or exit with 4, and leave nothing."""
    runs = Watched(words(place), Path(place.folder), MANY, save_steps=1)
    figures: dict[str, Any] = {}
    wrong: list[str] = []
    name, process = "", None
    for moment in MOMENTS:
        if moment == ASLEEP and place.backend == "cpu":
            figures[moment] = "skipped: engines do not sleep on a CPU"
            continue
        if process is None:
            name = f"until-{moment}"
            process = runs.start(name)
        try:
            figures[moment] = outcome_of_death(runs, name, process, moment)
        except CheckFailed as failure:
            wrong.append(f"{moment}: {failure}")
            figures[moment] = str(failure)
        if moment in figures and process.poll() is not None:
            process = None
        print(f"{moment}: {figures[moment]}", flush=True)
    if process is None:
        name = "until-sigterm"
        process = runs.start(name)
    try:
        figures["sigterm"] = outcome_of_sigterm(runs, name, process)
    except CheckFailed as failure:
        wrong.append(f"SIGTERM: {failure}")
    if wrong:
        raise CheckFailed("; ".join(wrong), figures)
    return figures


def outcome_of_death(runs: Watched, name: str, process: subprocess.Popen[bytes], moment: str) -> dict[str, Any]:
    """Kill an engine's core in one phase; return the outcome and the seconds it took.

    Raises CheckFailed if nothing happens within `RECOVERY_SECONDS`, or on another exit code; the run has then ended.
    """
    at = len(runs.steps(name))
    wait_for(lambda: len(runs.steps(name)) >= at + ROOM, runs, name, process, STEP_SECONDS)
    (runs.folder / name / ORDER_FILE).write_text(moment)
    deaths: list[dict[str, Any]] = []

    def died() -> bool:
        deaths[:] = [row for row in runs.seen(name, "death") if row["moment"] == moment]
        return bool(deaths)

    wait_for(died, runs, name, process, STEP_SECONDS)
    at_death = deaths[-1]["time"]
    repaired = holds_within(RECOVERY_SECONDS, lambda: len(runs.steps(name, at_death)) >= ROOM, process)
    seconds = round(time.time() - at_death, 1)
    code = process.poll()
    if code is None and repaired:
        return {"outcome": "repaired", "seconds": seconds}
    if code == EXIT_FAULT:
        return {"outcome": f"exit code {EXIT_FAULT}", "seconds": seconds}
    if code is not None:
        raise CheckFailed(runs.last_words(name, f"ended with exit code {code}"))
    raise CheckFailed(_hangs(runs, name, process, f"made no progress for {seconds:.0f} s"))


def outcome_of_sigterm(runs: Watched, name: str, process: subprocess.Popen[bytes]) -> dict[str, Any]:
    """Send SIGTERM to a run; return its exit code, seconds and last checkpoint.

    Raises CheckFailed unless it ends in time with the right code, a complete last checkpoint and no process left.
    """
    at = len(runs.steps(name))
    wait_for(lambda: len(runs.steps(name)) > at, runs, name, process, STEP_SECONDS)
    mark = psutil.Process(process.pid).environ()[RUN_VARIABLE]
    began = time.monotonic()
    process.terminate()
    try:
        code = process.wait(RECOVERY_SECONDS)
    except subprocess.TimeoutExpired:
        raise CheckFailed(_hangs(runs, name, process, "did not end")) from None
    seconds = round(time.monotonic() - began, 1)
    if code != EXIT_INTERRUPTED:
        raise CheckFailed(runs.last_words(name, f"ended with exit code {code} instead of {EXIT_INTERRUPTED}"))
    return {"exit_code": code, "seconds": seconds, **final_checkpoint(runs, name, mark)}


def final_checkpoint(runs: Watched, name: str, mark: str) -> dict[str, Any]:
    """Return the step of the newest checkpoint of a finished run.

    Raises CheckFailed if it is incomplete or not of the last step, or a process is left.
    """
    _, left = psutil.wait_procs(marked(mark), timeout=LEFT_SECONDS)
    if left:
        raise CheckFailed(f"{len(left)} processes are left: {[title(process)[:60] for process in left[:5]]}")
    newest, last = read_latest(runs.folder / name / "checkpoints"), runs.steps(name)[-1]["step"]
    if newest is None:
        raise CheckFailed(f"no checkpoint of step {last}")
    try:
        verify(newest)
    except IncompleteCheckpoint as reason:
        raise CheckFailed(f"{newest.name} is incomplete: {reason}") from None
    if newest.name != f"global_step{last}":
        raise CheckFailed(f"the newest checkpoint is {newest.name}, the last step {last}")
    return {"checkpoint_step": last}


def wait_for(
    condition: Callable[[], bool], runs: Watched, name: str, process: subprocess.Popen[bytes], seconds: float
) -> None:
    """Wait until the condition holds.

    Raises CheckFailed if it does not hold within `seconds`, or the run ended first; the run has then ended.
    """
    if not holds_within(seconds, condition, process):
        if (code := process.poll()) is not None:
            raise CheckFailed(runs.last_words(name, f"ended with exit code {code}"))
        raise CheckFailed(_hangs(runs, name, process, f"made no progress within {seconds:.0f} s"))


def _hangs(runs: Watched, name: str, process: subprocess.Popen[bytes], what: str) -> str:
    """Write a hanging run's stacks to its folder and kill it; return the message."""
    with suppress(psutil.Error, KeyError):
        runs.write_stacks(name, psutil.Process(process.pid).environ()[RUN_VARIABLE])
    kill_all(process)
    return runs.last_words(name, f"{what}; killed, its stacks are next to its log")


def job_stop(place: Place) -> dict[str, Any]:
    """Submit a job and stop it: the last step must have a checkpoint, and no process may be left."""
    folder = Path(place.folder)
    runs = Watched(words(place), folder, MANY, save_steps=1, module=TRAIN)
    with _Cluster(place) as cluster:
        (folder / "job").mkdir(parents=True, exist_ok=True)
        cluster.submit(runs.command("job", "never"))
        end = time.monotonic() + STEP_SECONDS
        while len(runs.steps("job")) < ROOM:
            time.sleep(1)
            if time.monotonic() > end or cluster.status() not in ("PENDING", "RUNNING"):
                raise CheckFailed(f"the job has under {ROOM} steps and is {cluster.status()}: {cluster.log()[-600:]}")
        mark = cluster.mark_of_the_run()
        began = time.monotonic()
        cluster.ray("job", "stop", cluster.JOB)
        seconds, status = round(time.monotonic() - began, 1), cluster.status()
        if status != "STOPPED":
            raise CheckFailed(f"the job is {status} after `ray job stop`: {cluster.log()[-600:]}")
        return {"seconds": seconds, **final_checkpoint(runs, "job", mark)}


class _Cluster:
    """A Ray head node for the job-stop check."""

    JOB = "gpu-check"

    def __init__(self, place: Place) -> None:
        self._mark = os.environ.get(VARIABLE, "")
        self._devices = str(max(1, place.gpus))
        self._env = {**os.environ, "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_SECONDS)}
        self._before: set[int] = set()

    def __enter__(self) -> _Cluster:
        self._before = {process.pid for process in marked(self._mark, VARIABLE)}
        dashboard = free_port()
        self._address = f"http://127.0.0.1:{dashboard}"
        ports = f"--port {free_port()} --dashboard-host 127.0.0.1 --dashboard-port {dashboard}"
        ports += f" --dashboard-agent-listen-port {free_port()}"
        self.ray(
            "start", "--head", "--num-gpus", self._devices, "--num-cpus", "8", *ports.split(), "--disable-usage-stats"
        )
        return self

    def __exit__(self, *_: object) -> None:
        processes = [process for process in marked(self._mark, VARIABLE) if process.pid not in self._before]
        kill(processes)
        psutil.wait_procs(processes, timeout=10)

    def ray(self, *command: str) -> str:
        """Run Ray's command line; return its output."""
        ray = str(Path(sys.executable).with_name("ray"))
        address = ["--address", self._address] if command[0] == "job" else []
        words = [ray, *command[:2], *address, *command[2:]]
        done = subprocess.run(
            words, env=self._env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=150
        )
        if done.returncode:
            raise CheckFailed(f"`ray {' '.join(command[:2])}` ended with {done.returncode}: {done.stdout[-600:]}")
        return done.stdout

    def mark_of_the_run(self) -> str:
        """Return the mark that identifies the run's processes: the driver sets it and its workers inherit it."""
        found = set()
        for process in marked(self._mark, VARIABLE):
            with suppress(psutil.Error):
                found.add(process.environ().get(RUN_VARIABLE))
        (mark,) = found - {None}
        return str(mark)

    def submit(self, command: Sequence[str]) -> None:
        """Submit a job, retrying because the agent may start after the head."""
        environment = json.dumps({"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_SECONDS)}})
        words = ["--submission-id", self.JOB, "--no-wait", "--runtime-env-json", environment, "--", *command]
        for patience in (True, True, True, True, False):
            try:
                self.ray("job", "submit", *words)
                return
            except CheckFailed as failure:
                if not patience or "No available agent" not in str(failure):
                    raise
            time.sleep(3)

    def status(self) -> str:
        """Return the job's status."""
        return str(self._client().get_job_status(self.JOB).value)

    def log(self) -> str:
        """Return the job's output."""
        return str(self._client().get_job_logs(self.JOB))

    def _client(self) -> Any:
        from ray.job_submission import JobSubmissionClient

        return JobSubmissionClient(self._address)


def asynchronous(place: Place) -> dict[str, Any]:
    """Run four asynchronous steps with partial rollouts on separate devices; judge them like `six-steps`."""
    more = "--train.colocate_all false --train.async_enable --train.partial_rollout_enable --vllm.enable_sleep false"
    return judged_run(place, 4, more, "--ds.enable_sleep false")


def ring(place: Place) -> dict[str, Any]:
    """Train one batch on two GPUs as two data ranks, and as a ring of two: the gradient norms must agree."""
    two = "--actor.num_gpus_per_node 2 --ref.num_gpus_per_node 2 --vllm.num_engines 2"
    norms: dict[int, float] = {}
    figures: dict[str, Any] = {}
    for size in (1, 2):
        given = words(place, two, f"--train.full_determinism_enable --ds.ring_attn_size {size}")
        runs = Watched(given, Path(place.folder), BATCH, save_steps=-1)
        runs.finish(f"ring{size}")
        figures[f"ring {size}"] = judged(runs, f"ring{size}", 1)
        norms[size] = runs.steps(f"ring{size}")[0]["actor_grad_norm"]
    figures["gradient_norms"] = list(norms.values())
    if not abs(norms[1] - norms[2]) <= SAME_STEP * norms[1]:
        raise CheckFailed(f"the gradient norm is {norms[1]:.4g}, but {norms[2]:.4g} with a ring of two", figures)
    return figures


def tensor_parallel(place: Place) -> dict[str, Any]:
    """Run two steps with one engine on two GPUs shared with the trainer."""
    more = "--actor.num_gpus_per_node 2 --ref.num_gpus_per_node 2 --vllm.num_engines 1 --vllm.tensor_parallel_size 2"
    return judged_run(place, 2, more)


CHECKS = (
    Check("machine", "driver, compiler and packages of a GPU machine", this_machine, 60),
    Check(
        "attention", "flash-attn forward and backward against PyTorch's attention", attention, 120, (GPU, FLASH_ATTN)
    ),
    Check("six-steps", "engine and trainer have the same weights and log-probabilities", judged_run, 300),
    Check("core-deaths", "a killed engine restarts or ends the run; SIGTERM", core_deaths, 300),
    Check("resume", "the same result twice, and when killed and resumed", resume, 300),
    Check("memory", "planned against measured memory of each phase", memory_by_phase, 150),
    Check("job-stop", "ray job submit and ray job stop", job_stop, 150),
    Check("asynchronous", "partial rollouts, weights between two devices", asynchronous, 150, (TWO_DEVICES,)),
    Check("ring", "a ring of two against two data ranks", ring, 240, (TWO_GPUS,)),
    Check("tensor-parallel", "an engine on two GPUs", tensor_parallel, 150, (TWO_GPUS,)),
)
