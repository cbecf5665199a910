"""Where does token credit help at all? Many small trainings of a member of `examples/chains` at once, in plain torch.

    python benchmarks/credit_training.py runs/chains/12-50-10 --output runs/credit_training.json

One update a batch (so PPO's clip does nothing), Adam, gradient norm 1, fresh problems in each step. The learning rate
of each arm is the best of three on `--explore` seeds by mean training accuracy; `--seeds` other seeds are reported,
with differences to GRPO on the same seeds (same problems) and 95 % t-intervals. All runs of a cell go side by side in
one stack of models.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from chain_rollouts import ORACLE, Member
from make_task import draw_problem

from openrlhf_ktae.credit import CreditBatch, estimators, load_estimator
from openrlhf_ktae.figures.statistics import t_interval
from openrlhf_ktae.ktae import KTAEConfig

RATES = (6e-5, 1.5e-4, 4e-4)
BETAS = (0.9, 0.95)
PROBABILITY_WEIGHT = 0.5
EVALUATED = 512
Arm = Callable[[CreditBatch], torch.Tensor]


def reweighted(advantage_N: torch.Tensor, batch: CreditBatch) -> torch.Tensor:
    """Return advantages times a share of the tokens' probabilities."""
    return advantage_N * (PROBABILITY_WEIGHT * batch.needed("log_probs").exp() + 1 - PROBABILITY_WEIGHT)


def arms() -> dict[str, Arm]:
    """Return what gives each arm its advantages (N,)."""
    oracle, known = load_estimator(ORACLE), estimators()

    def credited(batch: CreditBatch) -> torch.Tensor:
        return batch.base_N + oracle(batch).added_N

    return {
        "GRPO": lambda batch: batch.base_N,
        "oracle": credited,
        "oracle x probability": lambda batch: reweighted(credited(batch), batch),
        "prob_reweight": lambda batch: reweighted(batch.base_N, batch),
        "ktae calibrated": lambda batch: batch.base_N + known["ktae"](batch, KTAEConfig(variant="calibrated")).added_N,
        "tempo": lambda batch: batch.base_N + known["tempo"](batch).added_N,
    }


def train(
    member: Member, runs: list[tuple[str, float, int]], steps: int, prompts: int, group: int, evaluated: int
) -> tuple[np.ndarray, np.ndarray]:
    """Train one model for each (arm, rate, seed); return accuracy of each step (S, steps) and at the end (S,)."""
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
        log_probs = member.forward.log_probs(weights, ids, member.pad)
        chosen = log_probs.gather(-1, ids[..., 1:, None]).squeeze(-1)
        wanted, mask = torch.zeros_like(chosen), torch.zeros_like(chosen)
        for s, (arm, _, _) in enumerate(runs):
            scores = member.scores(ids[s], problems[s])
            curve[s, step] = scores.mean()
            batch = member.credit_batch(ids[s], log_probs[s].detach(), scores, group, start.shape[-1])
            mask[s] = batch.mask_N.view_as(mask[s])
            wanted[s] = given[arm](batch).view_as(mask[s]) * mask[s]
        ratio = (chosen - chosen.detach()).exp()
        loss = -((ratio * wanted).sum((1, 2)) / mask.sum((1, 2))).sum()
        gradients = torch.autograd.grad(loss, list(weights.values()))
        adam(weights, gradients, moments, rates_S, step + 1)
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
    """Take one step of Adam with a rate for each model, gradients of norm 1 at most."""
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


def compared(values: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """Return mean of each arm, and its mean difference to GRPO with half the width of a 95 % interval, in points."""
    made = {}
    for name, values_S in values.items():
        difference, _, high = t_interval(100 * (values_S - values["GRPO"]))
        made[name] = {"mean": 100 * float(values_S.mean()), "difference": difference, "half": high - difference}
    return made


def cell(member: Member, args: argparse.Namespace) -> dict[str, Any]:
    """Tune each arm on some seeds, report on others."""
    started, names, rates = time.monotonic(), args.arms, args.rates
    explored: dict[str, dict[str, float]] = {name: {} for name in names}
    for name in names if len(rates) > 1 else []:
        runs = [(name, rate, 1000 + seed) for rate in rates for seed in range(args.explore)]
        curve, _ = train(member, runs, args.steps, args.prompts, args.group, 1)
        means = curve.mean(1).reshape(len(rates), -1).mean(1)
        explored[name] = {f"{rate:g}": 100 * float(mean) for rate, mean in zip(rates, means, strict=True)}
        print(member.name, name, explored[name], f"{time.monotonic() - started:.0f} s", flush=True)
    best = {name: rates[int(np.argmax(list(explored[name].values()) or [0]))] for name in names}
    learning, final = {}, {}
    for name in names:
        curve, final[name] = train(
            member,
            [(name, best[name], seed) for seed in range(args.first_seed, args.first_seed + args.seeds)],
            args.steps,
            args.prompts,
            args.group,
            EVALUATED,
        )
        learning[name] = curve.mean(1)
    found = {
        "member": member.name,
        "measured": member.measured,
        "steps": args.steps,
        "prompts": args.prompts,
        "group": args.group,
        "seeds": args.seeds,
        "explore": args.explore,
        "explored": explored,
        "rate": best,
        "over steps": compared(learning),
        "final": compared(final),
        "seconds": time.monotonic() - started,
    }
    for name in names:
        print(member.name, name, best[name], found["over steps"][name], found["final"][name], flush=True)
    return found


def main() -> None:
    """Run the cells one after another; each is written when it ends."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("members", nargs="+", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--arms", nargs="+", default=list(arms()), choices=list(arms()), help="GRPO must be the first")
    parser.add_argument("--rates", type=float, nargs="+", default=RATES, help="with one nothing is explored")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--explore", type=int, default=2, help="seeds for the choice of the learning rate")
    parser.add_argument("--seeds", type=int, default=8, help="other seeds, which are reported")
    parser.add_argument("--first-seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    results = []
    for folder in args.members:
        results.append(cell(Member(folder), args))
        args.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
