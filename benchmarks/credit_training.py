"""Where does token credit help at all? Many small training runs on `examples/chains` at once, in plain torch.

    python benchmarks/credit_training.py runs/chains/6-50-30 --seeds 0 --output runs/tuned.json
    python benchmarks/credit_training.py runs/chains/* --tuned runs/tuned.json --output docs/credit_map.json

Training uses Adam, gradient norm 1, fresh problems in each step, and one update per batch (so PPO's clip has no effect)
or `--updates` on the whole batch. Each arm's learning rate is the best of `--rates` on `--explore` seeds by mean
training accuracy. Results are of `--seeds` other seeds, which all arms share (same problems, same random numbers of the
sampler). An arm's seeds train together as one stack of models. Each arm is added to its cell in `--output` when it
ends. `benchmarks/credit_map.py` makes tables and a figure of the differences from GRPO.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from chain_rollouts import ORACLE, Member
from ktae_changes import by_value
from make_task import draw_problem

from openrlhf_ktae.credit import CreditBatch, Estimator, estimators, load_estimator
from openrlhf_ktae.ktae import KTAEConfig

RATES = (2e-4, 4e-4, 8e-4)
BETAS = (0.9, 0.95)
CLIP = 0.2
EVALUATED = 256
EXPLORED_FROM = 1000
"""First seed for choosing learning rates; reported seeds are smaller."""
Arm = Callable[[CreditBatch], torch.Tensor]


def shuffled(batch: CreditBatch) -> CreditBatch:
    """Return the batch with each group's scores permuted; its token ids determine the order."""
    rng = np.random.default_rng(int(batch.token_ids_N.sum()))
    order_B = np.lexsort((rng.random(len(batch.group_B)), batch.group_B))
    scores_B = torch.empty_like(batch.scores_B)
    scores_B[np.argsort(batch.group_B, kind="stable")] = batch.scores_B[order_B]
    return replace(batch, scores_B=scores_B)


def arms() -> dict[str, Arm]:
    """Return each arm's function, which returns the advantages (N,) of a batch.

    "NAME x probability" multiplies those of NAME by pi, "NAME x half" by 0.5 pi + 0.5.
    """
    oracle, known = load_estimator(ORACLE), estimators()
    context = known["ktae_by_context"]

    def credited(estimator: Estimator, options: Any = None) -> Arm:
        return lambda batch: batch.base_N + estimator(batch, options).added_N

    def reweighted(arm: Arm, alpha: float) -> Arm:
        return lambda batch: arm(batch) * (alpha * batch.needed("log_probs").exp() + 1 - alpha)

    bare = {
        "GRPO": lambda batch: batch.base_N,
        "oracle": credited(oracle),
        "ktae paper": credited(known["ktae"], KTAEConfig(variant="paper")),
        "ktae calibrated": credited(known["ktae"], KTAEConfig(variant="calibrated")),
        "tempo": credited(known["tempo"]),
        "ktae by context": credited(context, KTAEConfig()),
        "ktae calibrated by context": credited(context, KTAEConfig(variant="calibrated")),
        "shuffled ktae by context": lambda batch: batch.base_N + context(shuffled(batch), KTAEConfig()).added_N,
        "ktae by value": by_value,
    }
    weights = {"x probability": 1.0, "x half": 0.5}
    return bare | {f"{arm} {x}": reweighted(bare[arm], alpha) for x, alpha in weights.items() for arm in bare}


def train(
    member: Member,
    runs: list[tuple[str, float, int]],
    steps: int,
    prompts: int,
    group: int,
    evaluated: int,
    updates: int = 1,
) -> tuple[np.ndarray, np.ndarray]:
    """Train one model per (arm, rate, seed); return accuracies per step (S, steps) and at the end (S,)."""
    copies, given = len(runs), arms()
    weights = member.weights(copies)
    moments = {name: (torch.zeros_like(w), torch.zeros_like(w)) for name, w in weights.items()}
    rates_S = torch.tensor([rate for _, rate, _ in runs])
    rngs = [random.Random(seed) for _, _, seed in runs]
    curve = np.zeros((copies, steps))
    for step in range(steps):
        problems = [[draw_problem(member.knobs.steps, rng) for _ in range(prompts)] for rng in rngs]
        start = torch.stack([member.prompts(drawn, group) for drawn in problems])
        seed = 1000 * runs[0][2] + step
        ids = member.forward.sample(weights, start, member.pad, member.end, member.most, seed)
        for update in range(updates):
            log_probs = member.forward.log_probs(weights, ids, member.pad)
            chosen = log_probs.gather(-1, ids[..., 1:, None]).squeeze(-1)
            if update == 0:
                old, wanted, mask = chosen.detach(), torch.zeros_like(chosen), torch.zeros_like(chosen)
                for s, (arm, _, _) in enumerate(runs):
                    scores = member.scores(ids[s], problems[s])
                    curve[s, step] = scores.mean()
                    batch = member.credit_batch(ids[s], log_probs[s].detach(), scores, group, start.shape[-1])
                    mask[s] = batch.mask_N.view_as(mask[s])
                    wanted[s] = given[arm](batch).view_as(mask[s]) * mask[s]
            ratio = (chosen - old).exp()
            gain = torch.minimum(ratio * wanted, ratio.clamp(1 - CLIP, 1 + CLIP) * wanted)
            loss = -(gain.sum((1, 2)) / mask.sum((1, 2))).sum()
            gradients = torch.autograd.grad(loss, list(weights.values()))
            adam(weights, gradients, moments, rates_S, step * updates + update + 1)
    rng = random.Random(10_000)
    held = [draw_problem(member.knobs.steps, rng) for _ in range(evaluated)]
    start = member.prompts(held, 1)[None].expand(copies, -1, -1)
    final = np.zeros(copies)
    for at in range(0, copies, 8):
        part = {name: w[at : at + 8].detach() for name, w in weights.items()}
        ids = member.forward.sample(part, start[at : at + 8], member.pad, member.end, member.most, 1)
        final[at : at + 8] = [float(member.scores(one, held).mean()) for one in ids]
    return curve, final


@torch.no_grad()
def adam(
    weights: dict[str, torch.Tensor],
    gradients: tuple[torch.Tensor, ...],
    moments: dict[str, tuple[torch.Tensor, torch.Tensor]],
    rates_S: torch.Tensor,
    step: int,
) -> None:
    """Take one step of Adam with a rate per model and gradients clipped to norm 1."""
    norm_S = torch.stack([g.flatten(1).pow(2).sum(1) for g in gradients]).sum(0).sqrt()
    factor_S = 1.0 / norm_S.clamp(min=1.0)
    for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
        shape = (-1, *[1] * (weight.dim() - 1))
        gradient = gradient * factor_S.view(shape)
        first, second = moments[name]
        first.mul_(BETAS[0]).add_(gradient, alpha=1 - BETAS[0])
        second.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
        size = (second / (1 - BETAS[1] ** step)).sqrt_().add_(1e-8)
        weight.sub_(rates_S.view(shape) * (first / (1 - BETAS[0] ** step)) / size)


def cell(member: Member, arm: str, args: argparse.Namespace, tuned: dict[str, float]) -> dict[str, Any]:
    """Return the result of one arm: its learning rate from some seeds, and accuracies of other seeds."""
    started = time.monotonic()
    sizes = args.steps, args.prompts, args.group
    found: dict[str, Any] = {
        "member": member.name,
        "knobs": asdict(member.knobs),
        "measured": member.measured,
        **{key: vars(args)[key] for key in ("steps", "prompts", "group", "updates", "first_seed", "seeds", "explore")},
        **{key: {} for key in ("explored", "rate", "over steps", "final")},
    }
    best = tuned.get(arm, args.rates[0])
    if arm not in tuned and len(args.rates) > 1:
        runs = [(arm, rate, EXPLORED_FROM + seed) for rate in args.rates for seed in range(args.explore)]
        curve, _ = train(member, runs, *sizes, 1, args.updates)
        means = 100 * curve.mean(1).reshape(len(args.rates), -1)
        tried = {f"{rate:g}": one.round(2).tolist() for rate, one in zip(args.rates, means, strict=True)}
        found["explored"][arm] = tried
        best = args.rates[int(means.mean(1).argmax())]
    found["rate"][arm] = best
    if args.seeds:
        runs = [(arm, best, seed) for seed in range(args.first_seed, args.first_seed + args.seeds)]
        curve, final = train(member, runs, *sizes, EVALUATED, args.updates)
        found["over steps"][arm] = (100 * curve.mean(1)).round(2).tolist()
        found["final"][arm] = (100 * final).round(2).tolist()
    found["seconds"] = round(time.monotonic() - started)
    means = {key: float(np.mean(found[key][arm])) for key in ("over steps", "final") if arm in found[key]}
    print(member.name, args.group, arm, best, found["explored"].get(arm, ""), means, found["seconds"], "s", flush=True)
    return found


def add(cells: list[dict[str, Any]], found: dict[str, Any]) -> None:
    """Merge the arms into the cell with the same settings, or append the cell."""
    for cell in cells:
        if all(cell[key] == found[key] for key in found if not isinstance(found[key], dict) and key != "seconds"):
            for key in ("explored", "rate", "over steps", "final"):
                cell[key] |= found[key]
            cell["seconds"] += found["seconds"]
            return
    cells.append(found)


def main() -> None:
    """Run each arm of each member in turn; write each result when it ends."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("members", nargs="+", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--arms", nargs="+", default=list(arms()), choices=list(arms()))
    parser.add_argument("--rates", type=float, nargs="+", default=RATES, help="a single rate skips the exploration")
    parser.add_argument("--tuned", type=Path, help="earlier --output whose first cell gives each arm's rate")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--group", type=int, default=16)
    parser.add_argument("--updates", type=int, default=1, help="updates on each whole batch")
    parser.add_argument("--explore", type=int, default=4, help="seeds for choosing the learning rate")
    parser.add_argument("--seeds", type=int, default=8, help="reported seeds")
    parser.add_argument("--first-seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    tuned = json.loads(args.tuned.read_text())[0]["rate"] if args.tuned else {}
    for folder in args.members:
        member = Member(folder)
        for arm in args.arms:
            found = cell(member, arm, args, tuned)
            cells = json.loads(args.output.read_text()) if args.output.exists() else []
            add(cells, found)
            text = json.dumps(cells, indent=1)
            text = re.sub(r"\[\s+([-\d.,\s]+?)\s+\]", lambda values: f"[{' '.join(values[1].split())}]", text)
            args.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
