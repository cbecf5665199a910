"""The scripts with real Ray clusters on this machine; srun, scontrol and ssh are stand-ins that run commands here."""

from __future__ import annotations

import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from marks import RARELY, SLOW

pytestmark = SLOW

ROOT = Path(__file__).resolve().parents[3]
SCRIPTS = ROOT / "examples/scripts"
QUICKSTART = "configs/grpo_ktae/quickstart.yaml"
# Skips options and their values; the command follows.
SRUN = """#!/usr/bin/env bash
printf '%s\\n' "$*" >>"$STANDINS/srun.log"
while [[ "$1" == -* ]]; do
  [[ "$1" == --nodelist ]] && node="$2"
  [[ "$1" == *=* ]] || shift
  shift
done
case "$node:$ABSENT" in n2:dies) echo "srun: error: n2: launch failed"; exit 1 ;; n2:waits) exec sleep 600 ;; esac
exec "$@"
"""
# Like sshd: a new session, an empty environment, and standard input that closes with the connection.
SSH = """#!/usr/bin/env bash
while [[ "$1" == -* ]]; do shift 2; done
shift
cat | exec setsid env --ignore-environment HOME="$HOME" PATH=/usr/bin:/bin MARK="$MARK" "$@"
"""


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [str(each.getsockname()[1]) for each in sockets]
    for each in sockets:
        each.close()
    return ports


@pytest.fixture
def variables(tmp_path):
    """Environment with the stand-ins first on the PATH, free ports, and a mark on this test's processes."""
    for name, text in (("srun", SRUN), ("ssh", SSH), ("scontrol", "#!/bin/sh\nprintf 'n1\\nn2\\n'\n")):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    names = ("RAY_PORT", "DASHBOARD_PORT", "AGENT_PORT", "WORKER_AGENT_PORT")
    kept = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "DRY_RUN")}
    return {
        **kept,
        **dict(zip(names, free_ports(len(names)), strict=True)),
        "PATH": f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "STANDINS": str(tmp_path),
        "MARK": f"mark-{tmp_path}",
        "LOGS": str(tmp_path / "logs"),
        "GPUS_PER_NODE": "1",
        "GRACE_SECONDS": "60",
        "JOIN_SECONDS": "90",
        "SLURM_JOB_NODELIST": "n[1-2]",
        "SLURM_SUBMIT_DIR": str(ROOT),
        "SLURM_CPUS_PER_TASK": "4",
        "NODES": f"{socket.gethostname()} other",
    }


def left(variables):
    found = []
    for process in psutil.process_iter(["pid", "cmdline", "status"]):
        try:
            if process.environ().get("MARK") == variables["MARK"] and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def nothing_is_left(variables, seconds=20):
    until = time.monotonic() + seconds
    while (found := left(variables)) and time.monotonic() < until:
        time.sleep(0.5)
    commands = [process.info["cmdline"][:4] for process in found]
    for process in found:
        process.kill()
    assert not commands


@contextmanager
def script(name, variables, *words):
    """Run the script in the background; its process is killed and nothing may be left."""
    process = subprocess.Popen(
        [str(SCRIPTS / name), *words],
        cwd=ROOT,
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.kill()
        nothing_is_left(variables)


@RARELY
def test_a_failing_jobs_exit_code_is_the_scripts(variables, tmp_path):
    """`ray job submit` turns every failure into 1; an unknown option must give 2."""
    with script("slurm.sh", variables, QUICKSTART, "--no.such.option", "1") as run:
        said, _ = run.communicate(timeout=240)
        assert run.returncode == 2, said
        assert "--no.such.option" in said
        steps = (tmp_path / "srun.log").read_text().splitlines()
        assert len(steps) == 2
        assert all("--cpus-per-task 4 --mem 0" in step for step in steps)
        nothing_is_left(variables)


@RARELY
@pytest.mark.parametrize(
    ("absent", "seconds", "reason"), [("dies", "90", "has ended"), ("waits", "30", "30 s have passed (JOIN_SECONDS)")]
)
def test_a_node_that_never_joins_ends_the_script(absent, seconds, reason, variables):
    variables |= {"ABSENT": absent, "JOIN_SECONDS": seconds}
    with script("slurm.sh", variables, QUICKSTART) as run:
        said, _ = run.communicate(timeout=240)
        assert run.returncode == 4, said
        assert "1 of 2 nodes have joined" in said
        assert reason in said
        nothing_is_left(variables)


@RARELY
def test_a_stop_while_waiting_for_nodes_ends_at_once(variables):
    variables["ABSENT"] = "waits"
    with script("slurm.sh", variables, QUICKSTART) as run:
        wait_until(lambda: (Path(variables["LOGS"]) / "n2.log").exists())
        run.send_signal(signal.SIGTERM)
        said, _ = run.communicate(timeout=60)
        assert run.returncode == 130, said
        nothing_is_left(variables)


@RARELY
def test_several_nodes_over_ssh_find_their_environment(variables):
    """Like a login, the ssh stand-in passes no variables; without the script's PATH it would not find ray."""
    variables["HF_TOKEN"] = "of $HOME 'with' quotes"
    with script("multi_node.sh", variables, QUICKSTART, "--no.such.option", "1") as run:
        wait_until(lambda: any("raylet" in process.info["cmdline"][0] for process in remote(variables)))
        assert {process.environ()["HF_TOKEN"] for process in remote(variables)} >= {variables["HF_TOKEN"]}
        said, _ = run.communicate(timeout=240)
        assert run.returncode == 2, said
        nothing_is_left(variables)


def remote(variables):
    """Return processes of the other node, which lack the variable LOGS."""
    found = (process for process in left(variables) if "LOGS" not in process.environ())
    return [process for process in found if "HF_TOKEN" in process.environ() and process.info["cmdline"]]


@RARELY
def test_two_jobs_on_one_machine_share_the_cluster_of_the_first(variables):
    with script("single_node.sh", variables, QUICKSTART, "--run.dir", f"{variables['STANDINS']}/run") as first:
        wait_until(lambda: any("submit" in (process.info["cmdline"] or []) for process in left(variables)))
        done = subprocess.run(
            [str(SCRIPTS / "single_node.sh"), QUICKSTART, "--no.such.option"],
            cwd=ROOT,
            env=variables,
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.returncode == 2, done.stderr
        assert "using the existing Ray cluster" in done.stderr
        assert first.poll() is None
        wait_until(lambda: (Path(variables["STANDINS"]) / "run/metrics.jsonl").exists(), 240)
        os.killpg(first.pid, signal.SIGINT)  # as a terminal's Ctrl-C does
        said, _ = first.communicate(timeout=120)
        assert first.returncode == 130, said
        assert "interrupted: Ray is stopped, saved checkpoints are complete" in said
        nothing_is_left(variables)


def wait_until(done, seconds=120):
    until = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < until
        time.sleep(0.5)


@pytest.fixture
def dashboard():
    """Serve canned dashboard answers by path; tests fill the dict."""
    answers, posted = {}, []
    answers["posted"] = posted

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            body = answers.get(self.path)
            if isinstance(body, list):  # in turn; the last one repeats
                body = body.pop(0) if len(body) > 1 else body[0]
            self.send_response(404 if body is None else 200)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def do_POST(self):
            posted.append(self.path)
            answers["body"] = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.do_GET()

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", answers
    server.shutdown()


def ask(url, *words):
    command = [sys.executable, str(SCRIPTS / "cluster.py"), words[0], url, *map(str, words[1:])]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("last", "code"),
    [
        ({"status": "SUCCEEDED", "driver_exit_code": 0}, 0),
        ({"status": "FAILED", "driver_exit_code": 3}, 3),
        ({"status": "FAILED", "driver_exit_code": None, "message": "Job supervisor actor died"}, 4),
        ({"status": "STOPPED"}, 130),
        (None, 1),
    ],
)
def test_exit_codes_of_jobs(last, code, dashboard):
    url, answers = dashboard
    if last:
        answers["/api/jobs/j"] = [{"status": "RUNNING"}, last]
    done = ask(url, "job", "j")
    assert done.returncode == code, done.stderr
    assert (last or {}).get("message", "") in done.stderr


def test_options_reach_a_job_as_given(dashboard):
    """A shell runs a job's command, and `ray job submit` quotes it for Windows."""
    url, answers = dashboard
    answers["/api/version"] = {"version": "4", "ray_version": "2.55.0", "ray_commit": ""}
    answers["/api/jobs/"] = {"submission_id": "j", "job_id": None}
    options = ["a b", "it's {}?", "$HOME `id`", "\\boxed{}", "a;b", "*.py", '"', "", "a \\"]
    words = ["job", "submit", "--address", url, "--no-wait", "--", "printf", "%s\\n", *options]
    command = [sys.executable, str(SCRIPTS / "cluster.py"), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    entrypoint = json.loads(answers["body"])["entrypoint"]
    assert subprocess.check_output(entrypoint, shell=True, text=True, cwd=ROOT).splitlines() == options


def test_dead_nodes_do_not_count(dashboard):
    url, answers = dashboard
    rows = [{"node_ip": "10.0.0.1", "state": "ALIVE"}, {"node_ip": "10.0.0.2", "state": "DEAD"}]
    answers["/api/v0/nodes"] = {"data": {"result": {"result": rows}}}
    assert ask(url, "nodes", 1, 5).returncode == 0
    done = ask(url, "nodes", 2, 1)
    assert done.returncode == 4
    assert "1 of 2 nodes have joined (10.0.0.1)" in done.stderr


def test_cluster_liveness(dashboard):
    url, answers = dashboard
    assert ask(url, "alive").returncode == 1
    answers["/api/version"] = {"ray_version": "2.55.0"}
    assert ask(url, "alive").returncode == 0


def test_drain_stops_a_pods_jobs_and_waits_for_them(dashboard):
    url, answers = dashboard
    ours, driver = {"submission_id": "j", "status": "RUNNING"}, {"submission_id": None, "status": "RUNNING"}
    answers["/api/jobs/"] = [[driver, ours], [driver, ours], [driver, {**ours, "status": "STOPPED"}]]
    assert ask(url, "drain").returncode == 0
    assert answers["posted"] == ["/api/jobs/j/stop"] * 2
    assert len(answers["/api/jobs/"]) == 1
