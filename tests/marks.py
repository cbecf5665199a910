"""Marks that decide when a test runs."""

from __future__ import annotations

import os

import pytest

from openrlhf_ktae.backend.cpu import vllm_build

SLOW = pytest.mark.slow
"""`make test-all` only: a faster test covers most of it, or few runs take this path."""
RARELY = pytest.mark.skipif("KTAE_TEST_ALL" not in os.environ, reason="KTAE_TEST_ALL runs it")
"""For tests whose rule another test covers, or that differ little from another run; each starts the whole stack."""
CPU_BUILDS = pytest.mark.skipif(vllm_build() == "cuda", reason="a fresh process refuses GPU builds on a CPU")
