"""Only the training phase: the host's policy actor in N processes on synthetic rollouts, without Ray or an engine.

    python benchmarks/update_only.py SPEC.json RANK WORLD PORT

SPEC: `model` (folder), `options` (command-line words), `steps`, `rollouts` (per step), `length` (longest, in tokens),
`masked` (rollouts without action tokens, default 0), `vocabulary`, `out` (rank 0 writes OUT.json, and with `weights`
OUT.pt). It serves to compare ranks, ZeRO stages and batchings, and planned memory with measured peaks.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

# Larger tensors get their own mappings, so that the peak of resident memory counts live tensors only.
os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(64 * 1024))


def memory(name: str) -> int:
    """Return bytes of `VmRSS` or `VmHWM` of this process."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def forget_peak() -> None:
    """Reset `VmHWM` to the current resident memory."""
    Path("/proc/self/clear_refs").write_text("5")


def rollouts(spec: dict[str, Any], step: int) -> list[Any]:
    """Return a step's rollouts in micro-batches of one, the same in every process."""
    import torch
    from openrlhf.trainer.ppo_utils.experience import Experience

    generator = torch.Generator().manual_seed(1000 + step)
    made = []
    for number in range(spec["rollouts"]):
        total = int(torch.randint(spec["length"] // 2, spec["length"] + 1, (1,), generator=generator))
        mask = torch.ones(1, total - 1)
        mask[:, : total if number < spec.get("masked", 0) else total // 4] = 0
        noise = 0.1 * torch.randn(1, total - 1, generator=generator)
        advantage = torch.randn(1, 1, generator=generator)
        made.append(
            Experience(
                sequences=torch.randint(3, spec["vocabulary"], (1, total), generator=generator),
                attention_mask=torch.ones(1, total, dtype=torch.long),
                action_mask=mask,
                action_log_probs=noise * mask,
                advantages=advantage * mask,
                returns=advantage * mask,
                total_length=torch.tensor([float(total)]),
                response_length=mask.sum(-1),
                info={"reward": torch.tensor([0.0])},
            )
        )
    return made


def main(spec: dict[str, Any], rank: int, world: int, port: str) -> None:
    """Take the steps of `spec` as rank `rank`."""
    from openrlhf_ktae.backend import resolve
    from openrlhf_ktae.cli.options import parse_command_line

    args = parse_command_line(spec["options"])
    backend = resolve("cpu")
    backend.adapt(args)
    backend.prepare_driver()
    import torch
    from openrlhf.utils import deepspeed as host_deepspeed
    from openrlhf.utils.utils import get_strategy

    from openrlhf_ktae.trainer.ray.cpu_actors import CpuDeepspeedStrategy, CpuPolicyModelActor

    host_deepspeed.DeepspeedStrategy = CpuDeepspeedStrategy
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // world))
    actor = CpuPolicyModelActor(world, rank, "127.0.0.1", port)
    strategy = get_strategy(args)
    before = memory("VmRSS")
    actor.init_model_from_pretrained(strategy, spec["model"], spec["steps"], None)
    states = memory("VmRSS") - before
    raw_losses, losses, peaks = remember_losses(actor.trainer), [], []
    copies = args.ds.tensor_parallel_size  # ranks of one tensor-parallel group see the same rollouts
    share = spec["rollouts"] * copies // world
    parts = 1 if args.train.dynamic_batch_enable else strategy.accumulated_gradient
    for step in range(spec["steps"]):
        own = rollouts(spec, step)[rank // copies * share : (rank // copies + 1) * share]
        for experience in own:  # perturbed, so that the ratio is not 1
            mask = experience.action_mask
            experience.action_log_probs = actor.forward(
                experience.sequences, mask, experience.attention_mask
            ).float() + (experience.action_log_probs * mask)
            actor.append(experience)
        forget_peak()
        actor.fit(0.0)
        loss = torch.tensor(sum(raw_losses), dtype=torch.float64) / parts
        raw_losses.clear()
        torch.distributed.all_reduce(loss)
        losses.append(loss.item() / world)  # each rank's losses were scaled by the number of data ranks
        peaks.append(memory("VmHWM") - before)
    weights = gathered(actor, args.ds.zero_stage) if copies == 1 else {}
    if rank == 0:
        Path(spec["out"] + ".json").write_text(json.dumps({"loss": losses, "states": states, "peak": peaks}))
        if spec.get("weights"):
            torch.save(weights, spec["out"] + ".pt")
    torch.distributed.barrier()


def remember_losses(trainer: Any) -> list[float]:
    """Return a list that collects every micro-batch's loss; the host's logged loss depends on how batches are split."""
    losses: list[float] = []
    take = trainer.training_step

    def training_step(*args: Any, **kwargs: Any) -> Any:
        status = take(*args, **kwargs)
        losses.append(float(status["metrics"]["policy_loss"]))
        return status

    trainer.training_step = training_step
    return losses


def gathered(actor: Any, stage: int) -> dict[str, Any]:
    """Return all weights, gathered, with adapters merged."""
    import deepspeed

    from openrlhf_ktae.trainer.lora import model_weights, parts_of

    weights = {}
    for name, weight in model_weights(actor.actor.model.module).items():
        with deepspeed.zero.GatheredParameters(parts_of([weight]), enabled=stage == 3):
            weights[name] = weight.data.detach().clone()
    return weights


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
