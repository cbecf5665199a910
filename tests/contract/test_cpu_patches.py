"""The patches of DeepSpeed that a CPU needs: they are applied, they work, and the code they replace exists."""

from __future__ import annotations

import importlib
import inspect
from types import SimpleNamespace

import pytest

from openrlhf_ktae.backend import cpu_patches

PATCHES = cpu_patches.__name__


def test_no_collective_is_compiled(host):
    module = importlib.import_module("deepspeed.comm.torch")

    assert module.build_shm_op.__module__ == PATCHES
    assert module.build_shm_op() is None
    assert "build_shm_op()" in inspect.getsource(module.TorchBackend.__init__), "looked up where the patch is"


def test_the_gathers_of_deepspeed_are_waited_for(host):
    from deepspeed.runtime.zero import partition_parameters as module

    assert module.Init._allgather_params_coalesced.__module__ == PATCHES
    source = inspect.getsource(module)
    body = source.split("def _allgather_params_coalesced(")[1].split("\n    def ")[0]
    assert "dist.all_gather_into_tensor(" in body or "dist.all_gather(" in body, (
        "launched by the names that are watched"
    )


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


def test_every_gather_is_waited_for():
    module, handles = two_gathers()
    module.Init()._allgather_params_coalesced()
    assert [handle.waited for handle in handles] == [False, True], "what the patch is there for"
    cpu_patches.wait_for_every_gather(module)
    launch = module.dist.all_gather_into_tensor
    handles.clear()
    module.Init()._allgather_params_coalesced()
    assert [handle.waited for handle in handles] == [True, True]
    assert module.dist.all_gather_into_tensor is launch, "nothing is left behind"
    with pytest.raises(RuntimeError, match="no memory"):
        module.Init()._allgather_params_coalesced(fails=True)
    assert module.dist.all_gather_into_tensor is launch


@pytest.mark.parametrize("patch", [cpu_patches.skip_compiled_collectives, cpu_patches.wait_for_every_gather])
def test_a_library_that_has_changed_is_noticed(patch):
    with pytest.raises(cpu_patches.PatchDoesNotApply):
        patch(SimpleNamespace(__name__="changed"))
