"""The Ray cluster that a run starts."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
from marks import SLOW

from openrlhf_ktae.backend import cluster
from openrlhf_ktae.backend.cluster import (
    EVENTS_VARIABLE,
    LOG_FILES_VARIABLE,
    TASKS_VARIABLE,
    check_address,
    cluster_of_its_own,
    start_own,
)
from openrlhf_ktae.base.errors import BadOption, ProcessDied, Refusal
from openrlhf_ktae.cli import train_ppo_ray
from openrlhf_ktae.launch import launch
from openrlhf_ktae.launch.stack import HostRun, Stack, quiet
from openrlhf_ktae.processes import forks, stacks
from openrlhf_ktae.processes import marks as processes
from openrlhf_ktae.record.metrics import UnwrittenStop

pytestmark = SLOW

DEATHS = """
import json, time
import psutil, ray

ray.init(address="local", num_cpus=3, include_dashboard=False, object_store_memory=80 * 2**20, log_to_driver=False)

@ray.remote(num_cpus=0)
class Talker:
    def talk(self):
        print("a line", flush=True)

    def listen(self):
        pass

@ray.remote
def short_work():
    time.sleep(0.5)

def descriptors():
    monitors = [p for p in psutil.Process().children() if any("log_monitor.py" in word for word in p.cmdline())]
    time.sleep(3)  # it polls its files ten times a second, one after another
    return sum(monitor.num_fds() for monitor in monitors)

ray.get([short_work.remote() for _ in range(2)])
counts = []
for deaths in (1, 3):
    for _ in range(deaths):
        actor = Talker.remote()
        ray.get(actor.talk.remote())
        ray.kill(actor)
    counts.append(descriptors())
idle = [p for p in psutil.Process().children(recursive=True) if any("ray::IDLE" in word for word in p.cmdline())]


(server,) = [p for p in psutil.Process().children() if "gcs_server" in p.cmdline()[0]]
actor = Talker.remote()

def memory_after(calls):
    for _ in range(calls // 50):
        ray.get([actor.listen.remote() for _ in range(50)])
    time.sleep(1.5)  # it is updated once a second
    return server.memory_full_info().uss

grown = -memory_after(500) + memory_after(5000)
print(json.dumps([*counts, len(idle), grown]))
"""


SMALL = """
import os, psutil
from openrlhf_ktae.backend import cluster
os.environ.update(cluster.cluster_of_its_own(verbose=False, dashboard=False))
import ray
with cluster.without_services(verbose=False):
    ray.init(address="local", num_cpus=4, include_dashboard=False)
commands = [" ".join(process.cmdline()) for process in psutil.Process().children(recursive=True)]
extra = ("IDLE", "default_worker.py ", "autoscaler/_private/monitor", "dashboard/dashboard.py", "log_monitor.py")
print([name for name in extra for command in commands if name in command and "raylet_socket_name" not in command])
ray.shutdown()
"""


@pytest.fixture(scope="module")
def after_deaths():
    environment = {**os.environ, **cluster_of_its_own(verbose=False, dashboard=False)}
    done = subprocess.run([sys.executable, "-c", DEATHS], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_the_log_monitor_drops_files_of_dead_processes(after_deaths):
    before, after, *_ = after_deaths
    assert before > 0
    assert after <= before + 1  # it still reads one


def test_idle_workers_are_not_kept(after_deaths):
    assert after_deaths[2] == 0


def test_no_unneeded_workers_or_services_start(tmp_path):
    """Plain Ray starts a worker per core and three services, and waits for them."""
    done = subprocess.run([sys.executable, "-c", SMALL], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_server_does_not_grow_with_the_number_of_tasks(after_deaths):
    """Ray's server grew by about 140 bytes per task, 6 % of its memory in 24 minutes of steps."""
    assert after_deaths[3] < 2 * 2**20


@pytest.mark.parametrize("verbose", [False, True])
def test_the_users_settings_win_and_a_verbose_run_reads_all_logs(monkeypatch, verbose):
    monkeypatch.setenv(TASKS_VARIABLE, "7")
    monkeypatch.delenv(LOG_FILES_VARIABLE, raising=False)
    chosen = cluster_of_its_own(verbose, dashboard=True)
    assert chosen[TASKS_VARIABLE] == "7"
    assert (LOG_FILES_VARIABLE in chosen) is not verbose
    assert EVENTS_VARIABLE not in chosen, "a dashboard needs task events"


def test_an_unreachable_cluster_is_refused_at_once(monkeypatch):
    monkeypatch.setattr(cluster, "ADDRESS_SECONDS", 0.5)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # but does not listen
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(Refusal, match=f"RAY_ADDRESS={address}: no Ray cluster answers there .*unset"):
            check_address(address)
        taken.listen()
        check_address(address)
    for named in ("auto", "local", "ray://head:10001"):
        check_address(named)


@pytest.mark.parametrize(
    "address", ["head", "http://127.0.0.1:8265", "127.0.0.1:", ":6379", "10.0.0.1:6379,10.0.0.2:1"]
)
def test_what_is_no_address_of_a_cluster_is_refused_before_the_run_folder(address, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("RAY_ADDRESS", address)
    words = ["--config", "configs/grpo_ktae/quickstart.yaml", "--run.dir", str(tmp_path / "run")]
    assert train_ppo_ray.main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: RAY_ADDRESS={address}: ")
    assert "HOST:PORT" in line or "no Ray cluster answers there" in line
    assert line.endswith("nset RAY_ADDRESS: the command then starts its own")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("answer", "refused"),
    [(b"HTTP/1.0 400 Bad Request\r\n", True), (b"<!DOCTYPE", True), (b"\0\0\x12\4\0\0\0\0\0", False)],
    ids=["dashboard", "web server", "gRPC"],
)
def test_a_server_that_is_not_ray_is_refused_at_once(answer, refused):
    """Ray would wait for it for minutes."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            connection, _ = server.accept()
            with connection:
                connection.recv(100)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(Refusal, match=r"such as its dashboard.*6379") if refused else nullcontext():
            check_address(address)
        thread.join()


def test_an_ipv6_address_is_understood():
    with socket.socket(socket.AF_INET6) as taken:
        taken.bind(("::1", 0))
        with pytest.raises(Refusal, match="Connection refused"):
            check_address(f"[::1]:{taken.getsockname()[1]}")


@pytest.mark.parametrize("value", ["", " ", "local"])
def test_an_empty_address_means_an_own_cluster(value, monkeypatch):
    """Ray would look for any cluster of this machine."""
    import ray

    monkeypatch.setenv("RAY_ADDRESS", value)
    assert cluster.cluster_to_join() == ""
    asked = []
    monkeypatch.setattr(ray, "init", lambda **options: asked.append(options))
    backend = SimpleNamespace(ray_init_options=lambda _: {"address": "local"})
    cluster.start_ray(SimpleNamespace(run=SimpleNamespace(verbose=False)), backend, {})
    assert asked[0]["address"] == "local"


@pytest.mark.parametrize("error", [ConnectionError("Could not find any running Ray"), RuntimeError("Version mismatch")])
def test_a_cluster_that_cannot_be_joined_is_refused(error, monkeypatch):
    import ray

    def fails(**_):
        raise error

    monkeypatch.setenv("RAY_ADDRESS", "auto")
    monkeypatch.setattr(ray, "init", fails)
    with pytest.raises(Refusal, match=rf"RAY_ADDRESS=auto: cannot join it \({error}\)\. Unset RAY_ADDRESS"):
        cluster.start_ray(SimpleNamespace(run=SimpleNamespace(verbose=False)), None, {})


OWN = """
import os
from types import SimpleNamespace
from openrlhf_ktae.backend.cuda import CudaBackend
from openrlhf_ktae.backend import cluster

args = SimpleNamespace(run=SimpleNamespace(dashboard_host="127.0.0.1", verbose=False))
os.environ.update(cluster.cluster_of_its_own(verbose=False, dashboard=True))
cluster.start_ray(args, CudaBackend(), {})
import ray
print(len(ray.nodes()), os.environ["RAY_AUTH_MODE"])
"""


def test_a_gpu_run_starts_its_own_cluster_even_if_ray_knows_another():
    """By default Ray would join the cluster named in its file, whose token differs from this run's."""
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp") as short:  # socket paths have at most 107 bytes
        folder = Path(short) / "ray"
        folder.mkdir()
        done = _own_beside(folder)
    assert done.stdout.split() == ["1", "token"], done.stderr


def _own_beside(folder):
    (folder / "ray_current_cluster").write_text("127.0.0.1:1")
    variables = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return subprocess.run(
        [sys.executable, "-c", OWN],
        env={**variables, "RAY_TMPDIR": str(folder.parent)},
        capture_output=True,
        text=True,
        timeout=150,
    )


def test_a_full_disk_under_the_log_does_not_end_the_run(files_up_to, tmp_path):
    args = SimpleNamespace(run=SimpleNamespace(dir=tmp_path, verbose=False))
    with quiet(args):
        print("one")
        with files_up_to(4):
            for _ in range(3):
                print("two", flush=True)
        print("three")
    assert (tmp_path / "driver.log").read_text() == "one\nthree\n"


@pytest.fixture
def ending(host, monkeypatch, tmp_path):
    """Return a function that runs the command with a training that raises an error, and returns the exit code."""
    args = SimpleNamespace(run=SimpleNamespace(verbose=False, dir=tmp_path))
    monkeypatch.setenv(stacks.VARIABLE, "")
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    replaced = "environment in_every_process mark start_ray has_dashboard cluster_of_its_own devices_needed"
    for name in replaced.split():
        monkeypatch.setattr(launch, name, lambda *_: {})
    backend = SimpleNamespace(prepare_driver=lambda: None, preloads=None, name="cpu")
    monkeypatch.setattr(train_ppo_ray, "run", lambda words: launch.train(args, backend, lambda text: None))

    def run(error):
        def fails(*_):
            raise error

        monkeypatch.setattr(launch, "_train", fails)
        return train_ppo_ray.main([])

    return run


def test_a_stop_whose_reason_cannot_be_written_is_still_a_stop(ending, capsys):
    """Ray wraps the trainer's error in a class of its own."""
    from ray.exceptions import RayTaskError

    assert ending(RayTaskError("fit", "", UnwrittenStop("all groups were filtered")).as_instanceof_cause()) == 3
    assert capsys.readouterr().err == "stopped early: all groups were filtered\n"


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        ("torch.AcceleratorError: CUDA error: unspecified launch failure", 4),
        ("torch.distributed.DistNetworkError: The client socket has timed out after 600000ms", 4),
        ("RuntimeError: NCCL error: unhandled cuda error (run with NCCL_DEBUG=INFO for details)", 4),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB", 1),
        ("ValueError: NCCL error: unhandled cuda error", 1),
        ("RuntimeError: Engine core initialization failed. See root cause above.", 4),
    ],
)
def test_a_constructor_that_loses_a_gpu_or_peer_counts_as_a_death(reason, code, ending, capsys, monkeypatch):
    """Ray keeps only the text of an error in a constructor, and vLLM refers to its log for that of its core."""
    from ray.exceptions import ActorDiedError, RayTaskError

    monkeypatch.setattr(launch, "cause_in_logs", lambda _: "AcceleratorError: CUDA error: unspecified launch failure")
    task = RayTaskError("__init__", f"ray::Engine.__init__() (pid=7)\n{reason}", ValueError())
    assert ending(ActorDiedError(task)) == code
    assert reason.split(".")[-1] in capsys.readouterr().err


class Trainer:
    """An actor that the host's `train` starts, which fails in the given way."""

    def __init__(self, how):
        self.how = how
        if how == "broken":
            raise ValueError("not this one")
        if how == "bad data":
            self.prepare_datasets()

    def prepare_datasets(self):
        raise OSError("no rows")

    def fit(self):
        if self.how == "killed":
            os._exit(1)
        raise UnwrittenStop("all groups were filtered")


def fails_inside(how):
    """Stand-in for the host's `train` in its own process."""
    import ray

    if how == "refused":
        raise BadOption("--some.option: not here")
    ray.get(ray.remote(num_cpus=0)(Trainer).remote(how).fit.remote())


@pytest.mark.parametrize(
    ("how", "code", "text"),
    [
        ("stopped", 3, "stopped early: all groups were filtered\n"),
        ("refused", 2, "error: --some.option: not here\n"),
        ("broken", 1, "error: ValueError: not this one; traceback in "),
        ("bad data", 2, "error: --data.prompt_dataset or --eval.dataset: cannot be loaded: OSError: no rows; "),
        ("killed", 4, "error: a process of the run died: the process of Trainer ended "),
    ],
)
def test_errors_reach_the_driver_through_the_process_of_the_hosts_train(how, code, text, ray_here, ending, capsys):
    this = sys.modules[__name__]
    ray_here.cloudpickle.register_pickle_by_value(this)  # workers cannot import it
    with pytest.raises(ray_here.exceptions.RayError) as raised:
        ray_here.get(ray_here.remote(num_cpus=0)(fails_inside).options(max_retries=0).remote(how))
    ray_here.cloudpickle.unregister_pickle_by_value(this)
    assert ending(raised.value) == code
    assert capsys.readouterr().err.startswith(text)


def test_a_kept_stack_without_forks_keeps_its_actors(monkeypatch):
    """The host would wait forever for devices that the first run's placement group holds."""
    used = []
    monkeypatch.delenv(forks.VARIABLE, raising=False)
    monkeypatch.setattr(HostRun, "train", lambda self, *_: used.append(self))
    stack = Stack(keep=True)
    for _ in range(2):
        stack.train(SimpleNamespace(), dict)
    assert used[0] is used[1]


@pytest.mark.parametrize("failures", [0, 1, 2])
def test_a_failed_ray_start_is_retried(failures, monkeypatch):
    monkeypatch.setenv(processes.VARIABLE, "a start that fails")
    calls = []

    def start():
        calls.append(1)
        if len(calls) <= failures:
            raise Exception("The current node timed out during startup.")

    if failures == 2:
        with pytest.raises(ProcessDied, match=r"failed to start twice .*timed out"):
            start_own(start)
    else:
        start_own(start)
    assert len(calls) == min(failures, 1) + 1
