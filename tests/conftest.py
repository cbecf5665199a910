"""Shared by all tests: the repository root, and the host made importable on a machine without a GPU."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
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
