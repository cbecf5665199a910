"""Shared by tests that need Ray: a small one for each module."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module")
def ray_here(host):
    """Its workers are set up as those of a run on a CPU."""
    import ray

    from openrlhf_ktae.backend.cpu import CpuBackend
    from openrlhf_ktae.run.process_setup import BACKEND_VARIABLE, WORKER_HOOK

    options = {"num_cpus": 1, "num_gpus": 0, "object_store_memory": 80 * 2**20, "include_dashboard": False}
    workers = {
        "env_vars": {BACKEND_VARIABLE: CpuBackend().worker_setup_hook()},
        "worker_process_setup_hook": WORKER_HOOK,
    }
    ray.init(address="local", logging_level="ERROR", log_to_driver=False, runtime_env=workers, **options)
    yield ray
    ray.shutdown()
