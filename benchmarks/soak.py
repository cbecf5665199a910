"""Does a long run leak? One run with random faults, sampling memory, descriptors, processes and shared memory.

    .venv/bin/python benchmarks/soak.py --cpu-minutes 24 --output runs/soak

The quickstart trains until its processes have used `--cpu-minutes` of processor time since the first step, then gets
SIGTERM. Meanwhile rollouts raise (1 in 100) or score infinity (1 in 2,000, which skips the step's update), a verifier
worker dies every 20 to 60 s, an engine (its actor or vLLM's core) dies several times, checkpoints are written, and
held-out problems are evaluated.

The run is cut into quarters by processor time, and medians of the second and of the last quarter are compared. An
engine dies at random moments of the first and third quarter, for the last time at `LAST_DEATH` of the quarter, so that
it has the same age in the quarters that are compared. Memory is USS (pages of only one process, `Private_*` in
smaps_rollup) and PSS, each the mean over the processes of a role. Files in shared memory are counted once.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psutil
from soak_agent import INFINITE, RAISES

from openrlhf_ktae.checkpoint.folder import listed, verify
from openrlhf_ktae.processes.marks import SHARED_MEMORY, VARIABLE, marked
from openrlhf_ktae.record.metrics import METRICS_FILE, read_record
from openrlhf_ktae.selftest.killing import ENGINE, VERIFIER, kill, title, victims_among

ROOT = Path(__file__).resolve().parents[1]
AGENT = ROOT / "benchmarks/soak_agent.py"
CONFIG = "configs/grpo_ktae/quickstart.yaml"
SAMPLE_SECONDS = 4.0
VERIFIER_SECONDS = (20.0, 60.0)  # between deaths
LAST_DEATH = 0.85  # share of the first and third quarter at which an engine dies for the last time
RANDOM_DEATHS = 4  # engine deaths before that; enough for Ray's object store to have reached its largest size
LIMIT = 5.0  # percent of growth; larger ones are marked
END_SECONDS = 180
ROLES = {
    "host's train": r"ray::HostRun",
    "trainer": r"ray::KTAEPPOTrainer",
    "rank": r"ray::\w*PolicyModelActor",
    "engine actor": r"ray::\w*(GuardedEngine|RolloutActor)",
    "engine core": r"VLLM::EngineCor",
    "verifier worker": r".*openrlhf_ktae\.verifier\.worker",
    "Ray: gcs_server": r".*/gcs_server\b",
    "Ray: raylet": r".*/raylet/raylet\b",
    "Ray: idle worker": r"ray::IDLE",
    "Ray: agents, log monitor": r".*ray/(_private|dashboard)/|ray-",
    "resource tracker": r".*multiprocessing[./]resource_tracker",
    "a process that starts": r".*multiprocessing[./](spawn|forkserver)",
}


def role_of(process: psutil.Process, driver: int) -> str:
    """Return the role of a process in the run."""
    if process.pid == driver:
        return "driver"
    name = title(process)
    return next((role for role, pattern in ROLES.items() if re.match(pattern, name)), "other")


def memory(pid: int) -> tuple[int, int]:
    """Return the process's USS and PSS in bytes."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    sizes = {name: int(kib) * 1024 for name, kib in re.findall(r"^(\w+):\s+(\d+) kB", text, re.M)}
    return sizes["Private_Clean"] + sizes["Private_Dirty"], sizes["Pss"]


def shared_files(processes: Iterable[psutil.Process]) -> dict[tuple[int, int], int]:
    """Return bytes by (device, inode) of shared-memory files that the processes have open or mapped."""
    found: dict[tuple[int, int], int] = {}
    for process in processes:
        folder = Path(f"/proc/{process.pid}")
        try:
            links = [link for link in (folder / "fd").iterdir() if os.readlink(link).startswith(SHARED_MEMORY)]
            mapped = {Path(path) for path in re.findall(rf"{SHARED_MEMORY}\S+", (folder / "maps").read_text())}
        except OSError:
            continue
        for path in (*links, *mapped):
            try:
                state = path.stat()  # through the descriptor, which works for deleted files too
            except OSError:
                continue
            found[state.st_dev, state.st_ino] = state.st_blocks * 512
    return found


def abandoned_files(of_run: Iterable[tuple[int, int]], used: Iterable[tuple[int, int]]) -> int:
    """Return how many shared-memory files of the run still exist, though none of its processes uses them."""
    present = set()
    for path in Path(SHARED_MEMORY).iterdir():
        try:
            state = path.stat()
        except OSError:
            continue
        present.add((state.st_dev, state.st_ino))
    return len(present & set(of_run) - set(used))


class Soak:
    """One run, its faults and its samples."""

    def __init__(self, output: Path, cpu_seconds: float, seed: int) -> None:
        self.output, self.cpu_seconds = output, cpu_seconds
        self.run_directory = output / "run"
        self.mark = uuid.uuid4().hex
        self.chance = random.Random(seed)
        self.samples: list[dict[str, Any]] = []
        self.faults: list[dict[str, Any]] = []
        self._cpu: dict[tuple[int, float], float] = {}
        self._shared: set[tuple[int, int]] = set()
        self._engine_deaths = sorted(
            (start + share) / 4
            for start in (0, 2)
            for share in (*(self.chance.uniform(0.1, LAST_DEATH - 0.2) for _ in range(RANDOM_DEATHS)), LAST_DEATH)
        )
        self._next_verifier_death = 0.0

    def start(self) -> subprocess.Popen[bytes]:
        """Start the run, with far more steps than the soak needs."""
        options = {
            "run.dir": self.run_directory,
            "data.max_samples": 3200,
            "train.num_episodes": 1000,
            "train.agent_func_path": AGENT,
            "ckpt.save_steps": 5,
            "ckpt.max_num": 2,
            "eval.steps": 20,
            "faults.engine_restarts": 1000,
            "faults.max_skipped_updates": 0,
            "faults.max_failed_share": 0.5,
        }
        environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        environment |= {VARIABLE: self.mark, RAISES: "0.01", INFINITE: "0.0005"}
        words = [f"--{name}={value}" for name, value in options.items()]
        self.output.mkdir(parents=True, exist_ok=True)
        with (self.output / "train.log").open("wb") as log:
            command = [sys.executable, "-m", "openrlhf_ktae.cli.train_ppo_ray", "--config", CONFIG, *words]
            return subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )

    def play(self) -> dict[str, Any]:
        """Run until the processor time is used up; return the result."""
        process, began = self.start(), time.time()
        try:
            while process.poll() is None and not self._steps():
                time.sleep(1)
            self._next_verifier_death = time.time() + self.chance.uniform(*VERIFIER_SECONDS)
            start = self._processor_time(marked(self.mark))  # loading does not count
            while process.poll() is None:
                done = self.sample(process.pid, start) / self.cpu_seconds
                if done >= 1:
                    break
                self.fault(done)
                time.sleep(SAMPLE_SECONDS)
            alive = process.poll() is None
            process.send_signal(signal.SIGTERM)
            code = process.wait(END_SECONDS)
        finally:
            kill(marked(self.mark))
        if not alive:
            raise SystemExit(f"the run ended by itself with exit code {code}; see {self.output / 'train.log'}")
        return self.result(code, time.time() - began)

    def sample(self, driver: int, start: float) -> float:
        """Sample every process once; return the processor time since the first step."""
        processes = marked(self.mark)
        spent = self._processor_time(processes) - start
        roles: dict[str, list[dict[str, Any]]] = {}
        for one in processes:
            try:
                own, share = memory(one.pid)
                row = {
                    "pid": one.pid,
                    "age": round(time.time() - one.create_time()),
                    "uss": own,
                    "pss": share,
                    "fds": one.num_fds(),
                    "threads": one.num_threads(),
                }
                roles.setdefault(role_of(one, driver), []).append(row)
            except (psutil.Error, OSError, KeyError):
                continue  # it has just ended
        files = shared_files(processes)
        self._shared |= files.keys()
        row = {
            "time": round(time.time(), 1),
            "cpu": round(spent, 1),
            "step": self._steps(),
            "processes": len(processes),
            "shared files": len(files),
            "shared bytes": sum(files.values()),
            "abandoned files": abandoned_files(self._shared, files),
            "roles": roles,
        }
        self.samples.append(row)
        with (self.output / "samples.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
        return spent

    def fault(self, done: float) -> None:
        """Kill an engine or a verifier worker if its time has come."""
        processes = marked(self.mark)
        if self._engine_deaths and done >= self._engine_deaths[0]:
            self._engine_deaths.pop(0)
            self._kill_one(processes, ENGINE, done)
        if time.time() > self._next_verifier_death:
            self._next_verifier_death = time.time() + self.chance.uniform(*VERIFIER_SECONDS)
            self._kill_one(processes, VERIFIER, done)

    def _kill_one(self, processes: list[psutil.Process], victim: str, done: float) -> None:
        found = victims_among(processes, victim)
        if found:
            one = self.chance.choice(found)
            name = title(one).split()[0].split(".")[0]
            shown = name if "::" in name else victim
            self.faults.append({"time": round(time.time(), 1), "share": round(done, 3), "victim": shown})
            kill([one])

    def _processor_time(self, processes: Iterable[psutil.Process]) -> float:
        for one in processes:
            try:
                times = one.cpu_times()
                self._cpu[one.pid, one.create_time()] = times.user + times.system
            except psutil.Error:
                continue
        return sum(self._cpu.values())

    def _steps(self) -> int:
        path = self.run_directory / METRICS_FILE
        return path.read_bytes().count(b'"kind": "step"') if path.is_file() else 0

    def result(self, code: int, seconds: float) -> dict[str, Any]:
        """Return all figures of the soak."""
        time.sleep(2)
        rows = list(read_record(self.run_directory))
        steps = [row for row in rows if row["kind"] == "step"]
        checkpoints, bad = listed(self.run_directory / "checkpoints")
        for one in checkpoints:
            verify(one.path)
        return {
            "exit code": code,
            "wall minutes": round(seconds / 60, 1),
            "CPU minutes": round(self.samples[-1]["cpu"] / 60, 1),
            "samples": len(self.samples),
            "steps": len(steps),
            "evaluations": sum(row["kind"] == "eval" for row in rows),
            "steps with a failed rollout": sum(row["faults/failed_rollouts"] > 0 for row in steps),
            "updates skipped": sum(row["faults/skipped_updates"] > 0 for row in steps),
            "deaths": dict(Counter(fault["victim"] for fault in self.faults)),
            "engines started again": sum(
                "was restarted with the current weights" in row["text"] for row in rows if row["kind"] == "note"
            ),
            "checkpoints at the end": [one.path.name for one in checkpoints],
            "checkpoints not whole": list(bad),
            "processes left": len(marked(self.mark)),
            "growth": growth(self.samples, self.cpu_seconds),
            "faults": self.faults,
        }


def growth(samples: list[dict[str, Any]], cpu_seconds: float) -> list[dict[str, Any]]:
    """Return for each role and figure the medians of the second and last quarter, and the growth in percent."""
    second = [row for row in samples if 0.25 <= row["cpu"] / cpu_seconds < 0.5]
    last = [row for row in samples if row["cpu"] / cpu_seconds >= 0.75]
    table = []
    for figure in ("processes", "shared files", "shared bytes", "abandoned files"):
        table.append(_compared("whole run", figure, [row[figure] for row in second], [row[figure] for row in last]))
    roles = sorted({role for row in (*second, *last) for role in row["roles"]})
    for role in roles:
        for figure in ("uss", "pss", "fds", "threads"):
            parts = [
                [statistics.mean(one[figure] for one in row["roles"][role]) for row in part if role in row["roles"]]
                for part in (second, last)
            ]
            table.append(_compared(role, figure, *parts))
    return table


def _compared(role: str, figure: str, second: list[float], last: list[float]) -> dict[str, Any]:
    before, after = (statistics.median(part) if part else 0 for part in (second, last))
    percent = 100 * (after - before) / before if before else (0.0 if not after else float("inf"))
    return {"role": role, "figure": figure, "second": before, "last": after, "percent": round(percent, 2)}


def table(rows: list[dict[str, Any]]) -> str:
    """Return the growth as a Markdown table; memory in MiB."""
    lines = ["| process | figure | second quarter | last quarter | growth |", "|---|---|---:|---:|---:|"]
    for row in rows:
        unit = 2**20 if row["figure"] in ("uss", "pss", "shared bytes") else 1
        name = f"{row['figure']}, MiB" if unit > 1 else row["figure"]
        mark = " **" if row["percent"] > LIMIT else ""
        second, last = (f"{row[quarter] / unit:.1f}".removesuffix(".0") for quarter in ("second", "last"))
        lines.append(f"| {row['role']} | {name} | {second} | {last} | {row['percent']:+.1f} %{mark} |")
    return "\n".join(lines)


def main() -> None:
    """Run the soak; print the table and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cpu-minutes", type=float, default=24.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=Path, default=ROOT / "runs/soak")
    options = parser.parse_args()
    result = Soak(options.output.resolve(), 60 * options.cpu_minutes, options.seed).play()
    (options.output / "soak.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({name: value for name, value in result.items() if name not in ("growth", "faults")}, indent=1))
    print(table(result["growth"]))


if __name__ == "__main__":
    main()
