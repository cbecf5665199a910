"""The scripts' requests to Ray's dashboard.

python cluster.py alive URL                       exit code 0 if a cluster answers
python cluster.py nodes URL COUNT SECONDS [PID..] waits for COUNT nodes to join; exit code 4 after SECONDS or a PID ends
python cluster.py drain URL                       stops every job and waits until they have ended
python cluster.py job URL ID                      waits until the job has ended; exits with its code, 130 if stopped
python cluster.py job submit ...                  `ray job submit ...` with the command quoted for a POSIX shell
"""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

POLL_SECONDS = 1.0
SILENT_SECONDS = 60.0  # the cluster counts as dead if its dashboard has not answered for this long
DIED, STOPPED, UNKNOWN = 4, 130, 1


def get(url: str, path: str, method: str = "GET") -> Any:
    """Return the dashboard's answer. Raises OSError (such as `HTTPError`), or ValueError if it is not JSON."""
    request = urllib.request.Request(url + path, method=method)
    if token := os.environ.get("RAY_AUTH_TOKEN"):
        request.add_header("Authorization", f"Bearer {token}")
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10) as answer:
        return json.load(answer)


def alive(url: str) -> int:
    """Return 0 if a Ray cluster answers at `url`."""
    try:
        return 0 if "ray_version" in get(url, "/api/version") else UNKNOWN
    except (OSError, ValueError):
        return UNKNOWN


def nodes(url: str, count: int, seconds: float, parts: Sequence[int]) -> int:
    """Wait until `count` nodes are alive, for at most `seconds`; stop waiting if a process of `parts` dies."""
    deadline = time.monotonic() + seconds
    joined: list[str] = []
    while True:
        try:
            rows = get(url, "/api/v0/nodes")["data"]["result"]["result"]
            joined = sorted(row["node_ip"] for row in rows if row["state"] == "ALIVE")
        except (OSError, ValueError, KeyError, TypeError):  # the dashboard is not up yet
            pass
        if len(joined) >= count:
            return 0
        gone = [part for part in parts if not runs(part)]
        if gone or time.monotonic() > deadline:
            reason = f"process {gone[0]} has ended" if gone else f"{seconds:.0f} s have passed (JOIN_SECONDS)"
            here = f" ({', '.join(joined)})" if joined else ""
            print(f"{len(joined)} of {count} nodes have joined{here}, but {reason}", file=sys.stderr)
            return DIED
        time.sleep(POLL_SECONDS)


def runs(pid: int) -> bool:
    """Whether a process exists and is not a zombie."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def job(url: str, name: str) -> int:
    """Wait for the end of a job and return the exit code of its command."""
    heard = time.monotonic()
    while True:
        try:
            row = get(url, f"/api/jobs/{name}")
            heard = time.monotonic()
        except urllib.error.HTTPError as error:
            if error.code == 404:
                print(f"{name}: Ray has no such job", file=sys.stderr)
                return UNKNOWN
            row = {}
        except (OSError, ValueError):
            row = {}
        if row.get("status") == "STOPPED":
            return STOPPED
        if row.get("status") in ("SUCCEEDED", "FAILED"):
            code = row.get("driver_exit_code")
            if code is None:  # Ray lost the command, or could not start it
                print(f"{name}: {row.get('message')}", file=sys.stderr)
                return DIED
            return int(code)
        if time.monotonic() - heard > SILENT_SECONDS:
            print(f"{name}: Ray's head has not answered for {SILENT_SECONDS:.0f} s", file=sys.stderr)
            return DIED
        time.sleep(POLL_SECONDS)


def drain(url: str) -> int:
    """Stop all jobs, so that runs write checkpoints, and wait until they end; return 1 at once without a dashboard."""
    while True:
        try:
            rows = get(url, "/api/jobs/")
        except (OSError, ValueError):
            return UNKNOWN
        running = [row["submission_id"] for row in rows if row["status"] in ("PENDING", "RUNNING")]
        if not any(running):  # jobs without an id were not submitted
            return 0
        for name in filter(None, running):
            with suppress(OSError, ValueError):  # it just ended
                get(url, f"/api/jobs/{name}/stop", "POST")
        time.sleep(POLL_SECONDS)


def submit(words: Sequence[str]) -> int:
    """Run `ray job submit` with the command quoted, so that it reaches the job as given although a shell runs it."""
    from ray.dashboard.modules.job import cli

    assert cli.list2cmdline  # Ray's own way of quoting, for Windows
    cli.list2cmdline = shlex.join
    return cli.submit.main(list(words), prog_name="ray job submit")


def main(words: Sequence[str]) -> int:
    """Run the subcommand named by the first argument."""
    if words[:2] == ["job", "submit"]:
        return submit(words[2:])
    what, url, *rest = words
    if what == "nodes":
        return nodes(url, int(rest[0]), float(rest[1]), [int(pid) for pid in rest[2:]])
    if what == "job":
        return job(url, rest[0])
    return {"alive": alive, "drain": drain}[what](url)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
