"""Two Ray nodes on one machine, each in its own network, host name and mount namespaces; kills only their processes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

import psutil
import pytest
from run_processes import MARK, processes_of, wait_until_none

RAY = Path(sys.executable).with_name("ray")
ADDRESSES = ("10.77.0.1", "10.77.0.2")
NAMES = ("node-one", "node-two")
DEVICES = (1, 2)  # the engine takes one, so a rank is on the second node; the trainer is on the first
PORT, DASHBOARD_PORT = 6379, 8265
HOLD_SECONDS = "3600"


class TwoNodes:
    """A head and a second node. `shared` is the same folder on both, `private` differs."""

    def __init__(self, base: Path, environment: dict[str, str]) -> None:
        self.shared, self.private = base / "shared", base / "private"
        for folder in (self.shared, self.private):
            folder.mkdir()
        self._ray = Path(tempfile.mkdtemp(prefix="ray-"))  # socket paths have at most 107 bytes
        self.mark = f"two-nodes-{uuid.uuid4().hex[:8]}"
        self.environment = {**environment, MARK: self.mark}
        unshare = ["unshare", "--net", "--mount", "--uts", "sleep", HOLD_SECONDS]
        self._holders = [subprocess.Popen(unshare, env=self.environment) for _ in ADDRESSES]

    def inside(self, node: int) -> list[str]:
        """Return the command prefix that runs a command on a node."""
        return ["nsenter", "--target", str(self._holders[node].pid), "--net", "--mount", "--uts"]

    def start(self) -> None:
        """Connect the nodes and start Ray on them, outside the project's folder."""
        end = time.monotonic() + 20
        while any(_network(holder.pid) == _network(os.getpid()) for holder in self._holders):
            assert time.monotonic() < end, "unshare created no network namespace"
            time.sleep(0.05)
        pids = [str(holder.pid) for holder in self._holders]
        link = ["ip", "link", "add", f"a{pids[0]}", "netns", pids[0], "type", "veth", "peer", "name", f"b{pids[1]}"]
        subprocess.run([*link, "netns", pids[1]], check=True)
        for node, (pid, device) in enumerate(zip(pids, "ab", strict=True)):
            own, other = ADDRESSES[node], ADDRESSES[1 - node]
            commands = [f"ip addr add {own}/24 dev {device}{pid}", "ip link set lo up", f"ip link set {device}{pid} up"]
            commands += [f"hostname {NAMES[node]}"]
            commands += [f"mount -t tmpfs tmpfs {folder}" for folder in (self.private, self._ray) if node]
            self._on(node, " && ".join(commands))
            self._on(node, f"ip route add default via {other} || true")
        self._on(0, f"ip route replace default via {ADDRESSES[1]}")
        self.start_ray(0)
        self.start_ray(1)

    def _on(self, node: int, command: str) -> None:
        subprocess.run([*self.inside(node), "sh", "-c", command], check=True)

    def start_ray(self, node: int) -> None:
        """Start Ray on a node; also restarts the second node after its death."""
        address = f"{ADDRESSES[0]}:{PORT}"
        head = ["--head", "--port", str(PORT), "--dashboard-port", str(DASHBOARD_PORT), "--temp-dir", str(self._ray)]
        words = ["--node-ip-address", ADDRESSES[node], "--num-gpus", str(DEVICES[node]), "--num-cpus", "8"]
        words += ["--object-store-memory", str(100 * 2**20)]
        words += ["--address", address] if node else [*head, "--disable-usage-stats"]
        subprocess.run(
            [*self.inside(node), str(RAY), "start", *words],
            cwd="/",
            env=self.environment,
            check=True,
            stdout=subprocess.DEVNULL,
            timeout=180,
        )

    def processes(self, node: int) -> list[psutil.Process]:
        """Return a node's processes except the one that holds its namespaces open."""
        network = _network(self._holders[node].pid)
        found = []
        for process in processes_of(self.mark):
            try:
                if _network(process.pid) == network and process.pid != self._holders[node].pid:
                    found.append(process)
            except OSError:
                continue
        return found

    def kill_the_second(self) -> None:
        """Kill the second node's raylet; like a dying machine, it takes every process of the node with it."""
        (raylet,) = [one for one in self.processes(1) if one.name() == "raylet"]
        raylet.kill()

    def run(self, *words: str, cwd: Path) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*self.inside(0), f"--wdns={cwd}", *words],
            env={**self.environment, "RAY_ADDRESS": f"{ADDRESSES[0]}:{PORT}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def end(self) -> None:
        """Kill everything we started; the network namespace ends with its last process."""
        for process in processes_of(self.mark):
            process.kill()
        for holder in self._holders:
            holder.wait()
        wait_until_none(self.mark, 20)
        shutil.rmtree(self._ray, ignore_errors=True)


def _network(pid: int) -> str:
    return os.readlink(f"/proc/{pid}/ns/net")


def made(base: Path, environment: dict[str, str]) -> TwoNodes:
    """Return two running nodes; skip the test if the machine does not allow them."""
    try:
        done = subprocess.run(["unshare", "--net", "--mount", "--uts", "ip", "link"], capture_output=True, text=True)
    except FileNotFoundError as error:
        pytest.skip(f"two nodes need unshare and ip: {error}")
    if done.returncode:
        pytest.skip(f"two nodes are not allowed here: {done.stderr.strip()}")
    nodes = TwoNodes(base, environment)
    try:
        nodes.start()
    except BaseException:
        nodes.end()
        raise
    return nodes
