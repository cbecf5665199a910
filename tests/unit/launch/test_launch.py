"""The Ray cluster that a run starts."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from marks import SLOW

from openrlhf_ktae.backend.cluster import (
    EVENTS_VARIABLE,
    LOG_FILES_VARIABLE,
    TASKS_VARIABLE,
    check_address,
    cluster_of_its_own,
    start_own,
)
from openrlhf_ktae.base.errors import ProcessDied, Refusal
from openrlhf_ktae.cli import train_ppo_ray
from openrlhf_ktae.launch import launch
from openrlhf_ktae.launch.launch import quiet
from openrlhf_ktae.processes import marks as processes
from openrlhf_ktae.processes import stacks
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


def test_an_unreachable_cluster_is_refused_at_once():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # but does not listen
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(Refusal, match=f"RAY_ADDRESS={address}: no Ray cluster answers there .*unset"):
            check_address(address)
        taken.listen()
        check_address(address)
    for named in ("auto", "local", "ray://head:10001"):
        check_address(named)


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


def test_a_stop_whose_reason_cannot_be_written_is_still_a_stop(host, monkeypatch, capsys):
    """Ray wraps the trainer's error in a class of its own."""
    from ray.exceptions import RayTaskError

    def stops(*_):
        raise RayTaskError("fit", "", UnwrittenStop("all groups were filtered")).as_instanceof_cause()

    args = SimpleNamespace(run=SimpleNamespace(verbose=False))
    monkeypatch.setenv(stacks.VARIABLE, "")
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    replaced = "environment in_every_process mark start_ray has_dashboard cluster_of_its_own devices_needed"
    for name in replaced.split():
        monkeypatch.setattr(launch, name, lambda *_: {})
    monkeypatch.setattr(launch, "_train", stops)
    backend = SimpleNamespace(prepare_driver=lambda: None, preloads=None, name="cpu")
    monkeypatch.setattr(train_ppo_ray, "run", lambda words: launch.train(args, backend, lambda text: None))
    assert train_ppo_ray.main([]) == 3
    assert capsys.readouterr().err == "stopped early: all groups were filtered\n"


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
