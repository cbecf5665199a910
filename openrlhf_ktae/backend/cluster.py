"""The Ray cluster of a run, started here or joined, and the environment of its processes."""

import json
import logging
import os
import secrets
import signal
import socket
from collections.abc import Callable
from contextlib import nullcontext, suppress
from functools import cache
from types import SimpleNamespace
from typing import Any

from openrlhf_ktae.backend.base import Backend
from openrlhf_ktae.backend.cpu_patches import forked_workers, without_services
from openrlhf_ktae.base.errors import ProcessDied, Refusal
from openrlhf_ktae.base.faults_config import RETRIES_VARIABLE, SERVER_VARIABLE
from openrlhf_ktae.base.text import short
from openrlhf_ktae.processes import marks, remote_code, stacks
from openrlhf_ktae.processes.marks import mark, swept
from openrlhf_ktae.processes.setup import BACKEND_VARIABLE, WORKER_HOOK

# The host sets the first three for its workers, but only if it starts Ray itself; here Ray is already running.
HOST_ENVIRONMENT = {
    "TOKENIZERS_PARALLELISM": "true",
    "NCCL_DEBUG": "WARN",
    "RAY_ENABLE_ZERO_COPY_TORCH_TENSORS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # Ray warns until this is set
    # An engine's answer to a prompt above this size goes through the object store, which costs the trainer 0.5 ms more
    # than an answer inside the reply. Ray's default of 100 KB is 16 rollouts of 800 tokens.
    "RAY_max_direct_call_object_size": str(2**20),
}
JOB_CONFIG_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
CLUSTER_VARIABLE = "RAY_ADDRESS"
TASKS_VARIABLE = "RAY_task_events_max_num_task_in_gcs"
TASKS_REMEMBERED = 1000  # for the dashboard; about 20 steps, 3 MB
EVENTS_VARIABLE = "RAY_task_events_report_interval_ms"
WORKERS_VARIABLE = "RAY_num_workers_soft_limit"
PRESTART_VARIABLE = "RAY_prestart_worker_first_driver"
LOG_FILES_VARIABLE = "RAY_LOG_MONITOR_MAX_OPEN_FILES"
OWN_CLUSTER = f"Unset {CLUSTER_VARIABLE}: the command then starts its own"
ADDRESS_SECONDS = 3  # for a cluster to accept a connection, and to answer
# A gRPC connection (Ray's) begins with a preface and, from both sides, a frame whose fourth byte is 4 (RFC 9113).
SETTINGS = b"\4"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0" + SETTINGS + b"\0\0\0\0\0"


def environment(args: SimpleNamespace, backend: Backend) -> dict[str, str]:
    """Return the variables of every process of the run; values already set in this process override defaults."""
    defaults = {**HOST_ENVIRONMENT, **backend.environment(args)}
    chosen = {name: os.environ.get(name, value) for name, value in defaults.items()}
    if args.verifier.enable:
        chosen |= args.verifier.config.to_env()
    hook = backend.worker_setup_hook
    faults = args.faults.config
    chosen[RETRIES_VARIABLE] = str(faults.rollout_retries)
    chosen[SERVER_VARIABLE] = f"{faults.reward_timeout_s} {faults.reward_tries}"
    chosen |= {name: os.environ[name] for name in (marks.VARIABLE, stacks.VARIABLE) if name in os.environ}
    return chosen | remote_code.environment(args.model.trust_remote_code) | ({BACKEND_VARIABLE: hook} if hook else {})


def has_dashboard(backend: Backend, args: SimpleNamespace) -> bool:
    """Whether a cluster that this command starts has a dashboard."""
    return bool(backend.ray_init_options(args).get("include_dashboard", True))


def cluster_of_its_own(verbose: bool, dashboard: bool) -> dict[str, str]:
    """Return variables that lock a cluster started by this command, and keep it small.

    Ports require a token: Ray binds them to all interfaces, whatever address is configured, and access means code
    execution. The GCS server remembers the latest 1,000 tasks, not 100,000, and still grows by 140 bytes a task.
    Without a dashboard no task events are reported. Idle workers end after a second; Ray would keep up to one per CPU,
    plus one after some deaths. No workers are started in advance: they would lack the run's environment, and Ray would
    wait for them. The log monitor would keep the files of up to 100 processes open, including dead ones. Unless the run
    is `verbose` its output is not read, so one file is enough.
    """
    small = {TASKS_VARIABLE: str(TASKS_REMEMBERED), WORKERS_VARIABLE: "0", PRESTART_VARIABLE: "0"}
    small |= {} if verbose else {LOG_FILES_VARIABLE: "1"}
    small |= {} if dashboard else {EVENTS_VARIABLE: "0"}
    chosen = {name: os.environ.get(name, value) for name, value in small.items()}
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token(), **chosen}


@cache
def token() -> str:
    """Return the token of the clusters that this process starts: Ray reads it once in each process."""
    return secrets.token_hex(32)


def start_ray(args: SimpleNamespace, backend: Backend, variables: dict[str, str]) -> None:
    """Join the cluster at RAY_ADDRESS (as a submitted job does), or start one with the backend's options."""
    import ray

    runtime_env: dict[str, Any] = {
        "env_vars": without_job_variables(variables),
        "worker_process_setup_hook": WORKER_HOOK,
    }
    settings = {"runtime_env": runtime_env, "log_to_driver": args.run.verbose, "logging_level": logging.ERROR}
    on_eviction = signal.getsignal(signal.SIGTERM)
    if address := cluster_to_join():
        check_address(address)
        try:
            ray.init(**settings)
        except Exception as error:  # of several types, for example for another version of Ray or a wrong token
            reason = short(error, 300)
            raise Refusal(f"{CLUSTER_VARIABLE}={address}: cannot join it ({reason}). {OWN_CLUSTER}") from None
    else:
        services = nullcontext() if has_dashboard(backend, args) else without_services(args.run.verbose)
        with forked_workers(), services:
            start_own(lambda: ray.init(**settings, **backend.ray_init_options(args)))
    signal.signal(signal.SIGTERM, on_eviction)  # Ray's own handler prints a stack and aborts


def cluster_to_join() -> str:
    """Return the address in RAY_ADDRESS; empty if this command starts its own cluster."""
    address = os.environ.get(CLUSTER_VARIABLE, "").strip()
    return "" if address == "local" else address


def check_address(address: str) -> None:
    """Raise `Refusal` if no answer at HOST:PORT can be Ray's; otherwise Ray would retry for minutes and abort."""
    if address in ("", "auto", "local") or address.startswith("ray://"):
        return  # no cluster to join, or Ray finds it
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "/" in host:
        raise Refusal(
            f"{CLUSTER_VARIABLE}={address}: not the address of a Ray cluster, HOST:PORT such as 10.0.0.1:6379 (http:// "
            f"addresses are for `ray job submit --address`). {OWN_CLUSTER}"
        )
    try:
        with socket.create_connection((host.strip("[]"), int(port)), ADDRESS_SECONDS) as connection:
            connection.sendall(PREFACE)
            answer = b""
            with suppress(TimeoutError):
                answer = connection.recv(5)
    except (OSError, OverflowError) as error:
        raise Refusal(
            f"{CLUSTER_VARIABLE}={address}: no Ray cluster answers there ({error}). Start one with `ray start --head`, "
            f"or {OWN_CLUSTER[0].lower()}{OWN_CLUSTER[1:]}"
        ) from None
    if answer and answer[3:4] != SETTINGS and os.environ.get("RAY_USE_TLS", "0") == "0":
        raise Refusal(
            f"{CLUSTER_VARIABLE}={address}: something other than a Ray cluster answers there, such as its dashboard. "
            f"Give the port of `ray start --head`, 6379 unless changed. {OWN_CLUSTER}"
        )


def start_own(start: Callable[[], Any]) -> None:
    """Start Ray, and retry once: Ray gives its processes 30 s to start, which a busy machine can exceed.

    Raises ProcessDied if it fails twice.
    """
    import ray

    for last in (False, True):
        try:
            start()
            return
        except Exception as error:  # Ray raises a bare Exception
            with swept(mark()):
                ray.shutdown()
            if last:
                reason = short(error, 200)
                raise ProcessDied(
                    f"Ray failed to start twice ({reason}); is the machine busy, or short of memory?"
                ) from None


def without_job_variables(variables: dict[str, str]) -> dict[str, str]:
    """Drop variables that a submitted job's own runtime environment sets: Ray refuses to merge the two."""
    job = json.loads(os.environ.get(JOB_CONFIG_VARIABLE) or "{}").get("runtime_env") or {}
    return {name: value for name, value in variables.items() if name not in job.get("env_vars", {})}
