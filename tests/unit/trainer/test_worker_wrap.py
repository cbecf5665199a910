"""vLLM's worker leaves a group that lost an engine before it joins the next one."""

from __future__ import annotations

import pytest


def test_a_worker_leaves_its_group_before_joining_the_next(host, monkeypatch):
    from openrlhf.trainer.ray.vllm_worker_wrap import WorkerWrap

    from openrlhf_ktae.trainer.ray.vllm_worker_wrap import KTAEWorkerWrap

    log = []

    class Group:
        def destroy(self):
            log.append("left")

    def join(self, address, port, rank_offset, world_size, name, backend="nccl", use_ray=False):
        log.append(("joins", port))
        self._model_update_group = Group()

    monkeypatch.setattr(WorkerWrap, "init_process_group", join)
    worker = KTAEWorkerWrap()
    for port in (1, 2):
        worker.init_process_group("address", port, 1, 3, "openrlhf", backend="nccl", use_ray=False)
    assert log == [("joins", 1), "left", ("joins", 2)]


@pytest.mark.parametrize("backend", ["cuda", "cpu"])
def test_engines_use_their_backends_worker_extension(backend, host, monkeypatch):
    """vLLM imports them by a path, for which the host passes its own class."""
    import asyncio

    from vllm.utils.import_utils import resolve_obj_by_qualname

    from openrlhf_ktae.backend.cpu_patches import ENGINE_VARIABLE
    from openrlhf_ktae.trainer.ray import vllm_engine
    from openrlhf_ktae.trainer.ray.cpu_engine import CpuRolloutActor
    from openrlhf_ktae.trainer.ray.cpu_weight_sync import CpuWorkerExtension
    from openrlhf_ktae.trainer.ray.vllm_worker_wrap import KTAEWorkerWrap

    given = {}

    async def init(self, **kwargs):
        given.update(kwargs)
        raise KeyError("far enough")

    monkeypatch.setattr(vllm_engine._HostRolloutActor, "__init__", init)
    monkeypatch.setenv(ENGINE_VARIABLE, "{}")
    kind = {"cuda": vllm_engine.KTAERolloutActor, "cpu": CpuRolloutActor}[backend]
    made = kind.__new__(kind)
    with pytest.raises(KeyError, match="far enough"):
        asyncio.run(made.__init__(worker_extension_cls="openrlhf.trainer.ray.vllm_worker_wrap.WorkerWrap"))
    expected = {"cuda": KTAEWorkerWrap, "cpu": CpuWorkerExtension}[backend]
    assert resolve_obj_by_qualname(given["worker_extension_cls"]) is expected
