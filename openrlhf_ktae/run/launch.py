"""Start Ray, put this package's classes where the host looks for its own, and let the host train."""

from __future__ import annotations

import importlib
import io
import json
import logging
import os
import re
import secrets
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from openrlhf_ktae.backend import Backend
from openrlhf_ktae.backend.base import devices_needed
from openrlhf_ktae.checkpoint.model_files import SavedInPart
from openrlhf_ktae.faults import processes, stacks
from openrlhf_ktae.faults.config import RETRIES_VARIABLE, SERVER_VARIABLE
from openrlhf_ktae.faults.deaths import causes, died, failed_to_start, innermost
from openrlhf_ktae.faults.processes import mark, swept
from openrlhf_ktae.host import undecorated
from openrlhf_ktae.run.nodes import POLL_SECONDS, NodeWatch, check_nodes, devices, with_absolute_places
from openrlhf_ktae.run.process_setup import BACKEND_VARIABLE, WORKER_HOOK, in_every_process
from openrlhf_ktae.run.record import UnwrittenStop
from openrlhf_ktae.safety import remote_code
from openrlhf_ktae.verifier.config import VerifierConfig

HOST_CLI = "openrlhf.cli.train_ppo_ray"
# The host passes these to its workers; when Ray is up already, it leaves that to whoever started it.
HOST_ENVIRONMENT = {
    "TOKENIZERS_PARALLELISM": "true",
    "NCCL_DEBUG": "WARN",
    "RAY_ENABLE_ZERO_COPY_TORCH_TENSORS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # Ray asks for this to be set and warns until it is
}
ENGINE_MODULE = "openrlhf.trainer.ray.vllm_engine"
JOB_CONFIG_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
CLUSTER_VARIABLE = "RAY_ADDRESS"
TASKS_VARIABLE = "RAY_task_events_max_num_task_in_gcs"
TASKS_REMEMBERED = 1000  # for a dashboard; those of some 20 steps, in 3 MB
EVENTS_VARIABLE = "RAY_task_events_report_interval_ms"
WORKERS_VARIABLE = "RAY_num_workers_soft_limit"
LOG_FILES_VARIABLE = "RAY_LOG_MONITOR_MAX_OPEN_FILES"
TRACEBACK_FILE = "error.txt"
SHOWN = 400  # characters of a reason
ENGINE_LOG = "root cause"  # vLLM's core says only in its log why it could not start
CORE_ERROR = re.compile(r"^.*\(EngineCore[^)]*\).*?\b([A-Z]\w*(?:Error|Exception): (?!Engine core).+)$", re.M)
DATA = re.compile(r"prepare_datasets|blending_datasets|PromptDataset|/site-packages/datasets/")
ADDRESS_SECONDS = 3  # for a cluster to answer
DIED_UNEXPECTEDLY = 2  # Ray's NodeDeathInfo.Reason; one that was taken out of the cluster has another
RETURN_SECONDS = 120.0  # for a node to come back, or for another to take its place


class ProcessDied(RuntimeError):
    """A process that the run cannot do without is gone."""


class Failed(RuntimeError):
    """A process of the run raised an error of Python; the message begins with it."""


class DataUnreadable(ValueError):
    """The data could not be loaded where the run needs them."""


class ClusterTooSmall(ValueError):
    """The Ray cluster that was joined cannot place the run."""


class ClusterAway(ValueError):
    """No Ray cluster answers where one is said to be."""


def train(args: SimpleNamespace, backend: Backend, say: Callable[[str], None]) -> None:
    """Run the whole training; returns when the model is saved. `say` gets a line for each stage of the start.

    Raises:
        ClusterTooSmall: a cluster was joined that has too few devices.
        NodesApart: a node of it does not see what the run reads or writes, or lacks what training needs.
        ClusterAway: there is no cluster to join.
        ProcessDied: Ray does not start, or a process of the run is gone for good.
        UnwrittenStop: training ended early, and the disk has no room for the reason.
        DataUnreadable: the data cannot be loaded.
        Failed: another error of Python.
        SavedInPart: the weights are saved, and something else of the model is not.
    """
    args = with_absolute_places(args)
    mark()
    os.environ[stacks.VARIABLE] = stacks.new_folder()
    variables = environment(args, backend)
    os.environ.update(variables)
    in_every_process()
    if CLUSTER_VARIABLE not in os.environ:
        os.environ.update(cluster_of_its_own(args.run.verbose, has_dashboard(backend, args)))
    import ray  # reads the environment as it is imported

    backend.prepare_driver()
    # Not while another thread imports: Ray runs Python code in its forked children before they exec, and one that is
    # forked while an import holds a lock hangs for good, and with it this process.
    start_ray(args, backend, variables)
    node = ray._private.worker.global_worker.node
    logs = Path(node.get_logs_dir_path() if node else "")
    say(f"Ray is up with {devices_needed(args)} {'virtual ' if backend.name == 'cpu' else ''}devices")
    try:
        _train(args, backend, say)
    except ray.exceptions.RayError as error:
        for cause in causes(error):
            if type(cause) in (UnwrittenStop, SavedInPart):
                raise cause from None
        reason = innermost(error)
        if ENGINE_LOG in reason:
            reason = f"{cause_in_logs(logs) or 'no reason in its log'}; {reason}"
        if died(error) and not failed_to_start(error):
            raise ProcessDied(f"a process of the run died: {reason[:SHOWN]}") from None
        where = Path(args.run.dir) / TRACEBACK_FILE
        with suppress(OSError):
            where.write_text(without_colours(str(error)) + "\n", encoding="utf-8")
        if DATA.search(str(error)) and failed_to_start(error):
            raise DataUnreadable(
                f"--data.prompt_dataset or --eval.dataset: cannot be loaded: {reason[:SHOWN]}; {where} says where"
            ) from None
        raise Failed(f"{reason[:SHOWN]}; {where} says where") from None


def cause_in_logs(logs: Path) -> str:
    """Return the last error that vLLM's cores wrote to Ray's logs of workers; empty where there is none."""
    found: list[str] = []
    for path in sorted(logs.glob("worker-*"), key=lambda path: path.stat().st_mtime):
        with suppress(OSError):
            found += CORE_ERROR.findall(path.read_text(encoding="utf-8", errors="replace"))
    return found[-1] if found else ""


def without_colours(text: str) -> str:
    """Return `text` without the codes with which Ray colours tracebacks."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def _train(args: SimpleNamespace, backend: Backend, say: Callable[[str], None]) -> None:
    import ray

    watch = None
    try:
        host_cli = importlib.import_module(HOST_CLI)
        check_cluster(args, say)
        check_nodes(args, backend)
        install_classes(args, backend)
        say("loading the model into trainer and engines")
        with NodeWatch(devices_needed(args)) as watch, quiet(args):
            host_cli.train(args)
    except KeyboardInterrupt:
        if watch is None or not watch.lost:
            raise
        raise ProcessDied(watch.lost) from None
    finally:
        with swept(mark()):
            ray.shutdown()


class FullDiskLog(io.TextIOWrapper):
    """A log that loses what finds no room: no print of the host ends a run for want of it."""

    def __init__(self, file: Any, encoding: str) -> None:
        super().__init__(file, encoding, write_through=True)

    def write(self, text: str) -> int:
        """Write `text` at once, or lose it."""
        with suppress(OSError):
            super().write(text)
        return len(text)


@contextmanager
def quiet(args: SimpleNamespace) -> Iterator[None]:
    """Send what the host prints in this process to `driver.log` of the run, unless the run is verbose."""
    if args.run.verbose:
        yield
        return
    with FullDiskLog((Path(args.run.dir) / "driver.log").open("ab", buffering=0), "utf-8") as log, redirect_stdout(log):
        yield


def environment(args: SimpleNamespace, backend: Backend) -> dict[str, str]:
    """Return the variables of every process of the run; what is set in this process already wins."""
    defaults = {**HOST_ENVIRONMENT, **backend.environment(args)}
    chosen = {name: os.environ.get(name, value) for name, value in defaults.items()}
    if args.verifier.enable:
        chosen |= VerifierConfig(**args.verifier.config).to_env()
    hook = backend.worker_setup_hook()
    faults = args.faults.config
    chosen[RETRIES_VARIABLE] = str(faults["rollout_retries"])
    if "reward_tries" in faults:  # a run's, not an evaluation's
        chosen[SERVER_VARIABLE] = f"{faults['reward_timeout_s']} {faults['reward_tries']}"
    chosen |= {name: os.environ[name] for name in (processes.VARIABLE, stacks.VARIABLE) if name in os.environ}
    return chosen | remote_code.environment(args.model.trust_remote_code) | ({BACKEND_VARIABLE: hook} if hook else {})


def has_dashboard(backend: Backend, args: SimpleNamespace) -> bool:
    """Whether a cluster that this command starts shows what runs in it."""
    return bool(backend.ray_init_options(args).get("include_dashboard", True))


def cluster_of_its_own(verbose: bool, dashboard: bool) -> dict[str, str]:
    """Return what closes a cluster that this command starts, and keeps it small.

    Its ports take orders from holders of the token alone: Ray binds them to every address of the machine, whatever is
    asked for, and who reaches one can run code. Its server remembers the last tasks alone, not 100,000 of them, and
    grows by 140 bytes for each all the same; where no dashboard shows them, it hears of none. Workers without work end
    after a second: Ray would keep up to one for each CPU, one more after some deaths. Its log monitor would keep the
    files of up to 100 processes open, dead ones included; where the run is not `verbose`, nobody reads what it sends,
    and one at a time is enough.
    """
    small = {TASKS_VARIABLE: str(TASKS_REMEMBERED), WORKERS_VARIABLE: "0"}
    small |= {} if verbose else {LOG_FILES_VARIABLE: "1"}
    small |= {} if dashboard else {EVENTS_VARIABLE: "0"}
    chosen = {name: os.environ.get(name, value) for name, value in small.items()}
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), **chosen}


def start_ray(args: SimpleNamespace, backend: Backend, variables: dict[str, str]) -> None:
    """Join the cluster named by RAY_ADDRESS (as a submitted job does), or start what the backend asks for."""
    import ray

    runtime_env: dict[str, Any] = {
        "env_vars": without_job_variables(variables),
        "worker_process_setup_hook": WORKER_HOOK,
    }
    settings = {"runtime_env": runtime_env, "log_to_driver": args.run.verbose, "logging_level": logging.ERROR}
    on_eviction = signal.getsignal(signal.SIGTERM)
    if CLUSTER_VARIABLE in os.environ:
        check_address(os.environ[CLUSTER_VARIABLE])
        ray.init(**settings)
    else:
        start_own(lambda: ray.init(**settings, **backend.ray_init_options(args)))
    signal.signal(signal.SIGTERM, on_eviction)  # Ray's own handler prints a stack and aborts


def check_address(address: str) -> None:
    """Raise `ClusterAway` where nothing answers at HOST:PORT: Ray would try for minutes and abort."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit() or "/" in host:
        return  # `auto`, or ray://...: Ray's to look up
    try:
        socket.create_connection((host, int(port)), ADDRESS_SECONDS).close()
    except OSError as error:
        raise ClusterAway(
            f"{CLUSTER_VARIABLE}={address}: no Ray cluster answers there ({error}). Start one with `ray start --head`, "
            f"or unset {CLUSTER_VARIABLE}: the command starts its own"
        ) from None


def start_own(start: Callable[[], Any]) -> None:
    """Start Ray, once more where it fails: it gives its processes 30 s, which a busy machine can exceed.

    Raises:
        ProcessDied: it failed twice.
    """
    import ray

    for last in (False, True):
        try:
            start()
            return
        except Exception as error:  # Ray raises a bare one
            with swept(mark()):
                ray.shutdown()
            if last:
                reason = " ".join(str(error).split())[:200]
                raise ProcessDied(
                    f"Ray did not start, twice ({reason}); is the machine busy, or short of memory?"
                ) from None


def without_job_variables(variables: dict[str, str]) -> dict[str, str]:
    """Leave out what a submitted job's own runtime environment sets: Ray refuses to merge the two."""
    job = json.loads(os.environ.get(JOB_CONFIG_VARIABLE) or "{}").get("runtime_env") or {}
    return {name: value for name, value in variables.items() if name not in job.get("env_vars", {})}


def check_cluster(args: SimpleNamespace, say: Callable[[str], None], patience: float = RETURN_SECONDS) -> None:
    """Raise where Ray would wait for devices for ever. Where a node has died, it or another may come for a while.

    Raises:
        ClusterTooSmall: the cluster has too few devices.
        ProcessDied: a node died, and none has come in `patience` seconds.
    """
    import ray

    needed, present = devices_needed(args), devices(ray.nodes())
    if present < needed and any(node["DeathReason"] == DIED_UNEXPECTEDLY for node in ray.nodes()):
        state = f"a node of the cluster died; {present} devices are left, and this run needs {needed}"
        say(f"{state}; waiting up to {patience:g} s for it, or another")
        end = time.monotonic() + patience
        while (present := devices(ray.nodes())) < needed:
            if time.monotonic() > end:
                raise ProcessDied(f"{state}; none has come in {patience:g} s")
            time.sleep(POLL_SECONDS)
    if present < needed:
        raise ClusterTooSmall(
            f"the Ray cluster has {present} devices and this run needs {needed} (--actor.num_nodes "
            f"{args.actor.num_nodes} x --actor.num_gpus_per_node {args.actor.num_gpus_per_node}, --vllm.num_engines "
            f"{args.vllm.num_engines}, --train.colocate_all {str(args.train.colocate_all).lower()}). Lower these, or "
            f"start Ray with --num-gpus {needed} (virtual devices on a CPU machine)"
            + (f", and join it with {CLUSTER_VARIABLE}=auto." if CLUSTER_VARIABLE not in os.environ else ".")
        )


def install_classes(args: SimpleNamespace, backend: Backend) -> None:
    """Set the classes that the host's `train` looks up as globals, in this process alone."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from openrlhf_ktae.faults.in_engine import RetryingRollouts
    from openrlhf_ktae.faults.models import HOST_CLASSES, restartable

    for (module, attribute), actor_class in backend.host_classes().items():
        setattr(importlib.import_module(module), attribute, actor_class)
    engines: Any = importlib.import_module(ENGINE_MODULE)
    guarded = type("GuardedEngine", (RetryingRollouts, undecorated(engines.RolloutRayActor)), {})
    engines.RolloutRayActor = ray.remote(max_restarts=args.faults.config["engine_restarts"])(guarded)
    host_cli: Any = importlib.import_module(HOST_CLI)
    for name in HOST_CLASSES:
        plain = undecorated(getattr(host_cli, name))
        setattr(host_cli, name, restartable(plain, args.faults.config["model_restarts"]))
    # The trainer writes the run record; on this node the driver can read it and print a line a step.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    if args.train.async_enable:
        from openrlhf.trainer import ppo_trainer_async

        from openrlhf_ktae.trainer.ppo_trainer_async import KTAEPPOTrainerAsync

        ppo_trainer_async.PPOTrainerAsync = ray.remote(KTAEPPOTrainerAsync).options(scheduling_strategy=here)
    else:
        from openrlhf.trainer import ppo_trainer

        from openrlhf_ktae.trainer.ppo_trainer import KTAEPPOTrainer

        ppo_trainer.PPOTrainer = ray.remote(KTAEPPOTrainer).options(scheduling_strategy=here)
