"""Fixtures of unit tests: a small Ray, a process group, and a full disk."""

from __future__ import annotations

import os
import resource
import signal
import sys
from contextlib import contextmanager, nullcontext

import pytest
import torch

from openrlhf_ktae.backend import choice
from openrlhf_ktae.backend.cpu import vllm_build
from openrlhf_ktae.base.free_port import free_port
from openrlhf_ktae.processes import forks


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


class Kept:
    """What a test process starts once for all its modules, since each start costs seconds: Ray, and a fork server."""

    ray_settings = None
    fork_server = ""

    def ray(self, devices=0, variables=None, forked=False):
        """Return Ray with `devices`, workers with `variables`, and if `forked`, workers that are forks."""
        import ray

        from openrlhf_ktae.backend.cpu import CpuBackend
        from openrlhf_ktae.processes.setup import BACKEND_VARIABLE, WORKER_HOOK

        variables = variables or {BACKEND_VARIABLE: CpuBackend().worker_setup_hook}
        settings = devices, variables, forked
        if ray.is_initialized() and self.ray_settings in (settings, (devices, variables, True)):
            return ray
        ray.shutdown()
        with self.forking() if forked else nullcontext():
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
        self.ray_settings = settings
        return ray

    @contextmanager
    def forking(self):
        """Ray starts here with workers that are forks: each would import the libraries for seconds."""
        from openrlhf_ktae.backend.cpu import CpuBackend
        from openrlhf_ktae.backend.cpu_patches import forked_workers
        from openrlhf_ktae.trainer.ray.classes import CPU_MODULES

        if not self.fork_server:
            forks.start([CpuBackend.preloads, *CPU_MODULES], {})
            first = forks.ForkedProcess(target=int)
            first.start()
            first.join()  # the imports are done: on a busy machine Ray would not start beside them
            self.fork_server = os.environ.pop(forks.VARIABLE)  # commands that tests run must not find it
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(forks.VARIABLE, self.fork_server)
            with forked_workers():
                yield

    def end(self):
        """End both, for tests that start their own."""
        if "ray" in sys.modules:
            sys.modules["ray"].shutdown()
        if self.fork_server:
            os.environ[forks.VARIABLE] = self.fork_server
            forks.stop()
        self.ray_settings, self.fork_server = None, ""


@pytest.fixture(scope="session")
def kept_processes():
    """Return what this process has started for all its modules."""
    made = Kept()
    yield made
    made.end()


@pytest.fixture(scope="module")
def nothing_kept(kept_processes):
    """For modules that start their own Ray or fork server."""
    kept_processes.end()


@pytest.fixture(scope="module")
def ray_here(host, kept_processes):
    """A small Ray, for its object store."""
    return kept_processes.ray()


@pytest.fixture(scope="module")
def ray_with_workers(host, kept_processes):
    """A small Ray whose workers are set up as in a CPU run, but start faster."""
    return kept_processes.ray(forked=True)


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
