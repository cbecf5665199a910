"""Start Ray, replace the host's classes with this package's, and run the host's training."""

import os
import re
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace

from openrlhf_ktae.backend import Backend
from openrlhf_ktae.backend.base import devices_needed
from openrlhf_ktae.backend.cluster import (
    CLUSTER_VARIABLE,
    cluster_of_its_own,
    cluster_to_join,
    environment,
    has_dashboard,
    start_ray,
)
from openrlhf_ktae.base.errors import BadInput, BadOption, ProcessDied, Refusal
from openrlhf_ktae.base.host import HOST_CLI, undecorated
from openrlhf_ktae.checkpoint.model_files import SavedInPart
from openrlhf_ktae.launch.nodes import POLL_SECONDS, NodeDied, NodeWatch, check_nodes, devices, with_absolute_places
from openrlhf_ktae.launch.stack import Stack
from openrlhf_ktae.processes import forks, stacks
from openrlhf_ktae.processes.deaths import causes, died, failed_to_start, innermost, lost_peer_or_gpu
from openrlhf_ktae.processes.marks import mark
from openrlhf_ktae.processes.setup import in_every_process
from openrlhf_ktae.record.metrics import UnwrittenStop
from openrlhf_ktae.trainer.ray.classes import CPU_MODULES, Places, host_classes

ENGINE = ("openrlhf.trainer.ray.vllm_engine", "RolloutRayActor")
TRACEBACK_FILE = "error.txt"
SHOWN = 400  # characters of a reason
ENGINE_LOG = "root cause"  # vLLM's core reports startup errors only in its log
CORE_ERROR = re.compile(r"^.*\(EngineCore[^)]*\).*?\b([A-Z]\w*(?:Error|Exception): (?!Engine core).+)$", re.M)
COLOUR_CODES = re.compile(r"\x1b\[[0-9;]*m")  # of Ray's tracebacks
DATA = re.compile(r"prepare_datasets|blending_datasets|PromptDataset|/site-packages/datasets/")
DIED_UNEXPECTEDLY = 2  # Ray's NodeDeathInfo.Reason; a node removed on purpose has another
RETURN_SECONDS = 120.0  # for a node to come back or be replaced


class Failed(RuntimeError):
    """A process of the run raised a Python error; the message begins with it."""


def train(
    args: SimpleNamespace,
    backend: Backend,
    say: Callable[[str], None],
    classes: Callable[[str], Places] = host_classes,
    stack: Stack | None = None,
) -> None:
    """Train from start to end; returns when the model is saved.

    Args:
        args: the validated options.
        backend: the backend for this machine.
        say: called with a line for each stage of the startup.
        classes: returns, for a backend's name, the replacements of the host's classes.
        stack: processes of an earlier run, reused if they fit. With `keep` they remain for the next run.

    Raises:
        Refusal: there is no cluster to join, it has too few devices, or a node does not see files of the run.
        ProcessDied: Ray does not start, or a process of the run died and was not restarted.
        UnwrittenStop: training stopped early, and the reason could not be written (disk full).
        BadInput: the data cannot be loaded.
        Failed: another Python error.
        SavedInPart: the weights were saved, but other files of the model were not.
    """
    args = with_absolute_places(args)
    mark()
    os.environ[stacks.VARIABLE] = stacks.folder()
    stack = stack or Stack()
    variables = environment(args, backend)
    os.environ.update(variables)
    in_every_process()
    if not cluster_to_join():
        os.environ.update(cluster_of_its_own(args.run.verbose, has_dashboard(backend, args)))
    import ray  # reads the environment on import

    backend.prepare_driver()
    if not stack.serves(args, backend.name, variables):
        start_importing(args, backend)
        # No other thread may be importing: Ray runs Python code in forked children before exec. A child that is forked
        # while an import lock is held deadlocks, and this process with it.
        start_ray(args, backend, variables)
    node = ray._private.worker.global_worker.node
    logs = Path(node.get_logs_dir_path() if node else "")
    say(f"Ray is up with {devices_needed(args)} {'virtual ' if backend.name == 'cpu' else ''}devices")
    try:
        _train(args, backend, classes, say, stack)
    except ray.exceptions.RayError as error:
        for cause in causes(error):
            if type(cause) in (UnwrittenStop, SavedInPart, Refusal, BadOption, BadInput):
                raise cause from None
        reason = innermost(error)
        if ENGINE_LOG in reason:
            reason = f"{cause_in_logs(logs) or 'no reason in its log'}; {reason}"
        kind, _, text = reason.partition(": ")
        if died(error) and (lost_peer_or_gpu(kind, text) or not failed_to_start(error)):
            raise ProcessDied(f"a process of the run died: {reason[:SHOWN]}") from None
        where = Path(args.run.dir) / TRACEBACK_FILE
        with suppress(OSError):
            where.write_text(COLOUR_CODES.sub("", str(error)) + "\n", encoding="utf-8")
        if DATA.search(str(error)) and failed_to_start(error):
            raise BadInput(
                f"--data.prompt_dataset or --eval.dataset: cannot be loaded: {reason[:SHOWN]}; traceback in {where}"
            ) from None
        raise Failed(f"{reason[:SHOWN]}; traceback in {where}") from None


def start_importing(args: SimpleNamespace, backend: Backend) -> None:
    """Start the server that workers are forked from; it imports the libraries in the background.

    Only once, and only for a cluster that this command starts.
    """
    if not backend.preloads or cluster_to_join() or forks.VARIABLE in os.environ:
        return
    mark()
    variables = environment(args, backend) | cluster_of_its_own(args.run.verbose, has_dashboard(backend, args))
    forks.start([backend.preloads, *CPU_MODULES], variables)


def cause_in_logs(logs: Path) -> str:
    """Return the last error of vLLM's cores in Ray's worker logs; empty if there is none."""
    found: list[str] = []
    for path in sorted(logs.glob("worker-*"), key=lambda path: path.stat().st_mtime):
        with suppress(OSError):
            found += CORE_ERROR.findall(path.read_text(encoding="utf-8", errors="replace"))
    return found[-1] if found else ""


def _train(
    args: SimpleNamespace, backend: Backend, classes: Callable[[str], Places], say: Callable[[str], None], stack: Stack
) -> None:
    watch, complete = None, False
    try:
        _check(args, backend, say)
        say("loading the model into trainer and engines")
        with NodeWatch(devices_needed(args)) as watch:
            stack.train(args, partial(actor_classes, args, partial(classes, backend.name)))
        complete = True
    except KeyboardInterrupt:
        if watch is None or not watch.lost:
            raise
        raise ProcessDied(watch.lost) from None
    finally:
        if not (complete and stack.keep):
            stack.end()


def _check(args: SimpleNamespace, backend: Backend, say: Callable[[str], None]) -> None:
    """Check the cluster and its nodes. Repeat if a node is found dead: after a fault Ray may still count it."""
    while True:
        check_cluster(args, say)
        with suppress(NodeDied):
            return check_nodes(args, backend.name)


def check_cluster(args: SimpleNamespace, say: Callable[[str], None], patience: float = RETURN_SECONDS) -> None:
    """Raise if Ray would wait forever for devices. If a node died, first wait for its return or a replacement.

    Raises:
        Refusal: the cluster has too few devices.
        ProcessDied: a node died, and was not replaced within `patience` seconds.
    """
    import ray

    needed, present = devices_needed(args), devices(ray.nodes())
    if present < needed and any(node["DeathReason"] == DIED_UNEXPECTEDLY for node in ray.nodes()):
        state = f"a node of the cluster died; {present} devices are left, and this run needs {needed}"
        say(f"{state}; waiting up to {patience:g} s for it or a replacement")
        end = time.monotonic() + patience
        while (present := devices(ray.nodes())) < needed:
            if time.monotonic() > end:
                raise ProcessDied(f"{state}; none joined within {patience:g} s")
            time.sleep(POLL_SECONDS)
    if present < needed:
        raise Refusal(
            f"the Ray cluster has {present} devices and this run needs {needed} (--actor.num_nodes "
            f"{args.actor.num_nodes} x --actor.num_gpus_per_node {args.actor.num_gpus_per_node}, --vllm.num_engines "
            f"{args.vllm.num_engines}, --train.colocate_all {str(args.train.colocate_all).lower()}). Lower these, or "
            f"start Ray with --num-gpus {needed} (virtual devices on a CPU machine)"
            + (f", and join it with {CLUSTER_VARIABLE}=auto." if not cluster_to_join() else ".")
        )


def actor_classes(args: SimpleNamespace, own: Callable[[], Places]) -> Places:
    """Return replacements of the classes that the host's `train` looks up: restartable ones of `own`, and a trainer."""
    import ray
    from openrlhf.trainer.ray import launcher
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from openrlhf_ktae.trainer.ray.restarting_models import HOST_CLASSES, restartable
    from openrlhf_ktae.trainer.ray.retrying_rollouts import RetryingRollouts

    classes = own()
    engine = type("GuardedEngine", (RetryingRollouts, undecorated(classes[ENGINE])), {})
    places = {**classes, ENGINE: ray.remote(max_restarts=args.faults.config.engine_restarts)(engine)}
    for name in HOST_CLASSES:
        plain = undecorated(getattr(launcher, name))
        places[HOST_CLI, name] = restartable(plain, args.faults.config.model_restarts)
    # The trainer writes the run record. On this node, the driver can read it and print a line per step.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    if args.train.async_enable:
        from openrlhf_ktae.trainer.ppo_trainer_async import KTAEPPOTrainerAsync

        trainer = ray.remote(KTAEPPOTrainerAsync).options(scheduling_strategy=here)
        return {**places, ("openrlhf.trainer.ppo_trainer_async", "PPOTrainerAsync"): trainer}
    from openrlhf_ktae.trainer.ppo_trainer import KTAEPPOTrainer

    trainer = ray.remote(KTAEPPOTrainer).options(scheduling_strategy=here)
    return {**places, ("openrlhf.trainer.ppo_trainer", "PPOTrainer"): trainer}
