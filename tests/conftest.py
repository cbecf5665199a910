"""Shared by all tests: the repository root, and the host made importable on a machine without a GPU."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
WORKER = os.environ.get("PYTEST_XDIST_WORKER", "").removeprefix("gw")
if WORKER:  # workers take a core each: what they start makes threads for one core instead of fighting for all
    CORES = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {CORES[int(WORKER) % len(CORES)]})
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def host():
    """The host, importable: the CPU patches are applied to this process once."""
    from openrlhf_ktae.backend.cpu_patches import activate

    activate()
    import openrlhf

    return openrlhf
