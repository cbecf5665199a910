"""Runs on several nodes: check files and machines before a model loads, and end a run that has lost a node."""

from __future__ import annotations

import copy
import os
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial, reduce
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

from openrlhf_ktae.base.errors import Refusal
from openrlhf_ktae.base.text import short
from openrlhf_ktae.checkpoint.changes import is_content
from openrlhf_ktae.checks.backends import machine_problems
from openrlhf_ktae.data.names import entries

ANSWER_SECONDS = 180.0  # for a busy node to start a worker
SEEN_SECONDS = 5.0  # for a network file system to show a new file on another node
POLL_SECONDS = 1.0
GONE_SECONDS = 45.0  # for a lost node to be replaced; Ray takes up to 20 s more to notice that it is gone
LOST_SIGNAL = signal.SIGUSR2
OUTPUTS = ("ckpt.path", "ckpt.output_dir")
"""Folders that ranks write into, on whichever node they are placed."""
INPUTS = tuple(
    "actor.model_name_or_path critic.model_name_or_path reward.model_name_or_path train.agent_func_path "
    "verifier.config.reward_file run.resume_from".split()
)
"""Files and folders that ranks and engines read."""
TRAINER_OUTPUTS = ("run.dir", "logger.tensorboard_dir")
TRAINER_INPUTS = ("data.prompt_dataset", "eval.dataset", "train.replay", "algo.credit.file")
LISTS = ("data.prompt_dataset", "eval.dataset", "verifier.config.reward_file")
"""Options with comma-separated paths; a path may end in `@` and the name of a folder below it."""
NO_FLAG = {"run.resume_from": "resume", "verifier.config.reward_file": "reward.remote_url"}
TRAINER_CPUS = 3  # most CPUs that the processes that write the run's record reserve


class NodeDied(RuntimeError):
    """A node died during its check, or had died before Ray noticed."""


def with_absolute_places(args: SimpleNamespace) -> SimpleNamespace:
    """Return a copy of the options whose local paths are absolute.

    Ray's workers run in the folder where the node's `ray start` ran, not in this command's folder.
    """
    args = copy.deepcopy(args)
    for name in (*OUTPUTS, *TRAINER_OUTPUTS):
        if place := value_of(args, name):
            _set(args, name, os.path.abspath(place))
    for name in (*INPUTS, *TRAINER_INPUTS):
        if value := value_of(args, name):
            parts = entries(value) if name in LISTS else [(value, "")]
            _set(
                args,
                name,
                ",".join(f"{_absolute(path)}@{below}" if below else _absolute(path) for path, below in parts),
            )
    return args


def _absolute(path: str) -> str:
    return os.path.abspath(path) if path and os.path.exists(path) else path


def value_of(args: SimpleNamespace, name: str) -> str | None:
    """Return the value of an option that holds a path; None if it is not set."""
    node: Any = args
    for part in name.split("."):
        node = getattr(node, part, None)
    return node or None


def _set(args: SimpleNamespace, name: str, value: str) -> None:
    *groups, leaf = name.split(".")
    object.__setattr__(reduce(getattr, groups, args), leaf, value)  # some groups are frozen dataclasses


def check_nodes(args: SimpleNamespace, backend: str) -> None:
    """Have every other node that ranks, engines or the trainer may use check itself and the paths of the run.

    Raises:
        Refusal: there are problems; the message names each node and option. Nothing is loaded yet.
        NodeDied: a node died; call again once the cluster is complete.
    """
    import ray

    here = ray.get_runtime_context().get_node_id()
    alive = [node for node in ray.nodes() if node["Alive"]]
    (own,) = [node for node in alive if node["NodeID"] == here]
    away = own["Resources"].get("CPU", 0) < TRAINER_CPUS  # then the trainer may be on any other node
    others = [node for node in alive if node is not own and (away or node["Resources"].get("GPU"))]
    if not others:
        return
    outputs = places(args, (*OUTPUTS, *(TRAINER_OUTPUTS if away else ())))
    inputs = places(args, (*INPUTS, *(TRAINER_INPUTS if away else ())))
    if problems := list(_problems(outputs, inputs, others, partial(machine_problems, args, backend))):
        raise Refusal("\nerror: ".join(problems))


def places(args: SimpleNamespace, names: tuple[str, ...]) -> dict[str, str]:
    """Return option -> local path, without names on a hub; an option with several paths has an entry for each."""
    found = {}
    for name in names:
        value = value_of(args, name) or ""
        parts = [path for path, _ in entries(value)] if name in LISTS else [value]
        for part in parts:
            if part and (name in OUTPUTS + TRAINER_OUTPUTS or os.path.exists(part)):
                found[f"--{NO_FLAG.get(name, name)} {part}"] = part
    return found


def _problems(
    outputs: dict[str, str], inputs: dict[str, str], nodes: list[dict[str, Any]], lacks: Callable[[], list[str]]
) -> Iterator[str]:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    token = f".seen-by-every-node-{uuid.uuid4().hex}"
    folders = {flag: nearest(path) for flag, path in outputs.items()}
    contents = {flag: (path, content(path)) for flag, path in inputs.items()}
    for folder in set(folders.values()):
        (folder / token).touch()
    try:
        looking = {}
        for node in nodes:
            on_it: Any = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            task: Any = ray.remote(look)
            task = task.options(num_cpus=0, max_retries=0, scheduling_strategy=on_it)
            there = {flag: str(path) for flag, path in folders.items()}
            looked = task.remote(token, node["NodeID"], there, contents, lacks)
            looking[node["NodeID"]] = (f"{node['NodeManagerAddress']} ({node['NodeManagerHostname']})", looked)
        end = time.monotonic() + ANSWER_SECONDS
        for node_id, (name, ref) in looking.items():
            try:
                found = ray.get(ref, timeout=max(end - time.monotonic(), POLL_SECONDS))
            except Exception as error:  # an error that stops a worker there would stop a rank
                if not any(node["Alive"] for node in ray.nodes() if node["NodeID"] == node_id):
                    raise NodeDied(name) from None
                reason = short(error, 300)
                yield f"node {name} cannot run a task of this run: {type(error).__name__}: {reason}"
            else:
                yield from (f"{flag}: node {name} {what}" if flag else f"node {name}: {what}" for flag, what in found)
                wrong = {flag for flag, _ in found}
                for flag, folder in folders.items():  # only this detects a private layer over a shared folder
                    if flag not in wrong and not _comes_true((folder / f"{token}-{node_id}").exists):
                        yield f"{flag}: files that node {name} writes there are not visible here. {SHARE}"
    finally:
        for folder in set(folders.values()):
            for path in folder.glob(f"{token}*"):
                with suppress(OSError):
                    path.unlink()


def look(
    token: str,
    node: str,
    folders: dict[str, str],
    contents: dict[str, tuple[str, dict[str, int]]],
    lacks: Callable[[], list[str]] = list,
) -> list[tuple[str, str]]:
    """Return (option and value, problem) for each path that differs from the driver's; runs on another node.

    A problem of the machine itself has an empty option.

    Args:
        token: name of a file that the driver has written into each folder.
        node: this node's ID, suffix of the file that it adds to each folder.
        folders: option -> the folder, or the nearest existing one above it.
        contents: option -> path, and the files that the driver sees there.
        lacks: returns the problems of the machine that calls it.
    """
    problems = [("", what) for what in lacks()]
    for flag, folder in folders.items():
        path = Path(folder, token)
        if not _comes_true(path.exists):
            problems.append((flag, f"does not see this folder, where its ranks must write. {SHARE}"))
            continue
        try:
            Path(folder, f"{token}-{node}").touch()
        except OSError as error:
            problems.append((flag, f"cannot write there ({error.strerror}). {SHARE}"))
    for flag, (place, expected) in contents.items():
        if not os.path.exists(place):
            problems.append((flag, f"does not have it, and its ranks and engines read it. {COPY}"))
        elif (found := content(place)) != expected:
            other = min(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
            problems.append((flag, f"has other files there: {other or place}. {COPY}"))
    return problems


SHARE = "Give a folder on a file system that all nodes share, at the same path, or start this node without devices"
COPY = "Put it on a file system that all nodes share, or at the same path on each"


def nearest(path: str) -> Path:
    """Return the folder, or the nearest existing folder above it."""
    return next(one for one in (Path(path), *Path(path).parents) if one.is_dir())


def content(path: str) -> dict[str, int]:
    """Return path -> size in bytes of a file, or of those files of a folder that count as content (`is_content`)."""
    root = Path(path)
    if root.is_file():
        return {"": root.stat().st_size}
    found = {}
    for folder, _, names in os.walk(root, followlinks=True):
        for name in names:
            file = Path(folder, name)
            if is_content(file.relative_to(root)) and file.exists():
                found[str(file.relative_to(root))] = file.stat().st_size
    return found


def _comes_true(condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + SEEN_SECONDS
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.2)
    return True


def devices(nodes: list[dict[str, Any]]) -> int:
    """Return the number of devices of Ray's live nodes."""
    return sum(int(node["Resources"].get("GPU", 0)) for node in nodes if node["Alive"])


class NodeWatch:
    """Context manager that ends the run if a node is lost and the remaining devices are too few.

    Otherwise a lost engine would wait twenty minutes for a device. The main thread gets `LOST_SIGNAL`, whose handler
    raises KeyboardInterrupt: nothing else interrupts a wait in Ray.
    """

    def __init__(self, needed: int, patience: float = GONE_SECONDS) -> None:
        self.lost = ""
        """Why the watch ended the run, with the lost node; empty if it did not."""
        self._needed, self._patience = needed, patience
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="nodes", daemon=True)

    def __enter__(self) -> NodeWatch:
        import ray

        self._before = signal.signal(LOST_SIGNAL, self._end)
        self._known = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        if len(self._known) > 1:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._thread.ident is not None:
            self._thread.join()
        signal.signal(LOST_SIGNAL, self._before)

    def _watch(self) -> None:
        import ray

        since = None
        while not self._over.wait(POLL_SECONDS):
            try:
                nodes = ray.nodes()
            except Exception:  # Ray's server did not answer; if it is gone, Ray ends this process anyway
                continue
            gone = [node for node in nodes if node["NodeID"] in self._known and not node["Alive"]]
            left = devices(nodes)
            if not gone or left >= self._needed:
                since = None
                continue
            since = since or time.monotonic()
            if time.monotonic() - since >= self._patience:
                names = ", ".join(sorted({node["NodeManagerAddress"] for node in gone}))
                self.lost = f"node {names} is gone; {left} devices are left, and the run needs {self._needed}"
                os.kill(os.getpid(), LOST_SIGNAL)
                return

    def _end(self, number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt
