"""The host's engine on a CPU; separate from `cpu_actors`, because importing DeepSpeed would slow its start."""

import json
import os
from typing import Any

from openrlhf_ktae.backend.cpu_patches import ENGINE_VARIABLE
from openrlhf_ktae.trainer.ray.cpu_weight_sync import CpuWorkerExtension, Slot
from openrlhf_ktae.trainer.ray.vllm_engine import KTAERolloutActor


class CpuRolloutActor(KTAERolloutActor):
    """A vLLM engine on the CPU, with its own dtype, cache size and worker extension instead of the host's."""

    uses_gpu = False
    _wants_weights = False
    worker_extension = f"{CpuWorkerExtension.__module__}.{CpuWorkerExtension.__qualname__}"

    async def __init__(self, *args: Any, **kwargs: Any) -> None:  # type: ignore[misc]  # Ray awaits it
        kwargs.update(json.loads(os.environ[ENGINE_VARIABLE]))
        await super().__init__(*args, **kwargs)

    async def update_weights_in_bucket(self, bucket: list[Slot]) -> None:
        """Have every worker of this engine receive one bucket of parameters."""
        await self.llm.collective_rpc("update_weights_in_bucket", args=(bucket,))

    async def release_memory(self) -> None:
        """Release memory that is not needed until weights arrive; nothing can be generated until then."""
        self.released = True
        await self.llm.collective_rpc("release_memory")

    async def begin_again(self, seed: int) -> None:
        """Start another run of the same shape, with the last run's weights until the ranks send new ones."""
        self._wants_weights = True
        await self.llm.reset_prefix_cache()
        await self.llm.collective_rpc("reseed", args=(seed,))

    async def wants_weights(self) -> bool:
        """Whether the engine has the weights of another run; the answer is True only once."""
        wanted, self._wants_weights = self._wants_weights, False
        return wanted
