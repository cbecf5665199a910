"""Forks of the fork server: environment, output, exit, and leftovers when they or the server end."""

from __future__ import annotations

import atexit
import importlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from openrlhf_ktae.processes import forks

FIRST = "openrlhf_ktae.backend.cpu_preload"


@pytest.fixture(scope="module")
def server(nothing_kept):
    """Start a server that has imported `colorsys` and has its own environment variable."""
    forks.start([FIRST, "colorsys"], {"OF_THE_SERVER": "1"})
    yield forks._server._forkserver_pid
    forks.stop()


def report(path):
    atexit.register(Path(path + ".exit").touch)
    print("to the output")
    Path(path + ".score").write_text(forks.OOM_SCORE.read_text())
    own = ("colorsys" in sys.modules, os.environ.get("OF_THE_CALLER"), os.environ.get("OF_THE_SERVER"))
    Path(path).write_text(repr((*own, os.getppid(), signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)))
    sys.stdout.flush()


def is_named(path):
    path, library = path.rsplit(" ", 1)
    importlib.import_module(library).setproctitle("ray::Actor")
    environment = Path("/proc/self/environ").read_text()
    Path(path).write_text(repr((" ".join(psutil.Process().cmdline()).strip(), "OF_THE_SERVER=1" in environment)))


def dies(path):
    os.kill(os.getpid(), signal.SIGKILL)


def sleeps(path):
    time.sleep(60)


def forked(target, path):
    process = forks.ForkedContext().Process(target=target, args=(str(path),))
    process.start()
    return process


def test_a_fork_has_the_servers_imports_and_its_callers_environment(server, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("OF_THE_CALLER", "2")
    assert "OF_THE_SERVER" not in os.environ
    process = forked(report, tmp_path / "seen")
    process.join(20)

    assert process.exitcode == 0
    assert (tmp_path / "seen").read_text() == repr((True, "2", None, server, True))
    assert (tmp_path / "seen.exit").exists(), "atexit handlers must run"
    assert "to the output" in capfd.readouterr().out


@pytest.mark.parametrize("library", ["setproctitle", "ray._raylet"])
def test_a_fork_has_its_own_title_and_is_found_by_its_environment(server, tmp_path, monkeypatch, library):
    monkeypatch.setenv("OF_THE_CALLER", "2")
    forked(is_named, f"{tmp_path / 'seen'} {library}").join(20)
    assert (tmp_path / "seen").read_text() == repr(("ray::Actor", True))


def test_a_fork_has_its_callers_oom_score(server, tmp_path):
    code = f"from pathlib import Path; from {__name__} import *; forks.OOM_SCORE.write_text('700')\n"
    code += f"forked(report, Path({str(tmp_path / 'seen')!r})).join(20)"
    variables = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    subprocess.run([sys.executable, "-c", code], env=variables, check=True)
    assert (tmp_path / "seen.score").read_text().strip() == "700"
    assert Path(f"/proc/{server}/oom_score_adj").read_text().strip() != "700"


def test_the_caller_sees_how_a_fork_ends(server, tmp_path):
    process = forked(dies, tmp_path / "seen")
    assert multiprocessing.connection.wait([process.sentinel], 20)
    assert process.exitcode == -signal.SIGKILL


def test_the_server_survives_signals_to_the_process_group(server):
    os.kill(server, signal.SIGTERM)
    time.sleep(0.2)
    assert psutil.Process(server).status() != psutil.STATUS_ZOMBIE


def test_only_forks_survive_the_server(tmp_path):
    before = {child.pid for child in psutil.Process().children()}
    forks.stop()
    forks.start([FIRST], {})
    process = forked(sleeps, tmp_path)
    forks.stop()

    assert forks.VARIABLE not in os.environ
    assert psutil.Process(process.pid).is_running()
    os.kill(process.pid, signal.SIGKILL)
    psutil.wait_procs([psutil.Process(process.pid)] if psutil.pid_exists(process.pid) else [], 5)
    process.join(5)
    left = [child for child in psutil.Process().children() if child.pid not in before]
    assert not [child for child in left if "resource_tracker" not in " ".join(child.cmdline())]


def test_a_process_starts_without_the_server_if_it_died(tmp_path, monkeypatch):
    monkeypatch.setenv(forks.VARIABLE, str(tmp_path / "no socket"))
    monkeypatch.setenv("OF_THE_CALLER", "2")
    process = forked(report, tmp_path / "seen")
    process.join(20)

    assert process.exitcode == 0
    assert (tmp_path / "seen").read_text() == repr((False, "2", None, os.getpid(), True))
    assert (tmp_path / "seen.exit").exists()


def test_without_a_server_workers_start_as_in_plain_ray(tmp_path):
    script = tmp_path / "worker.py"
    script.write_text("import os, sys; print(sys.argv[1:], os.environ['GIVEN'])")
    words = ['--serialized-runtime-env-context={"env_vars": {"GIVEN": "3"}}', "--language=PYTHON", str(script), "--a=1"]
    environment = {name: value for name, value in os.environ.items() if name != forks.VARIABLE}
    for broken in ({}, {forks.VARIABLE: str(tmp_path / "no socket"), forks.JOB_VARIABLE: forks.FIRST_JOB}):
        done = subprocess.run(
            [sys.executable, Path(forks.__file__).with_name("ray_worker.py"), *words],
            env=environment | broken,
            capture_output=True,
            text=True,
        )
        assert done.stdout.split("\n")[0] == "['--a=1'] 3", done.stderr


def test_its_first_module_does_nothing_in_other_processes():
    code = f"import signal, {FIRST}; print(len(signal.pthread_sigmask(signal.SIG_BLOCK, [])))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "0\n"
