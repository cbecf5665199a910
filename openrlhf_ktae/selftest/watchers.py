"""Classes that instrument a run, and engines that die on request; `watched_run` wraps a backend's own classes.

They append rows to `watched.jsonl` of the run:

`{"kind": "weights", "equal": true, "parameters": 26, "different": []}`: engine and trainer after a synchronisation
`{"kind": "log_probs", "mean": 0.004, "largest": 0.1, "tokens": 900}`: |engine - trainer| in a micro-batch
`{"kind": "memory", "phase": "training", "bytes": ...}`: peak on one device; on a CPU, of one rank's process
`{"kind": "death", "moment": "generating", "time": ...}`: an engine's core was killed, as requested by the file `die`

vLLM's processes import this too, so heavy imports stay inside functions.
"""

import asyncio
import json
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from openrlhf_ktae.backend.cpu_patches import ENGINE_VARIABLE

VARIABLE = "OPENRLHF_KTAE_WATCHED"  # the folder of the run
FILE = "watched.jsonl"
ORDER_FILE = "die"
GENERATING, ASLEEP, SYNCHRONISING = "generating", "asleep", "synchronising"
MOMENTS = (GENERATING, ASLEEP, SYNCHRONISING)
CORE = "VLLM::EngineCor"
GENERATING_SECONDS = 0.05  # into a generation; 64 rollouts of a tiny model take 0.2 s on a CPU
MIDDLE_CALL = 3  # in the middle of a synchronisation that sends one parameter per call
MERGED = ((re.compile(r"\.[qkv]_proj\."), ".qkv_proj."), (re.compile(r"\.(gate|up)_proj\."), ".gate_up_proj."))
"""Parameters of a dense decoder that vLLM fuses: pattern -> name of the fused one."""
SAME = 1e-9  # relative: the same numbers summed in a different order, in float64

Sums = dict[str, tuple[float, float]]
"""The engine's name of a parameter -> sum of its values, and of their absolute values."""


def note(kind: str, **figures: Any) -> None:
    """Append one row to `watched.jsonl`."""
    with (Path(os.environ[VARIABLE]) / FILE).open("a", encoding="utf-8") as file:
        file.write(json.dumps({"kind": kind, **figures}) + "\n")


def on_cpu() -> bool:
    """Whether this process belongs to a run of the CPU backend."""
    return ENGINE_VARIABLE in os.environ


def engine_name(name: str) -> str:
    """Return the name of the engine's parameter that holds the trainer's parameter `name`."""
    for pattern, merged in MERGED:
        name = pattern.sub(merged, name)
    return name


def _sums(tensor: Any) -> tuple[float, float]:
    values = tensor.detach().double()
    return float(values.sum()), float(values.abs().sum())


def _add(one: tuple[float, float], other: tuple[float, float]) -> tuple[float, float]:
    return one[0] + other[0], one[1] + other[1]


def worker_sums(worker: Any) -> dict[str, tuple[float, float, bool]]:
    """Return sums of each parameter of a vLLM worker, and whether tensor parallelism shards it."""
    found = {}
    for name, parameter in worker.model_runner.model.named_parameters():
        axes = (getattr(parameter, "output_dim", None), getattr(parameter, "input_dim", None))
        found[name] = (*_sums(parameter), any(axis is not None for axis in axes))
    return found


def engine_sums(workers: Sequence[Mapping[str, Sequence[Any]]]) -> Sums:
    """Combine the sums of an engine's workers: add sharded parameters, and count others once."""
    first, *others = workers
    sums: Sums = {}
    for name, (total, absolute, divided) in first.items():
        sums[name] = (total, absolute)
        for other in others if divided else ():
            sums[name] = _add(sums[name], (other[name][0], other[name][1]))
    return sums


def trainer_sums(model: Any, sharded: bool, rank: int) -> Sums:
    """Return the sums of the trainer's parameters on rank 0; every rank takes part in gathering its shards."""
    import deepspeed

    sums: Sums = {}
    for name, parameter in model.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter], enabled=sharded):
            if rank == 0:
                merged = engine_name(name)
                sums[merged] = _add(sums.get(merged, (0.0, 0.0)), _sums(parameter.data))
    return sums


def different(trainer: Sums, engine: Sums) -> list[str]:
    """Return the names of parameters whose sums differ, or that only one side has."""

    def differs(name: str) -> bool:
        if name not in trainer or name not in engine:
            return True
        scale = max(trainer[name][1], engine[name][1], 1e-30)
        return any(not abs(a - b) <= SAME * scale for a, b in zip(trainer[name], engine[name], strict=True))

    return sorted(name for name in trainer.keys() | engine.keys() if differs(name))


def resident(name: str) -> int:
    """Return this process's `VmRSS` or `VmHWM` in bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def device_used(worker: Any) -> int:
    """Return the bytes that all processes together use on the current device, a vLLM worker's or this process's."""
    import torch

    free, total = torch.cuda.mem_get_info()
    return total - free


class Memory:
    """Peak memory of this process in each phase."""

    before = 0  # on a CPU: resident bytes before the model was loaded

    @classmethod
    @contextmanager
    def of(cls, phase: str) -> Iterator[None]:
        """Note the peak memory of the block.

        On a GPU this is the usage of all processes on the device, with this process's peak reservation by torch.
        """
        import torch

        if on_cpu():
            Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM to the current resident size
        else:
            torch.cuda.empty_cache()  # free memory that the previous phase cached
            torch.cuda.reset_peak_memory_stats()
        yield
        if on_cpu():
            used = resident("VmHWM") - cls.before
        else:
            torch.cuda.synchronize()
            used = device_used(None) - torch.cuda.memory_reserved() + torch.cuda.max_memory_reserved()
        note("memory", phase=phase, bytes=used)


class WatchedUpdates:
    """Mixin for an update loop, placed before it among the bases."""

    def ppo_train(self, *args: Any, **kwargs: Any) -> Any:
        """Update; note the memory."""
        with Memory.of("training"):
            return super().ppo_train(*args, **kwargs)  # type: ignore[misc]

    def training_step(self, experience: Any, *args: Any, **kwargs: Any) -> Any:
        """Train on a micro-batch; note how much the engine's log-probabilities differ from the trainer's."""
        if experience.rollout_log_probs is not None:
            gaps = (experience.rollout_log_probs - experience.action_log_probs).float().abs()
            gaps = gaps[experience.action_mask.bool()]
            if len(gaps):
                note("log_probs", mean=float(gaps.mean()), largest=float(gaps.max()), tokens=len(gaps))
        return super().training_step(experience, *args, **kwargs)  # type: ignore[misc]

    def broadcast_to_vllm(self) -> None:
        """Send the weights; note the memory, and whether the engines have them."""
        import ray
        import torch

        with Memory.of("synchronisation"):
            super().broadcast_to_vllm()  # type: ignore[misc]
        own: Any = self
        rank = torch.distributed.get_rank()
        sums = trainer_sums(own.actor.model.module, own.strategy.args.ds.zero_stage == 3, rank)
        if rank == 0:
            for theirs in ray.get([engine.weight_sums.remote() for engine in own.vllm_engines]):
                wrong = different(sums, theirs)
                note("weights", equal=not wrong, parameters=len(sums), different=wrong[:8])


class WatchedActor:
    """Mixin for a policy actor, placed before it among the bases."""

    def init_model_from_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Load the model. On a CPU, memory that was resident before does not count."""
        if on_cpu():
            Memory.before = resident("VmRSS")
        super().init_model_from_pretrained(*args, **kwargs)  # type: ignore[misc]


class WatchedEngine:
    """Mixin for an engine, placed before it among the bases."""

    llm: Any
    _sent = 0  # calls since the last generation

    async def weight_sums(self) -> Sums:
        """Return the sums of the engine's current weights."""
        return engine_sums(await self.llm.collective_rpc(worker_sums))

    async def generate_responses(self, *args: Any, **kwargs: Any) -> Any:
        """Generate; if requested, kill vLLM's core midway."""
        self._sent = 0
        if self._ordered(GENERATING):
            asyncio.get_running_loop().call_later(GENERATING_SECONDS, self._die, GENERATING)
        return await super().generate_responses(*args, **kwargs)  # type: ignore[misc]

    async def sleep(self, *args: Any, **kwargs: Any) -> None:
        """Note the memory, then sleep; if requested, kill vLLM's core afterwards."""
        used = await self.llm.collective_rpc(device_used)
        note("memory", phase="generation", bytes=max(used))
        await super().sleep(*args, **kwargs)  # type: ignore[misc]
        if self._ordered(ASLEEP):
            self._die(ASLEEP)

    async def update_weight(self, *args: Any, **kwargs: Any) -> Any:
        """Receive a parameter by NCCL."""
        self._receive(MIDDLE_CALL)
        return await super().update_weight(*args, **kwargs)  # type: ignore[misc]

    async def update_weight_cuda_ipc(self, *args: Any, **kwargs: Any) -> Any:
        """Receive a parameter from the same GPU."""
        self._receive(MIDDLE_CALL)
        return await super().update_weight_cuda_ipc(*args, **kwargs)  # type: ignore[misc]

    async def update_weights_in_bucket(self, *args: Any, **kwargs: Any) -> Any:
        """Receive a bucket of parameters on a CPU; a tiny model fits in one."""
        self._receive(1)
        return await super().update_weights_in_bucket(*args, **kwargs)  # type: ignore[misc]

    def _receive(self, middle: int) -> None:
        self._sent += 1
        if self._sent >= middle and self._ordered(SYNCHRONISING):
            self._die(SYNCHRONISING)

    def _ordered(self, moment: str) -> bool:
        """Whether a death is requested in this phase; each request is used once."""
        order = Path(os.environ[VARIABLE]) / ORDER_FILE
        with suppress(OSError):  # no request, or another engine took it
            if order.read_text() == moment:
                order.rename(f"{order}.{moment}")
                return True
        return False

    def _die(self, moment: str) -> None:
        note("death", moment=moment, time=time.time())
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                if "".join(process.cmdline()).startswith(CORE):
                    process.kill()
