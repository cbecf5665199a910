"""Marks of tests that start processes of a run."""

from __future__ import annotations

import os

import pytest

RARELY = pytest.mark.skipif("KTAE_TEST_ALL" not in os.environ, reason="KTAE_TEST_ALL runs it")
"""For tests whose rule has another one, or that differ little from another run: each start costs most of a minute."""
