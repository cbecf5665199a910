"""Fixtures of unit tests: a small Ray cluster per module, a process group, and a full disk."""

from __future__ import annotations

import os
import resource
import signal
from contextlib import contextmanager

import pytest
import torch

from openrlhf_ktae.backend import choice
from openrlhf_ktae.backend.cpu import vllm_build
from openrlhf_ktae.base.free_port import free_port


@pytest.fixture(autouse=True)
def builds_of_a_cpu_machine(monkeypatch):
    """Pretend that CPU builds are installed, since GPU builds are refused on a CPU."""
    if vllm_build() == "cuda":
        monkeypatch.setattr(choice, "vllm_build", lambda: "cpu")


@pytest.fixture(autouse=True)
def process_as_before():
    """Restore what commands and process setup change: signal handlers, blocked signals, the environment."""
    blocked, environment = signal.pthread_sigmask(signal.SIG_BLOCK, []), dict(os.environ)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
    os.environ.update(environment)


@pytest.fixture
def files_up_to():
    """Make writes fail once a file exceeds a size, as on a full disk."""

    @contextmanager
    def limited(size):
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limited


@pytest.fixture(scope="module")
def forking(host):
    """Return a context in which Ray starts with workers that are forks: each would import the libraries for seconds."""
    from openrlhf_ktae.backend.cpu import CpuBackend
    from openrlhf_ktae.backend.cpu_patches import forked_workers
    from openrlhf_ktae.processes import forks
    from openrlhf_ktae.trainer.ray.classes import CPU_MODULES

    forks.start([CpuBackend.preloads, *CPU_MODULES], {})
    first = forks.ForkedProcess(target=int)
    first.start()
    first.join()  # the imports are done: on a busy machine Ray would not start beside them
    server = os.environ.pop(forks.VARIABLE)  # commands that tests run must not find it

    @contextmanager
    def context():
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(forks.VARIABLE, server)
            with forked_workers():
                yield

    yield context
    os.environ[forks.VARIABLE] = server
    forks.stop()


@pytest.fixture(scope="session")
def small_ray(host):
    """Return a function that starts a small Ray with `devices` and the workers' `variables`."""
    import ray

    from openrlhf_ktae.backend.cpu import CpuBackend
    from openrlhf_ktae.processes.setup import BACKEND_VARIABLE, WORKER_HOOK

    def start(devices=0, variables=None):
        variables = variables or {BACKEND_VARIABLE: CpuBackend().worker_setup_hook}
        ray.init(
            address="local",
            num_cpus=devices or 1,
            num_gpus=devices,
            object_store_memory=80 * 2**20,
            include_dashboard=False,
            logging_level="ERROR",
            log_to_driver=False,
            runtime_env={"env_vars": variables, "worker_process_setup_hook": WORKER_HOOK},
        )
        return ray

    return start


@pytest.fixture(scope="module")
def ray_here(small_ray):
    """Start a small Ray, for its object store."""
    ray = small_ray()
    yield ray
    ray.shutdown()


@pytest.fixture(scope="module")
def ray_with_workers(forking, small_ray):
    """Start a small Ray whose workers are set up as in a CPU run, but start faster."""
    with forking():
        ray = small_ray()
    yield ray
    ray.shutdown()


@pytest.fixture(scope="session")
def group(host):
    """A process group of one for DeepSpeed, which keeps it for the life of the process."""
    names = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_RANK": "0",
    }
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(names)
    import deepspeed

    deepspeed.init_distributed("gloo")
    yield
    torch.distributed.destroy_process_group()
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)
