"""Departure from the host, in vLLM's worker: leave a group that lost an engine before joining the next one."""

from typing import Any

from openrlhf.trainer.ray.vllm_worker_wrap import WorkerWrap


class KTAEWorkerWrap(WorkerWrap):
    """Methods that vLLM mixes into its worker (`worker_extension_cls`)."""

    _model_update_group: Any = None

    def init_process_group(self, *args: Any, **kwargs: Any) -> None:
        """Join a group as the host does.

        A broadcast of the last group may still be on the GPU's stream, from a trainer that left the group because
        another engine died: it would block the new group forever. Aborting the communicator ends it.
        """
        if hasattr(self._model_update_group, "destroy"):
            self._model_update_group.destroy()
        super().init_process_group(*args, **kwargs)
