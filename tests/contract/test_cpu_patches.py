"""CPU patches of DeepSpeed, vLLM and Ray: they are applied, they work, and the code they replace still exists."""

from __future__ import annotations

import importlib
import inspect
from types import SimpleNamespace

import pytest

from openrlhf_ktae.backend import cpu_patches
from openrlhf_ktae.processes import forks

PATCHES = cpu_patches.__name__


def test_no_collective_is_compiled(host):
    module = importlib.import_module("deepspeed.comm.torch")

    assert module.build_shm_op.__module__ == PATCHES
    assert module.build_shm_op() is None
    assert "build_shm_op()" in inspect.getsource(module.TorchBackend.__init__), "called without the patch"


def test_the_patch_of_deepspeeds_gathers_is_applied(host):
    from deepspeed.runtime.zero import partition_parameters as module

    assert module.Init._allgather_params_coalesced.__module__ == PATCHES
    source = inspect.getsource(module)
    body = source.split("def _allgather_params_coalesced(")[1].split("\n    def ")[0]
    assert "dist.all_gather_into_tensor(" in body or "dist.all_gather(" in body, "calls the patch misses"


class Handle:
    waited = False

    def wait(self):
        self.waited = True


def two_gathers():
    """A module like DeepSpeed's: it starts two gathers and waits only for the last."""
    handles = []
    dist = SimpleNamespace(
        all_gather_into_tensor=lambda *_: handles.append(Handle()) or handles[-1], all_gather=lambda *_: None
    )

    class Init:
        def _allgather_params_coalesced(self, fails=False):
            for _ in range(2):
                last = dist.all_gather_into_tensor()
            dist.all_gather()
            if fails:
                raise RuntimeError("no memory")
            last.wait()

    return SimpleNamespace(Init=Init, dist=dist, __name__="module"), handles


def test_the_patch_waits_for_every_gather():
    module, handles = two_gathers()
    module.Init()._allgather_params_coalesced()
    assert [handle.waited for handle in handles] == [False, True], "DeepSpeed's bug: it waits only for the last gather"
    cpu_patches.wait_for_every_gather(module)
    launch = module.dist.all_gather_into_tensor
    handles.clear()
    module.Init()._allgather_params_coalesced()
    assert [handle.waited for handle in handles] == [True, True]
    assert module.dist.all_gather_into_tensor is launch, "the patch must restore the module"
    with pytest.raises(RuntimeError, match="no memory"):
        module.Init()._allgather_params_coalesced(fails=True)
    assert module.dist.all_gather_into_tensor is launch


@pytest.mark.parametrize(
    "patch", [cpu_patches.skip_compiled_collectives, cpu_patches.wait_for_every_gather, cpu_patches.copy_states_less]
)
def test_a_library_that_has_changed_is_noticed(patch):
    with pytest.raises(cpu_patches.PatchDoesNotApply):
        patch(SimpleNamespace(__name__="changed"))


def test_cores_are_forked_if_a_fork_server_runs(monkeypatch):
    from vllm.utils import system_utils

    source = inspect.getsource(system_utils)
    assert "def get_mp_context" in source
    module = SimpleNamespace(get_mp_context=lambda: "as usual", __name__="module")
    cpu_patches.fork_cores(module)
    assert module.get_mp_context() == "as usual"
    monkeypatch.setenv(forks.VARIABLE, "address")
    assert isinstance(module.get_mp_context(), forks.ForkedContext)


def test_ray_accepts_another_worker_script_and_three_services_can_be_skipped():
    from ray._private import node, ray_constants

    source = inspect.getsource(node.Node.__init__)
    assert "ray_constants.SETUP_WORKER_FILENAME" in source, "Ray joins it to a folder; an absolute path overrides that"
    assert not ray_constants.SETUP_WORKER_FILENAME.startswith("/")
    for name in ("start_monitor", "start_api_server", "start_log_monitor"):
        assert callable(getattr(node.Node, name))
