"""Fixtures that run the real command as a user does, in its own process, for a few steps of the quickstart."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from run_processes import MARK, mark_of, processes_of

from openrlhf_ktae.record.metrics import read_record

COMMAND = [sys.executable, "-m", "openrlhf_ktae.cli.train_ppo_ray"]
SECONDS = 300


class Finished:
    """Exit code, output and record of one run."""

    def __init__(self, directory: Path, code: int, output: str) -> None:
        self.directory, self.code, self.output = directory, code, output
        rows = self.rows = list(read_record(directory))
        self.steps = [row for row in rows if row["kind"] == "step"]
        self.evaluations = {row["when"]: row for row in rows if row["kind"] == "eval"}


@pytest.fixture(scope="session")
def environment():
    return {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}


@pytest.fixture
def start(root, environment, tmp_path):
    """Start the quickstart with `words` in `tmp_path`; the fixture kills it and its children at the end.

    The process group reacts to Ctrl-C as in a terminal; its processes carry `mark_of(tmp_path)`.
    """

    def run(*words: str, **variables: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*COMMAND, "--config", "configs/grpo_ktae/quickstart.yaml", "--run.dir", str(tmp_path), *words],
            cwd=root,
            env={**environment, MARK: mark_of(tmp_path), **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
        )

    yield run
    for process in processes_of(mark_of(tmp_path)):
        process.kill()


@pytest.fixture(scope="session")
def train(root, environment):
    """Run the command with the quickstart's configuration and `words`, and wait for it."""

    def run(
        directory: Path, *words: str, config: str = "configs/grpo_ktae/quickstart.yaml", **variables: str
    ) -> Finished:
        done = subprocess.run(
            [*COMMAND, "--config", config, "--run.dir", str(directory), *words],
            cwd=root,
            env={**environment, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=SECONDS,
        )
        return Finished(directory, done.returncode, done.stdout)

    return run
