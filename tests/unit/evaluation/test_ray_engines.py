"""The Ray cluster of an evaluation with several engines."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from openrlhf_ktae.backend import Backend
from openrlhf_ktae.backend.cpu import CpuBackend
from openrlhf_ktae.backend.cuda import CudaBackend
from openrlhf_ktae.evaluation.generation import Engines, _host_arguments

UNTIL_RAY = """
import os, sys
from openrlhf_ktae.backend.cuda import CudaBackend
from openrlhf_ktae.evaluation.generation import Engines, Sampling, open_engine
from openrlhf_ktae.backend import cluster

def start_ray(args, backend, variables):
    assert "ray" not in sys.modules, "Ray reads the environment as it is imported"
    print(os.environ.get("RAY_AUTH_MODE"), len(os.environ.get("RAY_AUTH_TOKEN", "")))
    sys.exit()

cluster.start_ray = start_ray
open_engine(Engines("m", engines=2), Sampling(), CudaBackend(), lambda _: None)
"""


@pytest.mark.parametrize("backend", [CudaBackend(), CpuBackend()], ids=lambda backend: backend.name)
def test_every_backend_can_start_ray_for_engines_only(backend: Backend):
    options = backend.ray_init_options(_host_arguments(Engines("m", engines=2)))
    assert options.get("dashboard_host", "127.0.0.1") == "127.0.0.1"
    assert options.get("num_gpus", 2) == 2


@pytest.mark.parametrize(("address", "shown"), [(None, "token 64"), ("10.0.0.1:6379", "None 0")])
def test_own_cluster_requires_a_token_and_a_joined_one_keeps_its_rules(address, shown):
    names = ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    environment |= {"RAY_ADDRESS": address} if address else {}
    command = [sys.executable, "-c", UNTIL_RAY]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == shown
