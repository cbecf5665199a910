"""Fixtures of all tests: the repository root, and the host made importable without a GPU."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
WORKER = os.environ.get("PYTEST_XDIST_WORKER", "").removeprefix("gw")
if WORKER:  # each worker has one core, so its subprocesses use one thread
    CORES = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {CORES[int(WORKER) % len(CORES)]})
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def loaded_by():
    """Return which of `names` a fresh process has imported after `code`; other tests' imports do not interfere."""

    def loaded(code: str, *names: str) -> list[str]:
        code += f"\nimport sys; print([name for name in {names!r} if name in sys.modules])"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        return ast.literal_eval(done.stdout.splitlines()[-1])

    return loaded


@pytest.fixture(scope="session")
def host():
    """Make the host importable: applies the CPU patches to this process once."""
    from openrlhf_ktae.backend.cpu_patches import activate

    activate()
    import openrlhf

    return openrlhf
