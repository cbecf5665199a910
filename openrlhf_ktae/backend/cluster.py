"""The Ray cluster of a run, started here or joined, and the environment of its processes."""

from __future__ import annotations

import json
import logging
import os
import secrets
import signal
import socket
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from openrlhf_ktae.backend.base import Backend
from openrlhf_ktae.base.errors import ProcessDied
from openrlhf_ktae.base.faults_config import RETRIES_VARIABLE, SERVER_VARIABLE
from openrlhf_ktae.processes import marks, remote_code, stacks
from openrlhf_ktae.processes.marks import mark, swept
from openrlhf_ktae.processes.setup import BACKEND_VARIABLE, WORKER_HOOK

# The host passes these to its workers; when Ray is up already, it leaves that to whoever started it.
HOST_ENVIRONMENT = {
    "TOKENIZERS_PARALLELISM": "true",
    "NCCL_DEBUG": "WARN",
    "RAY_ENABLE_ZERO_COPY_TORCH_TENSORS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # Ray asks for this to be set and warns until it is
}
JOB_CONFIG_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
CLUSTER_VARIABLE = "RAY_ADDRESS"
TASKS_VARIABLE = "RAY_task_events_max_num_task_in_gcs"
TASKS_REMEMBERED = 1000  # for a dashboard; those of some 20 steps, in 3 MB
EVENTS_VARIABLE = "RAY_task_events_report_interval_ms"
WORKERS_VARIABLE = "RAY_num_workers_soft_limit"
LOG_FILES_VARIABLE = "RAY_LOG_MONITOR_MAX_OPEN_FILES"
ADDRESS_SECONDS = 3  # for a cluster to answer


class ClusterAway(ValueError):
    """No Ray cluster answers where one is said to be."""


def environment(args: SimpleNamespace, backend: Backend) -> dict[str, str]:
    """Return the variables of every process of the run; what is set in this process already wins."""
    defaults = {**HOST_ENVIRONMENT, **backend.environment(args)}
    chosen = {name: os.environ.get(name, value) for name, value in defaults.items()}
    if args.verifier.enable:
        chosen |= args.verifier.config.to_env()
    hook = backend.worker_setup_hook()
    faults = args.faults.config
    chosen[RETRIES_VARIABLE] = str(faults.rollout_retries)
    chosen[SERVER_VARIABLE] = f"{faults.reward_timeout_s} {faults.reward_tries}"
    chosen |= {name: os.environ[name] for name in (marks.VARIABLE, stacks.VARIABLE) if name in os.environ}
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
