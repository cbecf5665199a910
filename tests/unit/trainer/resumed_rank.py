"""A rank that trains, saves, and resumes with other options, once per case; writes the options it then uses.

`python resumed_rank.py FOLDER` reads the cases in `FOLDER/cases.json` and writes `FOLDER/seen.json`.
"""

from __future__ import annotations

import copy
import json
import os
import sys
from pathlib import Path

from openrlhf_ktae.backend.cpu_patches import activate

activate()

import openrlhf.utils.deepspeed  # noqa: E402
import torch  # noqa: E402

from openrlhf_ktae.backend.cpu import CpuBackend  # noqa: E402
from openrlhf_ktae.base.free_port import free_port  # noqa: E402
from openrlhf_ktae.base.host import undecorated  # noqa: E402
from openrlhf_ktae.checkpoint.write import begin  # noqa: E402
from openrlhf_ktae.cli.options import parse_command_line  # noqa: E402
from openrlhf_ktae.trainer.ray.cpu_actors import CpuDeepspeedStrategy, CpuPolicyModelActor  # noqa: E402
from openrlhf_ktae.trainer.ray.ppo_critic import KTAECriticModelActor  # noqa: E402

openrlhf.utils.deepspeed.DeepspeedStrategy = CpuDeepspeedStrategy
FOLDER = Path(sys.argv[1])
MODEL = "examples/quickstart/model"
WORDS = f"--config configs/grpo_ktae/quickstart.yaml --run.dir {FOLDER}/run --critic.model_name_or_path {MODEL}".split()
STEPS = 20  # of the schedule
TAG = "global_step2"


def made(role, words, source):
    from openrlhf.utils.utils import get_strategy

    args = parse_command_line([*WORDS, *words])
    CpuBackend().adapt(args)
    args.run.resume_from, args.ckpt.load_enable = source, source is not None
    strategy = get_strategy(args)
    kind = CpuPolicyModelActor if role == "actor" else KTAECriticModelActor
    actor = undecorated(kind) if hasattr(kind, "__ray_metadata__") else kind
    actor = actor.__new__(actor)
    actor._world_size, actor._rank = 1, 0
    actor.init_model_from_pretrained(strategy, MODEL, STEPS, *([None] if role == "actor" else []))
    engine = actor.actor.model if role == "actor" else actor.critic
    return actor, engine, actor.actor_scheduler if role == "actor" else actor.critic_scheduler


def update(engine, role):
    ids = torch.tensor([[5, 6, 7, 8]])
    mask = {"action_mask": torch.ones(1, 3)} if role == "critic" else {}
    output = engine(ids, attention_mask=torch.ones_like(ids), **mask)
    output = output.logits if role == "actor" else output
    engine.backward(output.float().square().mean())
    engine.step()


def seen(engine, scheduler):
    groups = [{k: v for k, v in g.items() if k != "params"} for g in engine.optimizer.param_groups]
    moments = [s["exp_avg"].abs().sum().item() for s in engine.optimizer.optimizer.state.values() if "exp_avg" in s]
    return {
        "groups": copy.deepcopy(groups),
        "base_lrs": list(scheduler.base_lrs),
        "position": scheduler.last_epoch,
        "next_rates": [group["lr"] for group in groups],
        "expected": [
            b * f(scheduler.last_epoch) for b, f in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
        ],
        "clip": engine.optimizer.clip_grad,
        "moments": sum(moments),
    }


def main():
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()), RANK="0", WORLD_SIZE="1", LOCAL_RANK="0")
    answers = []
    for role, base, words in json.loads((FOLDER / "cases.json").read_text()):
        one, engine, scheduler = made(role, base, None)
        for _ in range(2):
            update(engine, role)
        root = Path(one.strategy.args.ckpt.path)
        folder = begin(root, TAG)
        one.save_checkpoint(TAG, **({} if role == "critic" else {"client_states": {"episode": 0}}))
        before = seen(engine, scheduler)
        _, engine, scheduler = made(role, [*base, *words], str(folder))
        after = seen(engine, scheduler)
        update(engine, role)
        answers.append({"before": before, "after": after, "then": seen(engine, scheduler)})
    (FOLDER / "seen.json").write_text(json.dumps(answers))


if __name__ == "__main__":
    main()
