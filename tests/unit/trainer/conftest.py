"""Shared by the tests of the trainer: a small Ray of their own."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module")
def ray_here(host):
    import ray

    options = {"num_cpus": 1, "num_gpus": 0, "object_store_memory": 80 * 2**20, "include_dashboard": False}
    ray.init(address="local", logging_level="ERROR", log_to_driver=False, **options)
    yield ray
    ray.shutdown()
