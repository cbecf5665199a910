"""Marks of tests that take long."""

from __future__ import annotations

import os

import pytest

from openrlhf_ktae.backend.cpu import vllm_build

SLOW = pytest.mark.slow
"""`make test` leaves these out, `make test-all` runs them: another test is faster, or the path is off the main one."""
RARELY = pytest.mark.skipif("KTAE_TEST_ALL" not in os.environ, reason="KTAE_TEST_ALL runs it")
"""For tests whose rule has another one, or that differ little from another run: each start costs most of a minute."""
CPU_BUILDS = pytest.mark.skipif(vllm_build() == "cuda", reason="a fresh process refuses GPU builds on a CPU first")
